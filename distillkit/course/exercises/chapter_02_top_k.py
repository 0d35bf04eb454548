"""Exercises of chapter 02, the loss: a teacher's best tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises import gradients, loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function, between, kl, log_probs

# 2.8 · the best tokens and the rest --------------------------------------------------------------


def _top_cases(draw: Draw) -> list[Case]:
    cases = []
    for (b, s, v), k, t in (
        ((2, 3, 8), 3, 2.0),
        ((3, 2, 6), 2, 1.0),
        ((1, 4, 9), 5, 0.7),
        ((2, 2, 5), 1, 3.0),
    ):
        drawn = (draw.logits(b, s, v), draw.logits(b, s, v), k, t)
        cases.append(Case(f"B={b}, S={s}, V={v}, K={k}, T={t}", drawn))
    student, teacher = draw.logits(2, 2, 7), draw.logits(2, 2, 7)
    student[0, 1, 2], teacher[0, 1, 2] = 80.0, 9.0  # kept, and all that the student says
    student[1, 0, 3], teacher[1, 0, 3] = 4000.0, 9.0
    doubles = [draw.logits(2, 3, 6, dtype=torch.float64) for _ in range(2)]
    return [
        *cases,
        Case("two huge logits, K=3", (student, teacher, 3, 2.0)),
        Case("float64, K=4", (*doubles, 4, 1.5)),
    ]


def _top_oracle(
    student_logits: list[Any], teacher_logits: list[Any], k: int, temperature: float
) -> list[list[float]]:
    def one(student: loops.Row, teacher: loops.Row) -> float:
        log_p = loops.log_softmax(teacher, temperature)
        log_q = loops.log_softmax(student, temperature)
        likeliest = sorted(range(len(log_p)), key=lambda v: -log_p[v])
        buckets = []
        for row in (log_p, log_q):
            kept, rest = [row[v] for v in likeliest[:k]], [row[v] for v in likeliest[k:]]
            buckets.append([*kept, loops.log_sum(rest)])
        return loops.kl(*buckets)

    return loops.per_token(one, student_logits, teacher_logits)


def _kept(
    student: Tensor, teacher: Tensor, k: int, temperature: float, *, by_student: bool = False
) -> tuple[Tensor, ...]:
    """log p and log q of the kept tokens, and the logarithms of the two rests."""
    log_p, log_q = log_probs(student, teacher, temperature)
    at = (log_q if by_student else log_p).topk(k, -1).indices
    rests = [x.scatter(-1, at, -math.inf).logsumexp(-1) for x in (log_p, log_q)]
    return log_p.gather(-1, at), log_q.gather(-1, at), *rests


def _top_without_rest(student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
    log_p, log_q, *_ = _kept(student, teacher, k, temperature)
    return between(log_p, log_q)


def _top_teacher_renormalised(student: Tensor, teacher: Tensor, k: int, T: float) -> Tensor:
    log_p, log_q, *_ = _kept(student, teacher, k, T)
    return between(log_p - log_p.logsumexp(-1, keepdim=True), log_q)


def _top_both_renormalised(student: Tensor, teacher: Tensor, k: int, T: float) -> Tensor:
    log_p, log_q, *_ = _kept(student, teacher, k, T)
    return between(
        log_p - log_p.logsumexp(-1, keepdim=True), log_q - log_q.logsumexp(-1, keepdim=True)
    )


def _top_of_the_student(student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
    log_p, log_q, rest_p, rest_q = _kept(student, teacher, k, temperature, by_student=True)
    return between(log_p, log_q) + rest_p.exp() * (rest_p - rest_q)


def _top_of_the_student_by_subtraction(
    student: Tensor, teacher: Tensor, k: int, T: float
) -> Tensor:
    log_p, log_q, *_ = _kept(student, teacher, k, T, by_student=True)
    rest_p, rest_q = (1 - x.exp().sum(-1) for x in (log_p, log_q))
    return between(log_p, log_q) + rest_p * (rest_p.log() - rest_q.log())


def _top_by_subtraction(
    student: Tensor, teacher: Tensor, k: int, T: float, *, least: float = 0.0
) -> Tensor:
    p, q = (teacher / T).softmax(-1), (student / T).softmax(-1)
    at = p.topk(k, -1).indices
    parts = [torch.cat([x.gather(-1, at), 1 - x.gather(-1, at).sum(-1, True)], -1) for x in (p, q)]
    log_p, log_q = (part.clamp_min(least).log() for part in parts)
    return (parts[0] * (log_p - log_q)).sum(-1)


def _top_rest_clamped(student: Tensor, teacher: Tensor, k: int, T: float) -> Tensor:
    log_p, log_q, *_ = _kept(student, teacher, k, T)
    rest_p, rest_q = ((1 - x.exp().sum(-1)).clamp_min(1e-12).log() for x in (log_p, log_q))
    return between(log_p, log_q) + rest_p.exp() * (rest_p - rest_q)


def _top_scaled(student: Tensor, teacher: Tensor, k: int, T: float) -> Tensor:
    log_p, log_q, rest_p, rest_q = _kept(student, teacher, k, T)
    return T**2 * (between(log_p, log_q) + rest_p.exp() * (rest_p - rest_q))


def _top_of_each(student: Tensor, teacher: Tensor, k: int, T: float) -> Tensor:
    log_p, _, rest_p, _ = _kept(student, teacher, k, T)
    _, log_q, _, rest_q = _kept(student, teacher, k, T, by_student=True)
    return between(log_p, log_q) + rest_p.exp() * (rest_p - rest_q)


def _gradient_arrives(top: Function, draw: Draw) -> bool:
    teacher = draw.logits(1, 2, 8)
    return gradients.arrives(lambda student: top(student, teacher, 2, 1.0), draw.logits(1, 2, 8))


def _pulls_on_the_rest(top: Function, draw: Draw) -> bool:
    student, teacher = draw.logits(1, 2, 8), draw.logits(1, 2, 8)
    return bool((gradients.gradient(lambda x: top(x, teacher, 2, 1.0), student) != 0).all())


def _at_most_the_whole(top: Function, draw: Draw) -> bool:
    student, teacher = draw.logits(3, 4, 8), draw.logits(3, 4, 8)
    return bool((top(student, teacher, 3, 2.0) <= kl(student, teacher, 2.0) + 1e-5).all())


TOP_K = Exercise(
    number="2.8",
    title="The teacher's best tokens, and the rest",
    kind="write",
    minutes=20,
    difficulty=4,
    hints=(
        "Take log_softmax over the *whole* vocabulary first, for both. Then `topk` of the teacher "
        "says which K tokens are kept, and `gather` takes the same ones from the student.",
        "The rest is one more token: its probability is 1 minus the sum of those kept, for the "
        "teacher and for the student, and it adds r_p · (log r_p - log r_q).",
        "Exact where the kept tokens have nearly everything: put -inf at the kept places "
        "(`scatter`) and take `logsumexp` of what is left.",
    ),
    cases=_top_cases,
    oracle=_top_oracle,
    properties=(
        Property(
            "a gradient",
            _gradient_arrives,
            gradients.NONE_ARRIVES.format(whose="student's logits"),
        ),
        Property(
            "the rest learns",
            _pulls_on_the_rest,
            "The values are right, but the tokens that are not kept get no gradient.",
        ),
        Property(
            "at most the whole KL",
            _at_most_the_whole,
            "To put tokens together can only lose information, so the value must not exceed the KL "
            "over the whole vocabulary.",
        ),
    ),
    mutants=(
        Mutant(
            "no rest",
            _top_without_rest,
            "The rest is missing: you sum over the K tokens alone, and that can even be negative.",
            "verl#7856, where the sum was negative whenever the student gave these tokens more",
        ),
        Mutant(
            "teacher renormalised",
            _top_teacher_renormalised,
            "You made the teacher's K probabilities sum to 1. The student is then best with "
            "100 % on these K tokens, which the teacher does not.",
            "ms-swift and others; verl PR#5041",
        ),
        Mutant(
            "both renormalised",
            _top_both_renormalised,
            "You made both sum to 1 over the K tokens. Then nothing tells the student how much to "
            "leave for the others: they get no gradient at all (a mass that should have been 0.72 "
            "stayed at 0.02).",
            "slime#1068",
        ),
        Mutant(
            "the student's best tokens",
            _top_of_the_student,
            "You kept the *student's* likeliest tokens. The teacher chooses: its logits are what "
            "is on disk, and its favourites are what the student must learn, known or not.",
            "a reader",
        ),
        Mutant(
            "the student's best tokens, the rest by subtraction",
            _top_of_the_student_by_subtraction,
            "You kept the likeliest tokens of the *student*, and the choice is the teacher's. "
            "After that: 1 - Σ is exactly 0 where the kept tokens have everything, and its "
            "logarithm is -inf, so take the rest with `logsumexp`.",
            "a reader",
        ),
        Mutant(
            "the rest by subtraction",
            _top_by_subtraction,
            "All is right until the student puts everything on tokens that are kept: 1 - Σ is "
            "exactly 0 then, and its logarithm -inf (`log1p` cannot help: Σ is rounded already). "
            "Take the rest from the log-probabilities that are left, with `logsumexp`.",
            "a reader",
        ),
        Mutant(
            "clamped",
            lambda s, t, k, T: _top_by_subtraction(s, t, k, T, least=1e-12),
            "All is right until logits lie far apart: a clamp or an epsilon of 1e-12 lets no "
            "surprise be greater than 27.6 nats. Stay with `log_softmax`, and take the rest with "
            "`logsumexp`.",
            "a reader",
        ),
        Mutant(
            "the rest clamped",
            _top_rest_clamped,
            "The kept tokens are right everywhere. Of the rest, 1 - Σ is 0 where the kept tokens "
            "have everything, and a clamp or an epsilon of 1e-12 makes it finite, not right. Take "
            "it from the log-probabilities that are left, with `logsumexp`.",
            "a reader",
        ),
        Mutant(
            "times T²",
            _top_scaled,
            "That is T² times the divergence. T² belongs to the loss; here the value is asked for "
            "unscaled.",
            "a reader",
        ),
        Mutant(
            "times T², the rest by subtraction",
            lambda s, t, k, T: T**2 * _top_by_subtraction(s, t, k, T),
            "Two things. T² belongs to the loss: here the value is asked for unscaled. And 1 - Σ "
            "is exactly 0 where the kept tokens have everything: take the rest with `logsumexp`.",
            "a reader",
        ),
        Mutant(
            "each side's own best",
            _top_of_each,
            "You hold the teacher's best tokens against the *student's* best, which may be others. "
            "`topk` of the teacher chooses; `gather` takes the same tokens from the student.",
            "a reader",
        ),
    ),
)

EXERCISES = (TOP_K,)
