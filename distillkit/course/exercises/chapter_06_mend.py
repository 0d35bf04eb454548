"""Exercises of chapter 06, inside the network: DistilBERT's loss to mend, and sizes to predict."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_06 as broken
from distillkit.course.exercises.definition import OFFERED, Case, Exercise, Mutant
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function

# 6.4 · mend it ------------------------------------------------------------------------------------


class Filler(nn.Module):
    """The smallest model that fills gaps: each token has its states, looked up; no context.

    states: (L + 1, V, D), one table for each place; head: (V, D), from the last state to logits.
    """

    def __init__(self, states: Tensor, head: Tensor) -> None:
        super().__init__()
        self.states, self.head = nn.Parameter(states.clone()), nn.Parameter(head.clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """(B, S) ids -> an object with `logits` and `hidden_states`, as in transformers."""
        states = tuple(table[input_ids] for table in self.states)
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
        for token, real, label in zip(ids, mask, labels, strict=True):
            (h, z), (t, y) = (_looked_up(model, token) for model in (student, teacher))
            if label != IGNORED:
                hard.append(-loops.log_softmax(z)[label])
            if real:
                soft.append(loops.kl(loops.log_softmax(y, T), loops.log_softmax(z, T)))
                cosine.append(1 - _dot(h, t) / math.sqrt(_dot(h, h) * _dot(t, t)))
    means = [sum(values) / len(values) for values in (soft, hard, cosine)]
    return weights[0] * T**2 * means[0] + weights[1] * means[1] + weights[2] * means[2]


def _looked_up(model: Any, token: int) -> tuple[list[float], list[float]]:
    """The last state of a token, and its logits."""
    state = model.states[-1][token].tolist()
    return state, [_dot(state, row) for row in model.head.tolist()]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _loss_with(*, last: str = "last", masked: bool = True, power: int = 2) -> Function:
    """The loss mended in part. last: which of the teacher's states; masked: in the cosine."""

    def loss(
        student: Any,
        teacher: Any,
        ids: Tensor,
        mask: Tensor,
        labels: Tensor,
        weights: Any,
        t: float,
    ) -> Tensor:
        q, p = student(ids, mask), teacher(ids, mask)
        real = mask.bool()
        log_q, log_p = ((x.logits[real] / t).log_softmax(-1) for x in (q, p))
        soft = t**power * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        hard = F.cross_entropy(q.logits.flatten(0, 1), labels.flatten())
        place = {"last": -1, "same": len(q.hidden_states) - 1, "before": -2}[last]
        cosine = 1 - F.cosine_similarity(q.hidden_states[-1], p.hidden_states[place], dim=-1)
        away = cosine[real].mean() if masked else cosine.mean()
        result: Tensor = weights[0] * soft + weights[1] * hard + weights[2] * away
        return result

    return loss


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
            _loss_with(masked=False),
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
            _loss_with(masked=False, power=0),
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
            _loss_with(last="same", masked=False),
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
    ),
)

# 6.5 · how large is a hidden state ----------------------------------------------------------------

PLACES = ("embeddings", "after layer 2", "before the final norm", "after the final norm")


@cache
def mean_squares() -> dict[str, float]:
    """Of the shipped teacher's hidden states, at four places, in one conversation."""
    from distillkit.chat import encode
    from distillkit.dialogues import front_desk
    from distillkit.features import After
    from distillkit.inside import looking_inside
    from distillkit.models import load_model

    teacher, tokenizer = load_model("front-desk-teacher")
    [row] = front_desk(1, seed=8, split="test")
    ids = torch.tensor([encode(tokenizer, row["messages"])["input_ids"]])
    places = [After(0), After(2), After(4), After(4, normed=True)]
    with torch.no_grad(), looking_inside(teacher, places) as seen:
        teacher(ids)
    squares = [seen.hidden[place].square().mean().item() for place in places]
    return dict(zip(PLACES, squares, strict=True))


def by_size() -> list[str]:
    """The places, the smallest states first."""
    return sorted(PLACES, key=mean_squares().__getitem__)


def _moved(name: str, to: int) -> Callable[[], list[str]]:
    def order() -> list[str]:
        rest = [place for place in by_size() if place != name]
        return [*rest[:to], name, *rest[to:]]

    return order


SIZES = Exercise(
    number="6.5",
    title="How large is a hidden state?",
    kind="predict",
    minutes=5,
    difficulty=2,
    hints=(
        "A layer *adds* what it has computed to the state; nothing makes the state smaller again "
        "until the final norm, which brings the mean square of each token to 1 and then multiplies "
        "by its weights.",
        "The embeddings begin with a standard deviation of 1/√192, a mean square of 0.005, and "
        "training has let them grow a little.",
    ),
    choices=PLACES,
    oracle=by_size,
    mutants=(
        Mutant(
            "ever larger",
            list(PLACES),
            "Up to the final norm the states do grow, layer by layer. But the norm brings each "
            "token back to a mean square near 1: the last of `hidden_states` is one of the small "
            "ones.",
            "`hidden_states[-1]` taken for the last layer's output (facts of transformers' Llama)",
        ),
        Mutant(
            "the norm makes the smallest",
            _moved("after the final norm", 0),
            "The norm brings the mean square to about 1, which is small beside the layers' states, "
            "and large beside the embeddings, which begin at 1/192.",
            OFFERED,
        ),
        Mutant(
            "the greatest first",
            lambda: by_size()[::-1],
            "These are in order, the greatest first. The smallest comes first.",
            OFFERED,
        ),
        Mutant(
            "large embeddings",
            _moved("embeddings", 2),
            "The order of the other three is right. The embeddings are the smallest of all: their "
            "numbers begin at 1/√192.",
            OFFERED,
        ),
        Mutant(
            "an early peak",
            _moved("after layer 2", 3),
            "The two smallest are right. Each layer adds to what came before, so the state before "
            "the final norm is larger than that after layer 2.",
            OFFERED,
        ),
    ),
)

EXERCISES = (MEND_TRIPLE, SIZES)
