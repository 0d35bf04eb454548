"""Exercises of chapter 02, the loss: between the two KLs, and a teacher's best tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distillkit import losses
from distillkit.course.exercises import loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function, kl, log_probs

# 2.7 · the generalised Jensen-Shannon divergence -------------------------------------------------


def _jsd_cases(draw: Draw) -> list[Case]:
    cases = []
    for (b, s, v), beta, t in (
        ((2, 3, 5), 0.5, 2.0),
        ((3, 2, 7), 0.1, 1.0),
        ((1, 4, 6), 0.8, 3.0),
        ((2, 2, 4), 0.0, 2.0),
        ((2, 4, 3), 1.0, 2.0),
    ):
        drawn = (draw.logits(b, s, v), draw.logits(b, s, v), beta, t)
        cases.append(Case(f"B={b}, S={s}, V={v}, β={beta}, T={t}", drawn))
    student, teacher = draw.logits(2, 2, 6), draw.logits(2, 2, 6)
    student[0, 1, 2], teacher[0, 1, 3], teacher[1, 0, 3] = 4000.0, 3000.0, 3000.0
    doubles = [draw.logits(2, 3, 4, dtype=torch.float64) for _ in range(2)]
    return [
        *cases,
        Case("two huge logits, β=0.3", (student, teacher, 0.3, 2.0)),
        Case("float64, β=0.7", (*doubles, 0.7, 1.5)),
    ]


def _jsd_oracle(
    student_logits: list[Any], teacher_logits: list[Any], beta: float, temperature: float
) -> list[list[float]]:
    def one(student: loops.Row, teacher: loops.Row) -> float:
        log_p = loops.log_softmax(teacher, temperature)
        log_q = loops.log_softmax(student, temperature)
        if beta in (0.0, 1.0):
            return loops.kl(log_p, log_q) if beta == 0.0 else loops.kl(log_q, log_p)
        log_m = loops.mixture(log_p, log_q, beta)
        return beta * loops.kl(log_p, log_m) + (1 - beta) * loops.kl(log_q, log_m)

    return loops.per_token(one, student_logits, teacher_logits)


def _between(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _jsd(*, ends: bool = True, turned: bool = False, mixed: Function = torch.logaddexp) -> Function:
    """The divergence with one part wrong; `mixed` adds two shares that come as logarithms."""

    def divergence(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
        log_p, log_q = log_probs(student, teacher, temperature)
        beta = 1 - beta if turned else beta
        if ends and beta in (0, 1):
            return _between(log_q, log_p) if beta else _between(log_p, log_q)
        share_p = log_p + (math.log(beta) if beta else -math.inf)
        share_q = log_q + (math.log(1 - beta) if beta < 1 else -math.inf)
        log_m = mixed(share_p, share_q)
        return beta * _between(log_p, log_m) + (1 - beta) * _between(log_q, log_m)

    return divergence


def _mixed_wrong_way(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    if beta in (0, 1):
        return _between(log_q, log_p) if beta else _between(log_p, log_q)
    log_m = torch.logaddexp(log_p + math.log(1 - beta), log_q + math.log(beta))
    return beta * _between(log_p, log_m) + (1 - beta) * _between(log_q, log_m)


def _added_as_numbers(share_p: Tensor, share_q: Tensor) -> Tensor:
    return (share_p.exp() + share_q.exp()).log()


def _symmetric_at_half(jsd: Function, draw: Draw) -> bool:
    one, other = draw.logits(2, 3, 5), draw.logits(2, 3, 5)
    return bool(torch.allclose(jsd(one, other, 0.5, 2.0), jsd(other, one, 0.5, 2.0), atol=1e-5))


def _finite_gradient(jsd: Function, draw: Draw) -> bool:
    student = (draw.logits(2, 2, 5) * 400).requires_grad_()
    jsd(student, draw.logits(2, 2, 5) * 400, 0.3, 2.0).sum().backward()
    return student.grad is not None and bool(student.grad.isfinite().all())


JSD = Exercise(
    number="2.7",
    title="Between the two KLs",
    kind="write",
    minutes=20,
    difficulty=4,
    hints=(
        "Begin with the ends: `if beta == 0` return KL(p‖q), `if beta == 1` return KL(q‖p). "
        "Between them there is a mixture m.",
        "log m without leaving the logarithm: `torch.logaddexp(log_p + log(beta), log_q + log(1 - "
        "beta))`, with `math.log`.",
        "D = β KL(p‖m) + (1-β) KL(q‖m): the weight of p in m is the weight of its KL.",
    ),
    cases=_jsd_cases,
    oracle=_jsd_oracle,
    library=(losses.JensenShannon(),),
    properties=(
        Property(
            "symmetric at β = ½",
            _symmetric_at_half,
            "At β = ½ student and teacher may change places, and your value must not change.",
        ),
        Property(
            "finite gradient",
            _finite_gradient,
            "The values are right, but `backward()` does not give the student's logits a finite "
            "gradient when logits are large. Mix with `torch.logaddexp`.",
        ),
    ),
    mutants=(
        Mutant(
            "no branches at the ends",
            _jsd(ends=False),
            "At β = 0 and β = 1 the formula of the middle gives 0 (or NaN), whatever the student "
            "says. The ends are branches of their own: the two KLs.",
            "TRL special-cases the ends; β = 0.001 gave 0.003 where the KL is 3.19",
        ),
        Mutant(
            "β turned round",
            _jsd(turned=True),
            "Your β runs the other way: here 0 is the forward KL and 1 the reverse one, so β is "
            "the teacher's weight in the mixture.",
            "ms-swift PR#6334, where two projects name β in opposite order",
        ),
        Mutant(
            "mixture the wrong way round",
            _mixed_wrong_way,
            "The shares in your mixture are swapped: m = β·p + (1-β)·q, with the teacher as p.",
            "a course notebook of 2026, on the skew KL: gradients 11 to 72 times too small",
        ),
        Mutant(
            "mixture outside the logarithm",
            _jsd(mixed=_added_as_numbers),
            "`log(βp + (1-β)q)` is log(0) where both are next to nothing, and 0 · inf is NaN. Use "
            "`torch.logaddexp`.",
            "Soup#719 and pylate#239",
        ),
        Mutant(
            "mean over the vocabulary",
            lambda s, t, beta, T: _jsd()(s, t, beta, T) / s.shape[-1],
            "You took the mean over the vocabulary: too small by the factor V.",
            "haitongli/knowledge-distillation-pytorch#2 and #48, on the KL",
        ),
    ),
)

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
    student[0, 1, 2] = 80.0
    doubles = [draw.logits(2, 3, 6, dtype=torch.float64) for _ in range(2)]
    return [
        *cases,
        Case("a huge logit, K=3", (student, teacher, 3, 2.0)),
        Case("float64, K=4", (*doubles, 4, 1.5)),
    ]


def _top_oracle(
    student_logits: list[Any], teacher_logits: list[Any], k: int, temperature: float
) -> list[list[float]]:
    def one(student: loops.Row, teacher: loops.Row) -> float:
        p, log_p = loops.softmax(teacher, temperature), loops.log_softmax(teacher, temperature)
        log_q = loops.log_softmax(student, temperature)
        kept = sorted(range(len(p)), key=lambda v: -p[v])[:k]
        total, rest_p, rest_q = 0.0, 0.0, 0.0
        for v in range(len(p)):
            if v in kept:
                total += p[v] * (log_p[v] - log_q[v])
            else:
                rest_p += p[v]
                rest_q += math.exp(log_q[v])
        return total + rest_p * math.log(rest_p / rest_q)

    return loops.per_token(one, student_logits, teacher_logits)


def _kept(student: Tensor, teacher: Tensor, k: int, temperature: float) -> tuple[Tensor, ...]:
    """log p and log q of the kept tokens, and the logarithms of the two rests."""
    log_p, log_q = log_probs(student, teacher, temperature)
    at = log_p.topk(k, -1).indices
    rests = [x.scatter(-1, at, -math.inf).logsumexp(-1) for x in (log_p, log_q)]
    return log_p.gather(-1, at), log_q.gather(-1, at), *rests


def _top_without_rest(student: Tensor, teacher: Tensor, k: int, temperature: float) -> Tensor:
    log_p, log_q, *_ = _kept(student, teacher, k, temperature)
    return _between(log_p, log_q)


def _top_teacher_renormalised(student: Tensor, teacher: Tensor, k: int, T: float) -> Tensor:
    log_p, log_q, *_ = _kept(student, teacher, k, T)
    return _between(log_p - log_p.logsumexp(-1, keepdim=True), log_q)


def _top_both_renormalised(student: Tensor, teacher: Tensor, k: int, T: float) -> Tensor:
    log_p, log_q, *_ = _kept(student, teacher, k, T)
    return _between(
        log_p - log_p.logsumexp(-1, keepdim=True), log_q - log_q.logsumexp(-1, keepdim=True)
    )


def _pulls_on_the_rest(top: Function, draw: Draw) -> bool:
    student, teacher = draw.logits(1, 2, 8), draw.logits(1, 2, 8)
    top(student.requires_grad_(), teacher, 2, 1.0).sum().backward()
    return student.grad is not None and bool((student.grad != 0).all())


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
    ),
)

EXERCISES = (JSD, TOP_K)
