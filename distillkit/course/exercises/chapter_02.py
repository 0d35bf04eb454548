"""Exercises of chapter 02, the loss: the divergence of one token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit import losses
from distillkit.course.exercises import gradients, loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import (
    Function,
    between,
    cross_entropy,
    kl,
    log_probs,
    mean_kl,
)

# 2.2 · forward KL of each token -------------------------------------------------------------------


def _kl_cases(draw: Draw) -> list[Case]:
    shapes = [(2, 3, 5, 2.5), (3, 2, 7, 0.5), (1, 4, 6, 1.0)]
    cases = [
        Case(f"B={b}, S={s}, V={v}, T={t}", (draw.logits(b, s, v), draw.logits(b, s, v), t))
        for b, s, v, t in shapes
    ]
    student, teacher = draw.logits(2, 2, 6), draw.logits(2, 2, 6)
    student[0, 1, 2], teacher[1, 0, 3] = 4000.0, 3000.0
    doubles = [draw.logits(2, 3, 4, dtype=torch.float64) for _ in range(2)]
    return [
        *cases,
        Case("two huge logits, T=2", (student, teacher, 2.0)),
        Case("float64, T=3", (*doubles, 3.0)),
    ]


def _kl_oracle(
    student_logits: list[Any], teacher_logits: list[Any], temperature: float
) -> list[list[float]]:
    def one(student: loops.Row, teacher: loops.Row) -> float:
        return loops.kl(
            loops.log_softmax(teacher, temperature), loops.log_softmax(student, temperature)
        )

    return loops.per_token(one, student_logits, teacher_logits)


def _kl_over_time(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, log_q = (teacher / temperature).softmax(1), (student / temperature).log_softmax(1)
    return (p * (p.log() - log_q)).sum(-1)


def _kl_log_of_softmax(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def _kl_of_softmax(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return F.kl_div(q, p, reduction="none").sum(-1)


def _kl_batchmean(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def _kl_in_bf16(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return kl(student.bfloat16(), teacher.bfloat16(), temperature).float()


def _zero_at_equality(kl: Function, draw: Draw) -> bool:
    logits = draw.logits(2, 3, 5)
    return bool((kl(logits, logits.clone(), 2.0).abs() < 1e-5).all())


def _kl_clamped(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return (p * (p.clamp_min(1e-12).log() - q.clamp_min(1e-12).log())).sum(-1)


def _kl_at(student_power: int, teacher_power: int) -> Function:
    """The KL with each side's logits divided by a power of T: 1 is right, 0 is T forgotten."""

    def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        log_p = (teacher / temperature**teacher_power).log_softmax(-1)
        return between(log_p, (student / temperature**student_power).log_softmax(-1))

    return softened


def _gradient_arrives(kl: Function, draw: Draw) -> bool:
    teacher = draw.logits(2, 2, 5)
    return gradients.arrives(lambda student: kl(student, teacher, 2.0), draw.logits(2, 2, 5))


def _finite_gradient(kl: Function, draw: Draw) -> bool:
    teacher = draw.logits(2, 2, 5) * 400
    student = draw.logits(2, 2, 5) * 400
    return gradients.is_finite(lambda student: kl(student, teacher, 2.0), student)


