"""Exercises of chapter 06, inside the network: DistilBERT's loss to mend."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_06 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function

# 6.4 · mend it ------------------------------------------------------------------------------------


class Filler(nn.Module):
    """The smallest model that fills gaps: each token has its states, looked up, plus a context.

    The context of a text is the mean of its real tokens' states: it hangs on the attention mask.

    states: (L + 1, V, D), one table for each place; head: (V, D), from the last state to logits.
    """

    def __init__(self, states: Tensor, head: Tensor) -> None:
        super().__init__()
        self.states, self.head = nn.Parameter(states.clone()), nn.Parameter(head.clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """(B, S) ids -> an object with `logits` and `hidden_states`, as in transformers.

        Without a mask every token counts as real, as there.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        share = (mask / mask.sum(1, keepdim=True)).to(self.states.dtype).unsqueeze(1)
        found = [table[input_ids] for table in self.states]
        states = tuple(own + share @ own for own in found)
        return SimpleNamespace(logits=states[-1] @ self.head.T, hidden_states=states)


def _triple_cases(draw: Draw) -> list[Case]:
    cases = []
    for b, s, v, d, layers, t, weights in (
        (3, 5, 7, 4, (1, 2), 2.0, (5.0, 2.0, 1.0)),
        (2, 6, 5, 3, (2, 6), 4.0, (1.0, 1.0, 3.0)),
        (4, 7, 9, 5, (3, 6), 1.5, (0.5, 0.3, 2.0)),
    ):
        mask = draw.mask(b, s).long()
        ids = draw.integers(b, s, below=v, least=1) * mask
        gaps = (draw.integers(b, s, below=3) == 0) & mask.bool()
        gaps[0, -1] = True
        labels = draw.integers(b, s, below=v).masked_fill(~gaps, IGNORED)
        student, teacher = (
            Filler(draw.logits(n + 1, v, d, scale=1.0), draw.logits(v, d)) for n in layers
        )
        teacher.eval().requires_grad_(False)
        name = f"B={b}, S={s}, {layers[0]} of {layers[1]} layers, T={t}"
        cases.append(Case(name, (student, teacher, ids, mask, labels, weights, t)))
    return cases


def _triple_oracle(
    student: Any,
    teacher: Any,
    ids_BS: list[list[int]],
    mask_BS: list[list[int]],
    labels_BS: list[list[int]],
    weights: tuple[float, float, float],
    T: float,
) -> float:
    soft, hard, cosine = [], [], []
    for ids, mask, labels in zip(ids_BS, mask_BS, labels_BS, strict=True):
        context = [token for token, real in zip(ids, mask, strict=True) if real]
        for token, real, label in zip(ids, mask, labels, strict=True):
            (h, z), (t, y) = (_looked_up(model, token, context) for model in (student, teacher))
            if label != IGNORED:
                hard.append(-loops.log_softmax(z)[label])
            if real:
                soft.append(loops.kl(loops.log_softmax(y, T), loops.log_softmax(z, T)))
                cosine.append(1 - _dot(h, t) / math.sqrt(_dot(h, h) * _dot(t, t)))
    means = [sum(values) / len(values) for values in (soft, hard, cosine)]
    return weights[0] * T**2 * means[0] + weights[1] * means[1] + weights[2] * means[2]


def _looked_up(model: Any, token: int, context: list[int]) -> tuple[list[float], list[float]]:
    """The last state of a token among others, and its logits."""
    table = model.states[-1].tolist()
    state = [
        own + sum(table[other][d] for other in context) / len(context)
        for d, own in enumerate(table[token])
    ]
    return state, [_dot(state, row) for row in model.head.tolist()]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _loss_with(
    *,
    last: str = "last",
    cosine_over: str = "real",
    soft_over: str = "real",
    power: int = 2,
    all_terms: bool = False,
    context: str = "real",
) -> Function:
    """The loss mended in part.

    last: which of the teacher's states. cosine_over, soft_over: the tokens of a mean; "all" counts
    padding, "zeros" as well, with nothing in it. power: of T. all_terms: T² on each of the three.
    context: what the models are told of padding.
    """

    def loss(
        student: Any,
        teacher: Any,
        ids: Tensor,
        mask: Tensor,
        labels: Tensor,
        weights: Any,
        t: float,
    ) -> Tensor:
        told = mask if context == "real" else None
        q, p = student(ids, told), teacher(ids, told)
        log_q, log_p = ((x.logits / t).log_softmax(-1) for x in (q, p))
        places = {"real": mask.bool(), "gaps": labels != IGNORED, "all": mask >= 0}
        soft = (log_p.exp() * (log_p - log_q)).sum(-1)[places[soft_over]].mean()
        hard = F.cross_entropy(q.logits.flatten(0, 1), labels.flatten())
        mine = -2 if last == "both before" else -1
        its = {"last": -1, "same": len(q.hidden_states) - 1}.get(last, -2)
        cosine = 1 - F.cosine_similarity(q.hidden_states[mine], p.hidden_states[its], dim=-1)
        away = (cosine * mask).mean() if cosine_over == "zeros" else None
        away = cosine[places[cosine_over]].mean() if away is None else away
        others = weights[1] * hard + weights[2] * away
        result: Tensor = t**power * weights[0] * soft + (t**2 if all_terms else 1) * others
        return result

    return loss


