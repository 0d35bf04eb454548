"""Exercises of chapter 02, the loss: the gradient by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit import losses
from distillkit.course.exercises import loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function, kl

# 2.6 · the gradient by hand ----------------------------------------------------------------------


def _gradient_cases(draw: Draw) -> list[Case]:
    shapes = [(2, 3, 5, 2.5), (3, 2, 7, 0.5), (1, 4, 6, 1.0)]
    cases = [
        Case(f"B={b}, S={s}, V={v}, T={t}", (draw.logits(b, s, v), draw.logits(b, s, v), t))
        for b, s, v, t in shapes
    ]
    student, teacher = draw.logits(2, 2, 6), draw.logits(2, 2, 6)
    student[0, 1, 2] = 4000.0
    doubles = [draw.logits(2, 3, 4, dtype=torch.float64) for _ in range(2)]
    return [
        *cases,
        Case("a huge logit, T=2", (student, teacher, 2.0)),
        Case("float64, T=3", (*doubles, 3.0)),
    ]


def _gradient_oracle(
    student_logits: list[Any], teacher_logits: list[Any], temperature: float
) -> list[list[list[float]]]:
    def one(student: loops.Row, teacher: loops.Row) -> list[float]:
        p, q = loops.softmax(teacher, temperature), loops.softmax(student, temperature)
        return [(q_v - p_v) * temperature for p_v, q_v in zip(p, q, strict=True)]

    return loops.per_token(one, student_logits, teacher_logits)


def _difference(student: Tensor, teacher: Tensor, temperature: float, dim: int = -1) -> Tensor:
    return (student / temperature).softmax(dim) - (teacher / temperature).softmax(dim)


def _scaled(power: int, dim: int = -1) -> Function:
    def gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return _difference(student, teacher, temperature, dim) * temperature**power

    return gradient


def _sharp(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature * _difference(student, teacher, 1.0)


def _reverse_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_p, log_q = (x.div(temperature).log_softmax(-1) for x in (teacher, student))
    reverse = (log_q.exp() * (log_q - log_p)).sum(-1, keepdim=True)
    return temperature * log_q.exp() * (log_q - log_p - reverse)


def _sums_to_zero(gradient: Function, draw: Draw) -> bool:
    value = gradient(draw.logits(2, 3, 6), draw.logits(2, 3, 6), 2.0)
    return bool(value.sum(-1).abs().max() < 1e-5)


def _is_the_slope(gradient: Function, draw: Draw) -> bool:
    student, teacher = (draw.logits(1, 2, 4, dtype=torch.float64) for _ in range(2))
    step = torch.zeros_like(student)
    step[0, 1, 2] = 1e-5
    rise = 4.0 * (kl(student + step, teacher, 2.0) - kl(student - step, teacher, 2.0)).sum() / 2e-5
    return bool((gradient(student, teacher, 2.0)[0, 1, 2] - rise).abs() < 1e-5)


GRADIENT = Exercise(
    number="2.6",
    title="The gradient by hand",
    kind="write",
    minutes=15,
    difficulty=3,
    hints=(
        "KL(p‖q) = const - Σ p log q. The derivative of log q_v in a logit of the student is "
        "(1 if it is the same token, else 0) - q, over T.",
        "Collect the terms: the derivative of the bare KL in logit v is (q_v - p_v) / T.",
        "T² in front and 1/T from the softmax leave one factor T: (q - p) · T.",
    ),
    cases=_gradient_cases,
    oracle=_gradient_oracle,
    library=(losses.forward_kl.gradient,),
    properties=(
        Property(
            "sums to zero",
            _sums_to_zero,
            "Over the vocabulary your gradient does not sum to 0: to raise all logits alike "
            "changes no probability, so nothing may be gained by it.",
        ),
        Property(
            "equals finite differences",
            _is_the_slope,
            "Your gradient is not the slope that finite differences of T²·KL(p‖q) give.",
        ),
    ),
    mutants=(
        Mutant(
            "no T²",
            _scaled(-1),
            "That is the gradient of the bare KL, (q - p) / T. T² in front makes it (q - p) · T.",
            "IntelLabs/distiller#122, keras-io#869 and transformers#12299, where T² was missing",
        ),
        Mutant(
            "mean over the vocabulary",
            lambda s, t, temperature: _scaled(1)(s, t, temperature) / s.shape[-1],
            "Too small by the factor V: that is the slope of a KL taken as a mean over the "
            "vocabulary.",
            "haitongli/knowledge-distillation-pytorch#2 and #48",
        ),
        Mutant(
            "softmax over time",
            _scaled(1, dim=1),
            "Your softmax runs over the positions (dim=1), not over the vocabulary (dim=-1).",
            "torchdistill's KDLoss",
        ),
        Mutant(
            "the gradient of the reverse KL",
            _reverse_gradient,
            "That is the gradient of KL(q‖p), the reverse one. The forward KL has the teacher as "
            "weights, and they do not depend on the student: its gradient is much shorter.",
            "ms-swift PR#6334, where two projects name the directions in opposite order",
        ),
        Mutant(
            "its own teacher",
            lambda student, teacher, temperature: torch.zeros_like(student),
            "Your gradient is 0 everywhere: the student's logits stand on both sides.",
            "labml#66, after a refactor",
        ),
        Mutant(
            "the sign",
            lambda student, teacher, temperature: _scaled(1)(teacher, student, temperature),
            "The sign is wrong: (p - q) · T is the way *down*, the step that an optimizer takes. "
            "The gradient points up, away from the teacher: q - p.",
            "a reader",
        ),
        Mutant(
            "the sign and the factor",
            lambda student, teacher, temperature: _scaled(0)(teacher, student, temperature),
            "p - q has the wrong sign, since the gradient points up, away from the teacher; and "
            "the factor T is missing, which is what T² leaves of the softmax's 1/T.",
            "a reader",
        ),
        Mutant(
            "no factor at all",
            _scaled(0),
            "That is q - p, right but for a factor: the softmax at temperature T brings 1/T, the "
            "loss has T², and one T is left.",
            "a reader",
        ),
        Mutant(
            "T² without the softmax's 1/T",
            _scaled(2),
            "That is T² · (q - p): too large by the factor T. The logits are divided by T, so the "
            "chain rule brings 1/T, which takes one T away.",
            "a reader",
        ),
        Mutant(
            "softmax at T = 1",
            _sharp,
            "The form is right, (q - p) · T. But p and q are those of the loss, softened: divide "
            "both rows of logits by T before the softmax.",
            "a reader",
        ),
    ),
)

EXERCISES = (GRADIENT,)
