"""Exercises of chapter 06, inside the network: relations among tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillkit import features
from distillkit.course.exercises import gradients, loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function, between

# 6.3 · MiniLMv2's relations -----------------------------------------------------------------------

Arguments = tuple[Tensor, Tensor, Tensor, int]


def _arguments(draw: Draw, b: int, s: int, widths: tuple[int, int], heads: int) -> Arguments:
    """States of student and teacher, and what is visible: real tokens, in one case no later ones.

    Padding sees nothing.
    """
    real = draw.mask(b, s)
    visible = real.unsqueeze(1) & real.unsqueeze(2)
    visible = visible.tril() if heads == 2 else visible
    student, teacher = (draw.logits(b, s, width, scale=1.0) for width in widths)
    return student, teacher, visible, heads


def _relation_cases(draw: Draw) -> list[Case]:
    shapes = ((3, 5, (6, 12), 3), (4, 6, (8, 4), 2), (2, 7, (12, 20), 4))
    cases = [
        Case(f"B={b}, S={s}, X={w[0]}, Y={w[1]}, {a} heads", _arguments(draw, b, s, w, a))
        for b, s, w, a in shapes
    ]
    return [*cases, Case("large states, tokens that do not see themselves", _two_sides(draw))]


def _two_sides(draw: Draw) -> Arguments:
    """Tokens that see the other side alone, 16 numbers away in every direction.

    All scores that count are far below 0, and many relations so small that only their logarithm
    is left.
    """
    student, teacher, visible, heads = _arguments(draw, 2, 8, (6, 15), 3)
    side = torch.arange(8) % 2
    away = 16.0 * (2 * side - 1).to(student.dtype).unsqueeze(-1)
    return student + away, teacher + away, visible & (side != side.unsqueeze(-1)), heads


def _relation_oracle(
    student_BSX: list[list[list[float]]],
    teacher_BSY: list[list[list[float]]],
    visible_BSS: list[list[list[bool]]],
    heads: int,
) -> list[list[float]]:
    losses = []
    for mine, its, visible in zip(student_BSX, teacher_BSY, visible_BSS, strict=True):
        row = []
        for i in range(len(mine)):
            seen = [j for j in range(len(mine)) if visible[i][j]]
            total = 0.0
            for head in range(heads):
                if seen:
                    p, q = (_relations(states, i, seen, head, heads) for states in (its, mine))
                    total += loops.kl(p, q)
            row.append(total / heads)
        losses.append(row)
    return losses


def _relations(
    states: list[list[float]], i: int, seen: list[int], head: int, heads: int
) -> list[float]:
    """log R of token i to the tokens that it sees, in one relation head."""
    d = len(states[0]) // heads
    cut = [state[head * d : (head + 1) * d] for state in states]
    scores = []
    for j in seen:
        scores.append(sum(x * y for x, y in zip(cut[i], cut[j], strict=True)) / math.sqrt(d))
    return loops.log_softmax(scores)


def _loss_with(
    *,
    masked: str = "before",
    whole: bool = False,
    split: bool = True,
    axis: int = -1,
    swapped: bool = False,
    mean: bool = False,
    nothing: float = -1e9,
    power: float = 0.5,
    total: bool = False,
    small: float | None = None,
) -> Function:
    """The loss with one part replaced.

    masked: what is not visible is hidden before the softmax, after it, times 0, or never. whole:
    divided by the root of the whole width. split: heads are cut out of each state. axis: of the
    softmax. mean: over the tokens, for the sum. nothing: the score of what is not visible. power:
    of d in the divisor. total: the sum over the heads. small: added before the logarithm.
    """

    def log_relations(states: Tensor, visible: Tensor, heads: int) -> Tensor:
        b, s, width = states.shape
        parts = states.unflatten(-1, (heads, -1)).transpose(1, 2)
        if not split:
            parts = states.reshape(b, heads, s, -1)
        scores = parts @ parts.mT / (width if whole else width // heads) ** power
        hidden = ~visible.unsqueeze(1)
        if masked == "times":
            return (scores * ~hidden).log_softmax(axis)
        if masked != "before":
            return scores.log_softmax(axis)
        filled = scores.masked_fill(hidden, nothing).log_softmax(axis)
        again = small is None and not math.isinf(nothing)
        return filled.masked_fill(hidden, nothing) if again else filled

    def loss(student: Tensor, teacher: Tensor, visible: Tensor, heads: int) -> Tensor:
        log_p, log_q = (log_relations(x, visible, heads) for x in (teacher.detach(), student))
        if swapped:
            log_p, log_q = log_q, log_p
        if masked == "after":
            kl = (log_p.exp() * (log_p - log_q) * visible.unsqueeze(1)).sum(-1)
        elif small is None:
            kl = between(log_p, log_q)
        else:
            p, q = log_p.exp(), log_q.exp()
            kl = (p * ((p + small).log() - (q + small).log() if small else (p / q).log())).sum(-1)
        result: Tensor = kl.sum(1) if total else kl.mean(1)
        result = result / (visible.shape[-1] if mean else 1)
        return result

    return loss


def _arrives(loss: Function, draw: Draw) -> bool:
    student, teacher, visible, heads = _arguments(draw, 3, 5, (6, 12), 3)
    return bool(gradients.gradient(lambda x: loss(x, teacher, visible, heads), student).any())


def _is_finite(loss: Function, draw: Draw) -> bool:
    student, teacher, visible, heads = _arguments(draw, 3, 5, (6, 12), 3)
    return gradients.is_finite(lambda states: loss(states, teacher, visible, heads), student)


def _teacher_untouched(loss: Function, draw: Draw) -> bool:
    student, teacher, visible, heads = _arguments(draw, 3, 5, (6, 12), 3)
    teacher.requires_grad_()
    loss(student.requires_grad_(), teacher, visible, heads).sum().backward()
    return teacher.grad is None or not teacher.grad.any()


def _equal_is_zero(loss: Function, draw: Draw) -> bool:
    student, _, visible, heads = _arguments(draw, 3, 5, (6, 12), 3)
    values = loss(student, student.clone(), visible, heads)
    return torch.allclose(values, torch.zeros_like(values), atol=1e-5)


RELATIONS = Exercise(
    number="6.3",
    title="Relations among tokens",
    kind="write",
    minutes=12,
    difficulty=3,
    hints=(
        "Cut each state into heads: `states.unflatten(-1, (heads, -1)).transpose(1, 2)` is "
        "(B, A, S, d). Its product with its own transpose, over √d, has the scores of every pair "
        "of tokens, (B, A, S, S).",
        "Hide what is not visible *before* the softmax: `scores.masked_fill(~visible, -1e9)`, "
        "with `visible_BSS.unsqueeze(1)` for all heads.",
        "A token that sees nothing must give 0, and no NaN: after the `log_softmax`, fill what is "
        "hidden with -1e9 again; exp(-1e9) is 0, and the difference of the two is 0 as well.",
        "KL: the sum over j of `p * (log_p - log_q)`, p the teacher's relations, detached. Then "
        "the mean over the heads.",
    ),
    cases=_relation_cases,
    oracle=_relation_oracle,
    library=(features.relation_kl,),
    properties=(
        Property(
            "zero at equality",
            _equal_is_zero,
            "Where student and teacher have the same states, the loss must be 0.",
        ),
        Property(
            "a gradient to the student",
            _arrives,
            gradients.NONE_ARRIVES.format(whose="student's states"),
        ),
        Property(
            "a finite gradient",
            _is_finite,
            "The values are right, but the gradient is NaN, because of tokens "
            "that see nothing: their row is -∞ minus -∞ on the way back, or the logarithm of "
            "0. Use a large negative number for -∞, and `log_softmax` for the logarithm of a "
            "softmax.",
        ),
        Property(
            "no gradient to the teacher",
            _teacher_untouched,
            "The values are right, but a gradient reaches the teacher's states: `detach` them.",
        ),
    ),
    mutants=(
        Mutant(
            "the root of the whole width",
            _loss_with(whole=True),
            "You divide by the root of the whole width. A relation head has d = X / heads numbers, "
            "and d belongs under the root: yours are too flat.",
            "karpathy/ng-video-lecture PR#6 and vit-pytorch#65",
        ),
        Mutant(
            "everything visible",
            _loss_with(masked="never"),
            "You compare relations to all tokens, also to those that are not visible: padding, and "
            "later ones. Hide them before the softmax.",
            "microsoft/unilm#198 and #354, where it is asked whether the mask belongs here",
        ),
        Mutant(
            "masked after the softmax",
            _loss_with(masked="after"),
            "You mask after the softmax, so a row no longer adds up to 1: part of its probability "
            "went to tokens that are not visible. Mask the scores.",
            "huggingface/pytorch-image-models PR#2236",
        ),
        Mutant(
            "heads not transposed",
            _loss_with(split=False),
            "Your reshape to (B, heads, S, d) mixes tokens: a head gets pieces of several of them. "
            "First cut the last axis, (B, S, heads, d), then exchange the two axes.",
            "reczoo/FuxiCTR#30; asked about MiniLMv2 in microsoft/unilm#354",
        ),
        Mutant(
            "softmax along the other axis",
            _loss_with(axis=-2),
            "Your softmax runs along i, the tokens that look. Each token i has a distribution over "
            "the tokens j that it sees: the last axis.",
            "labml annotated_deep_learning_paper_implementations#146",
        ),
        Mutant(
            "reverse KL",
            _loss_with(swapped=True),
            "Teacher and student have changed places: yours is KL of the student's relations to "
            "the teacher's. Here it is KL(R of the teacher ‖ R of the student).",
            "paiml/aprender PR#2153",
        ),
        Mutant(
            "mean over the tokens",
            _loss_with(mean=True),
            "You take the *mean* over the tokens j: S times too small, and the smaller the longer "
            "the text. A KL sums over what its distribution is over.",
            "haitongli/knowledge-distillation-pytorch#2 and #48, there over the vocabulary",
        ),
        Mutant(
            "minus infinity",
            _loss_with(nothing=-math.inf),
            "Tokens that see something are right where they see everything; elsewhere you get NaN: "
            "-∞ minus -∞, or 0 times ∞. A large negative number such as -1e9 does what -∞ should.",
            "LMOps#38, a row with nothing to learn; chiendb97/oasr PR#101, a row that sees nothing",
        ),
        Mutant(
            "no root of d",
            _loss_with(power=0.0),
            "You do not divide by √d: the wider a head, the sharper its relations, and student "
            "and teacher differ in width.",
            "karpathy/ng-video-lecture PR#6, where the scale is that of another width",
        ),
        Mutant(
            "d for its root",
            _loss_with(power=1.0),
            "You divide by d. A product of d numbers grows with the *root* of d: divide by √d.",
            "a reader",
        ),
        Mutant(
            "the sum over the heads",
            _loss_with(total=True),
            "You add the heads up. The loss is their mean, so that it does not depend on how many "
            "you cut.",
            "a reader",
        ),
        Mutant(
            "scores times the mask",
            _loss_with(masked="times"),
            "You multiply the scores by what is visible: a hidden token then has the score 0, and "
            "not none. exp(0) is 1; fill hidden scores with a large negative number.",
            "a reader",
        ),
        Mutant(
            "a small number in the logarithm",
            _loss_with(small=1e-8),
            "Small states are right, large ones are not: you add 1e-8 before the logarithm, so no "
            "log R is below -18. `log_softmax` needs no such help.",
            "a reader",
        ),
        Mutant(
            "the logarithm of a quotient",
            _loss_with(small=0.0),
            "You get NaN where something is hidden: both relations are 0 there, and 0 / 0 has no "
            "logarithm. Take `log_softmax` of both and subtract.",
            "a reader",
        ),
    ),
)

EXERCISES = (RELATIONS,)