def _every_term_teaches(loss: Function, draw: Draw) -> bool:
    student, teacher, *texts, _, t = _triple_cases(draw)[0].arguments
    for term in range(3):
        student.zero_grad()
        weights = tuple(float(each == term) for each in range(3))
        loss(student, teacher, *texts, weights, t).backward()
        if student.states.grad is None or not student.states.grad.any():
            return False
    return True


def _stays_in_training(loss: Function, draw: Draw) -> bool:
    case = _triple_cases(draw)[1]
    loss(*case.arguments)
    student, teacher = case.arguments[:2]
    return bool(student.training and not teacher.training)


_INDEX = "sparseml PR#1272 and huawei-noah/Pretrained-Language-Model#166, a state by its number"
_PADDING = "NVIDIA/Model-Optimizer PR#892, where the cosine skips the mask"
_POWER = "IntelLabs/distiller#122 and transformers#12299"

MEND_TRIPLE = Exercise(
    number="6.4",
    title="DistilBERT's loss with three faults",
    kind="mend",
    minutes=15,
    difficulty=3,
    hints=(
        "Ask three things. Which of the teacher's states is `hidden_states[last]`, when the "
        "student has one layer and the teacher two? Which tokens enter each of the three means? "
        "What happens to the soft term's gradient when T doubles?",
        "One fault each in the index of the teacher's states, in the mean of the cosine, and in "
        "the factor of the soft term. The term of the labels is right.",
        "The last states are `hidden_states[-1]` of both; the cosine's mean goes over "
        "`[real]` alone; the soft term gets `T**2`.",
    ),
    cases=_triple_cases,
    oracle=_triple_oracle,
    given=broken.triple_loss,
    properties=(
        Property(
            "a gradient from each term",
            _every_term_teaches,
            "The values are right, but with one of the three weights alone no gradient arrives at "
            "the student: you detached that term, or left the tensors on the way. No `.detach()`, "
            "`.item()` or `torch.no_grad()` on what the student computes.",
        ),
        Property(
            "the student stays in training",
            _stays_in_training,
            "The values are right, but after your loss the student is no longer in training (or "
            "the teacher is): `eval()` switches its dropout off for good. A loss leaves the modes "
            "of its models alone.",
        ),
    ),
    mutants=(
        Mutant(
            "the same number",
            _loss_with(last="same"),
            "Cosine and T² are mended. One fault is left: the teacher's state is taken by the "
            "*student's* number of layers, so it comes from the middle of the teacher. The last "
            "one is `hidden_states[-1]`.",
            _INDEX,
        ),
        Mutant(
            "padding in the cosine",
            _loss_with(cosine_over="all"),
            "The state and T² are mended. One fault is left: the cosine's mean counts padding.",
            _PADDING,
        ),
        Mutant(
            "no T²",
            _loss_with(power=0),
            "The state and the cosine's mean are mended. One fault is left: the soft term lacks "
            "T², so the teacher is heard less as T grows.",
            _POWER,
        ),
        Mutant(
            "only the state mended",
            _loss_with(cosine_over="all", power=0),
            "The right state of the teacher, good. Two faults are left: padding counts in the "
            "cosine, and a factor is missing.",
            f"{_PADDING}; {_POWER}",
        ),
        Mutant(
            "only the mask mended",
            _loss_with(last="same", power=0),
            "Padding is out of the cosine, good. Two faults are left: which of the teacher's "
            "states it reads, and a factor that is missing.",
            f"{_INDEX}; {_POWER}",
        ),
        Mutant(
            "only the factor mended",
            _loss_with(last="same", cosine_over="all"),
            "T² is there, good. Two faults are left, both in the cosine: whose last state, and "
            "which tokens.",
            f"{_INDEX}; {_PADDING}",
        ),
        Mutant(
            "the last but one",
            _loss_with(last="before"),
            "You took the state with the number of the last layer, counted from 0. That is one too "
            "early: `hidden_states` begins with the embeddings, so it has one entry more than "
            "there are layers.",
            "goombalab/phi-mamba#4, where somebody stumbles over it",
        ),
        Mutant(
            "T in place of T²",
            _loss_with(power=1),
            "State and mean are mended, and the soft term has a factor, but T for T². Its gradient "
            "falls with the *square* of T: once from dividing the logits, once because softer "
            "distributions differ less.",
            _POWER,
        ),
        Mutant(
            "T² on everything",
            _loss_with(all_terms=True),
            "Your T² multiplies all three terms. It makes up for what T does to the *soft* one; "
            "the other two know nothing of T.",
            _POWER,
        ),
        Mutant(
            "soft over the gaps",
            _loss_with(soft_over="gaps"),
            "Your soft term goes over the gaps alone, as in the chapter's trainer. Here, as in the "
            "authors' script, it goes over all real tokens: that part was right.",
            "chapter 06, where the two means differ",
        ),
        Mutant(
            "the cosine times the mask",
            _loss_with(cosine_over="zeros"),
            "State and T² are mended, and padding adds nothing to the cosine, but it is still "
            "counted: you divide by B · S. Divide by the number of real tokens.",
            "Fast-LLM#344",
        ),
        Mutant(
            "the last but one of both",
            _loss_with(last="both before"),
            "You took the last but one of both models. The last state is `hidden_states[-1]`: "
            "these models have no final norm, so it is what the last layer leaves.",
            "a reader",
        ),
        Mutant(
            "models without the mask",
            _loss_with(context="all"),
            "You do not give the mask to the models, so real tokens look at padding: every state "
            "of a short text is another one.",
            "a reader",
        ),
    ),
)

EXERCISES = (MEND_TRIPLE,)
