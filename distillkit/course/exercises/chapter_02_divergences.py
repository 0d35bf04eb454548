"""Exercises of chapter 02, the loss: between the two KLs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distillkit import losses
from distillkit.course.exercises import gradients, loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function, between, log_probs

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
        *(
            Case(f"two huge logits, β={beta}", (student, teacher, beta, 2.0))
            for beta in (0.3, 0.0, 1.0)
        ),
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


def _jsd(
    *,
    ends: bool = True,
    swapped: bool = False,
    turned: bool = False,
    mixed: Function = torch.logaddexp,
) -> Function:
    """The divergence with one part wrong; `mixed` adds two shares that come as logarithms."""

    def divergence(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
        log_p, log_q = log_probs(student, teacher, temperature)
        beta = 1 - beta if turned else beta
        if ends and beta in (0, 1):
            reverse = (beta == 1) != swapped
            return between(log_q, log_p) if reverse else between(log_p, log_q)
        share_p = log_p + (math.log(beta) if beta else -math.inf)
        share_q = log_q + (math.log(1 - beta) if beta < 1 else -math.inf)
        log_m = mixed(share_p, share_q)
        return beta * between(log_p, log_m) + (1 - beta) * between(log_q, log_m)

    return divergence


def _mixed_wrong_way(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    if beta in (0, 1):
        return between(log_q, log_p) if beta else between(log_p, log_q)
    log_m = torch.logaddexp(log_p + math.log(1 - beta), log_q + math.log(beta))
    return beta * between(log_p, log_m) + (1 - beta) * between(log_q, log_m)


def _in_probabilities(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    log_m = (beta * p + (1 - beta) * q).log()
    from_p, from_q = (p * (p.log() - log_m)).sum(-1), (q * (q.log() - log_m)).sum(-1)
    return beta * from_p + (1 - beta) * from_q


def _weighed(
    share: float | None = None, *, swapped: bool = False, ends: bool = True, apart: bool = False
) -> Function:
    """The formula of the middle with other weights, and the right branches at the ends.

    share: p's share of the mixture, where that is not β; swapped: the weights of the two KLs;
    apart: the KLs from p to q and back instead of those to the mixture.
    """

    def divergence(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
        log_p, log_q = log_probs(student, teacher, temperature)
        if ends and beta in (0, 1):
            return between(log_q, log_p) if beta else between(log_p, log_q)
        of_p = beta if share is None else share
        if apart:
            to_p, to_q = log_q, log_p
        else:
            to_p = to_q = torch.logaddexp(log_p + math.log(of_p), log_q + math.log(1 - of_p))
        weight = 1 - beta if swapped else beta
        return weight * between(log_p, to_p) + (1 - weight) * between(log_q, to_q)

    return divergence


def _clamped(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    log_p, log_q = (
        x.exp().clamp_min(1e-12).log() for x in log_probs(student, teacher, temperature)
    )
    if beta in (0, 1):
        return between(log_q, log_p) if beta else between(log_p, log_q)
    log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * between(log_p, log_m) + (1 - beta) * between(log_q, log_m)


def _added_as_numbers(share_p: Tensor, share_q: Tensor) -> Tensor:
    return (share_p.exp() + share_q.exp()).log()


def _symmetric_at_half(jsd: Function, draw: Draw) -> bool:
    one, other = draw.logits(2, 3, 5), draw.logits(2, 3, 5)
    return bool(torch.allclose(jsd(one, other, 0.5, 2.0), jsd(other, one, 0.5, 2.0), atol=1e-5))


def _gradient_arrives(jsd: Function, draw: Draw) -> bool:
    teacher = draw.logits(2, 2, 5)
    return gradients.arrives(lambda student: jsd(student, teacher, 0.3, 2.0), draw.logits(2, 2, 5))


def _gradient_is_the_slope(jsd: Function, draw: Draw) -> bool:
    teacher, student = draw.logits(2, 5, dtype=torch.float64)

    def of(student: Tensor, beta: float) -> Tensor:
        value: Tensor = jsd(student, teacher.expand_as(student).clone(), beta, 2.0)
        return value

    at_each = (partial(of, beta=beta) for beta in (0.0, 0.3, 1.0))
    return all(gradients.is_the_slope(function, student) for function in at_each)


def _finite_gradient(jsd: Function, draw: Draw) -> bool:
    teacher = draw.logits(2, 2, 5) * 400
    student = draw.logits(2, 2, 5) * 400
    return gradients.is_finite(lambda student: jsd(student, teacher, 0.3, 2.0), student)


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
            "a gradient",
            _gradient_arrives,
            gradients.NONE_ARRIVES.format(whose="student's logits"),
        ),
        Property(
            "equals finite differences",
            _gradient_is_the_slope,
            "The values are right, and their gradient is not what finite differences give: a part "
            "of the formula is cut off from the student's logits. Both q and m depend on them.",
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
        Mutant(
            "ends swapped",
            _jsd(swapped=True),
            "Between the ends you are right, and the ends are swapped: β = 0 is the forward "
            "KL(p‖q), with the teacher as weights, and β = 1 the reverse KL(q‖p).",
            "a reader",
        ),
        Mutant(
            "the bare formula",
            _jsd(ends=False, mixed=_added_as_numbers),
            "That is the formula of the middle for every β. Two things are missing: at β = 0 and "
            "β = 1 it gives 0, so the ends need branches of their own; and where p and q are both "
            "0 it gives NaN, so mix with `torch.logaddexp`.",
            "a reader",
        ),
        Mutant(
            "the bare formula in probabilities",
            _in_probabilities,
            "That is the formula of the middle for every β, from softmax. At β = 0 and β = 1 it "
            "gives 0, so the ends need branches of their own; and where p or q comes out as 0 it "
            "gives NaN, so stay with `log_softmax` and mix with `torch.logaddexp`.",
            "a reader",
        ),
        Mutant(
            "an even mixture",
            _weighed(0.5),
            "Your mixture is always half and half. In this family β is the share of p in m as "
            "well: m = β·p + (1-β)·q.",
            "a reader",
        ),
        Mutant(
            "an even mixture, no ends",
            _weighed(0.5, ends=False),
            "Your mixture is always half and half; in this family β is the share of p in m as "
            "well. And at β = 0 and β = 1 the two KLs go from one side to the other: branches of "
            "their own.",
            "a reader",
        ),
        Mutant(
            "weights swapped",
            _weighed(swapped=True),
            "The mixture and the ends are right; the weights of the two KLs are swapped. "
            "KL(p‖m) has the weight β, and KL(q‖m) the weight 1 - β.",
            "a reader",
        ),
        Mutant(
            "no mixture",
            _weighed(apart=True),
            "That is β·KL(p‖q) + (1-β)·KL(q‖p), each from one side to the other. Here both KLs go "
            "to the mixture m, between the two.",
            "a reader",
        ),
        Mutant(
            "no mixture, no ends",
            _weighed(apart=True, ends=False),
            "That is β·KL(p‖q) + (1-β)·KL(q‖p). Here both KLs go to the mixture m, between the "
            "two. And your ends are swapped: β = 0 is KL(p‖q), β = 1 is KL(q‖p).",
            "a reader",
        ),
        Mutant(
            "clamped",
            _clamped,
            "All is right until logits lie far apart, which shows at the ends: a clamp or an "
            "epsilon of 1e-12 lets no surprise be greater than 27.6 nats. With `log_softmax` and "
            "`torch.logaddexp` nothing has to be cut off.",
            "a reader",
        ),
    ),
)

EXERCISES = (JSD,)