TOKEN_KL = Exercise(
    number="2.2",
    title="The forward KL of each token",
    kind="write",
    minutes=10,
    difficulty=2,
    hints=(
        "Both rows of logits are divided by T first. `F.log_softmax(…, dim=-1)` then gives log p "
        "and log q; take p from log p with `.exp()`, so that no logarithm of 0 is ever taken.",
        "KL(p‖q) = Σ p · (log p - log q), with the teacher as p, summed over the last axis alone.",
        "log_p and log_q have shape (B, S, V): `(log_p.exp() * (log_p - log_q)).sum(-1)`.",
    ),
    cases=_kl_cases,
    oracle=_kl_oracle,
    library=(losses.forward_kl,),
    properties=(
        Property(
            "zero at equality",
            _zero_at_equality,
            "With equal logits your divergence is not 0, and a KL must be.",
        ),
        Property(
            "a gradient",
            _gradient_arrives,
            gradients.NONE_ARRIVES.format(whose="student's logits"),
        ),
        Property(
            "finite gradient",
            _finite_gradient,
            "The values are right, but `backward()` does not give the student's logits a finite "
            "gradient when logits are large. Stay in logarithms.",
        ),
    ),
    mutants=(
        Mutant(
            "swapped",
            lambda student, teacher, temperature: kl(teacher, student, temperature),
            "You computed KL(q‖p), the reverse one: p, the teacher, must weigh the sum. (In "
            "`F.kl_div` the *target* is the first distribution of the formula.)",
            "two projects name the ends of β in opposite order, ms-swift PR#6334",
        ),
        Mutant(
            "cross-entropy",
            cross_entropy,
            "That is the cross-entropy H(p, q): it exceeds KL(p‖q) by the teacher's entropy. The "
            "gradient is the same, but the value is not 0 where student and teacher agree.",
            "torchtune's ForwardKLLoss, DistiLLM and MiniLLM",
        ),
        Mutant(
            "mean over the vocabulary",
            mean_kl,
            "You took the mean over the vocabulary, so your KL is too small by the factor V: an "
            "expectation is a sum, weighted by p.",
            "haitongli/knowledge-distillation-pytorch#2 and #48",
        ),
        Mutant(
            "softmax over time",
            _kl_over_time,
            "Your softmax runs over the positions (dim=1), not over the vocabulary: probabilities "
            "must sum to 1 along dim=-1.",
            "torchdistill's KDLoss",
        ),
        Mutant(
            "log of softmax",
            _kl_log_of_softmax,
            "softmax() gives exactly 0 for an unlikely token, and its log is -inf. Use "
            "log_softmax, which never leaves the logarithm.",
            "Soup#719 and pylate#239",
        ),
        Mutant(
            "softmax for log_softmax",
            _kl_of_softmax,
            "`F.kl_div` wants the student as *log*-probabilities, and yours come from softmax.",
            "microsoft/ProDA#43",
        ),
        Mutant(
            "batchmean",
            _kl_batchmean,
            "`batchmean` has summed over tokens and divided by B. Here each token keeps its own "
            "value: reduce the last axis alone.",
            "transformers#1181 and trl PR#4105",
        ),
        Mutant(
            "bfloat16",
            _kl_in_bf16,
            "These are the numbers of a softmax in bfloat16, which keeps three digits. Compute "
            "log_softmax in float32, whatever the logits come in.",
            "Liger's chunked JSD and TRL's GKD, where near convergence 28 % of the KL was lost",
        ),
        Mutant(
            "temperature forgotten",
            _kl_at(0, 0),
            "That is the KL at T = 1, whatever the temperature: divide both rows of logits by it "
            "before the softmax.",
            "a reader",
        ),
        Mutant(
            "the teacher alone softened",
            _kl_at(0, 1),
            "The teacher is softened, and the student is not: divide both rows of logits by T, or "
            "the student learns to be vague at T = 1.",
            "a reader",
        ),
        Mutant(
            "the student alone softened",
            _kl_at(1, 0),
            "The student is softened, and the teacher is not: divide both rows of logits by T.",
            "a reader",
        ),
        Mutant(
            "times T²",
            lambda student, teacher, temperature: (
                temperature**2 * kl(student, teacher, temperature)
            ),
            "That is T² · KL. The divergence itself is right; T² belongs to the loss, in 2.3, and "
            "here the value is asked for unscaled.",
            "a reader",
        ),
        Mutant(
            "clamped",
            _kl_clamped,
            "All is right until logits lie far apart: a clamp or an epsilon of 1e-12 lets no "
            "surprise be greater than 27.6 nats. With `log_softmax` nothing has to be cut off.",
            "a reader",
        ),
    ),
)

EXERCISES = (TOKEN_KL,)
