"""Exercises of chapter 06, inside the network: DistilBERT's cosine, of real tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit import features
from distillkit.course.exercises import gradients
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 6.2 · the cosine of real tokens ------------------------------------------------------------------


def _states(draw: Draw, b: int, s: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two hidden states that are somewhat alike, and a mask with padding."""
    teacher = draw.logits(b, s, d)
    student = 3.0 * teacher + draw.logits(b, s, d, scale=8.0)
    return student, teacher, draw.mask(b, s).long()


def _cosine_cases(draw: Draw) -> list[Case]:
    shapes = ((3, 5, 4), (4, 7, 6), (2, 6, 9))
    return [Case(f"B={b}, S={s}, D={d}", _states(draw, b, s, d)) for b, s, d in shapes]


def _cosine_oracle(
    student_BSD: list[list[list[float]]],
    teacher_BSD: list[list[list[float]]],
    mask_BS: list[list[int]],
) -> float:
    total, count = 0.0, 0
    for mine, its, real in zip(student_BSD, teacher_BSD, mask_BS, strict=True):
        for h, t, counts in zip(mine, its, real, strict=True):
            if counts:
                total += 1 - _dot(h, t) / math.sqrt(_dot(h, h) * _dot(t, t))
                count += 1
    return total / count


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _away(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def _with_padding(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return _away(student, teacher).mean()


def _divided_by_all(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return (_away(student, teacher) * mask).mean()


def _all_by_real(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return _away(student, teacher).sum() / mask.sum()


def _mean_of_means(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return ((_away(student, teacher) * mask).sum(1) / mask.sum(1)).mean()


def _over_tokens(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    real = mask.unsqueeze(-1)
    return (1 - F.cosine_similarity(student * real, teacher * real, dim=1)).mean()


def _minus(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return (_away(student, teacher)[mask.bool()] - 1).mean()


def _as_one_vector(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    real = mask.bool()
    return _away(student[real].flatten(), teacher[real].flatten())


def _itself(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return 1 - _away(student, teacher)[mask.bool()].mean()


def _summed(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return _away(student, teacher)[mask.bool()].sum()


def _without_norms(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return 1 - (student * teacher).sum(-1)[mask.bool()].mean()


def _zeros_at_padding(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    real = mask.unsqueeze(-1)
    return _away(student * real, teacher * real).mean()


def _at_padding(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return _away(student, teacher)[mask == 0].mean()


def _padding_is_free(loss: Function, draw: Draw) -> bool:
    student, teacher, mask = _states(draw, 3, 5, 4)
    clean = loss(student, teacher, mask)
    student[mask == 0], teacher[mask == 0] = torch.inf, torch.nan
    return bool(torch.isclose(clean, loss(student, teacher, mask)))


def _arrives(loss: Function, draw: Draw) -> bool:
    student, teacher, mask = _states(draw, 3, 5, 4)
    return bool(gradients.gradient(lambda h: loss(h, teacher, mask), student).any())


def _padding_has_no_gradient(loss: Function, draw: Draw) -> bool:
    student, teacher, mask = _states(draw, 3, 5, 4)
    student[mask == 0], teacher[mask == 0] = 1e30, torch.inf
    slope = gradients.gradient(lambda h: loss(h, teacher, mask), student)
    return bool(slope.isfinite().all()) and not slope[mask == 0].any()


def _teacher_untouched(loss: Function, draw: Draw) -> bool:
    student, teacher, mask = _states(draw, 3, 5, 4)
    teacher.requires_grad_()
    loss(student.requires_grad_(), teacher, mask).backward()
    return teacher.grad is None or not teacher.grad.any()


COSINE = Exercise(
    number="6.2",
    title="DistilBERT's cosine, of real tokens",
    kind="write",
    minutes=8,
    difficulty=2,
    hints=(
        "`real = mask_BS.bool()`, and `student_BSD[real]` is (N, D): the N real tokens alone.",
        "`F.cosine_similarity(a, b, dim=-1)` compares along D. One minus it, and the mean over "
        "the N tokens. `detach` the teacher's states.",
    ),
    cases=_cosine_cases,
    oracle=_cosine_oracle,
    library=(features.hidden_cosine,),
    properties=(
        Property(
            "padding does not matter",
            _padding_is_free,
            "The values are right, but what stands at padding still matters: with infinities and "
            "NaN there the loss is no longer the same. Zero times NaN is NaN: select the real "
            "tokens, do not multiply by the mask.",
        ),
        Property(
            "a gradient to the student",
            _arrives,
            gradients.NONE_ARRIVES.format(whose="student's states"),
        ),
        Property(
            "padding has no gradient",
            _padding_has_no_gradient,
            "The value is right, but the gradient is not: where a state at padding is infinite, it "
            "becomes NaN on the way back, though the value hides it. Select the real tokens "
            "*before* you compute the cosine.",
        ),
        Property(
            "no gradient to the teacher",
            _teacher_untouched,
            "The values are right, but a gradient reaches the teacher's states: `detach` them.",
        ),
    ),
    mutants=(
        Mutant(
            "padding counted",
            _with_padding,
            "You take the mean over all tokens, padding included. What a model computes at padding "
            "is nothing to learn, and it is different in every batch.",
            "NVIDIA/Model-Optimizer PR#892, where the cosine skips the mask; optipfair#34",
        ),
        Mutant(
            "divided by all",
            _divided_by_all,
            "Padding is masked, but you divide by B·S: the more padding, the smaller the loss. "
            "Divide by the number of real tokens.",
            "Fast-LLM#344",
        ),
        Mutant(
            "all tokens over the real ones",
            _all_by_real,
            "You sum over *all* tokens and divide by the number of real ones: padding counts, and "
            "makes the loss larger. Mask the numerator as well.",
            "Liger-Kernel PR#1478, the same in its cosine loss",
        ),
        Mutant(
            "mean of means",
            _mean_of_means,
            "You take the mean of each text and then the mean of these: a token of a short text "
            "weighs more. Every real token counts the same.",
            "trl#4719, mean of means over micro-batches",
        ),
        Mutant(
            "along the tokens",
            _over_tokens,
            "Your cosine runs along the tokens (`dim=1` is the default of `F.cosine_similarity`). "
            "A token's state is a vector of D numbers: compare along the last axis.",
            "facebookresearch/WMReward#11",
        ),
        Mutant(
            "minus the cosine",
            _minus,
            "This is minus the cosine: the same gradient, but -1 where the two agree. With "
            "1 - cos the loss is 0 there, and you can see how far you are.",
            "lightly PR#570, where it is the convention",
        ),
        Mutant(
            "one long vector",
            _as_one_vector,
            "You made one vector of all tokens together: then long states decide, and short ones "
            "are hardly heard. Every token has a cosine of its own.",
            "mdswyz/DMD#2, where states are flattened to fit the loss",
        ),
        Mutant(
            "the cosine itself",
            _itself,
            "This is the mean cosine: 1 where the two agree. To make it smaller would turn the "
            "student *away* from its teacher. The loss is one minus it.",
            "a reader",
        ),
        Mutant(
            "summed",
            _summed,
            "You sum over the real tokens. Divide by their number N: else long batches pull "
            "harder, and the loss's weight means something else in each.",
            "a reader",
        ),
        Mutant(
            "without the norms",
            _without_norms,
            "You take the product h · t without dividing by the two lengths: that rewards long "
            "states, and is no cosine.",
            "a reader",
        ),
        Mutant(
            "zeros at padding",
            _zeros_at_padding,
            "You set the states at padding to 0, but they are still counted: the cosine of two "
            "zeros is 0, so each adds a loss of 1. Leave these tokens out of the mean.",
            "a reader",
        ),
        Mutant(
            "padding alone",
            _at_padding,
            "You take the mean over *padding*, and leave out the real tokens: the mask is 1 at "
            "real ones.",
            "a reader: `mask == 0` is what PyTorch's `key_padding_mask` marks",
        ),
    ),
)

EXERCISES = (COSINE,)
