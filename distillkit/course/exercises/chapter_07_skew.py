"""Exercises of chapter 07, distilling generation: a KL that a small student can bear."""

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

# 7.2 · the skew KL --------------------------------------------------------------------------------


def _skew_cases(draw: Draw) -> list[Case]:
    cases = []
    for (b, s, v), skew, t in (
        ((2, 3, 5), 0.1, 1.0),
        ((3, 2, 7), 0.3, 2.0),
        ((1, 4, 6), 0.05, 3.0),
        ((2, 4, 3), 0.8, 1.5),
        ((3, 3, 4), 0.5, 0.7),
    ):
        drawn = (draw.logits(b, s, v), draw.logits(b, s, v), skew, t)
        cases.append(Case(f"B={b}, S={s}, V={v}, λ={skew}, T={t}", drawn))
    return cases


def _skew_oracle(
    student_logits: list[Any], teacher_logits: list[Any], skew: float, temperature: float
) -> list[list[float]]:
    def one(student: loops.Row, teacher: loops.Row) -> float:
        log_p = loops.log_softmax(teacher, temperature)
        log_q = loops.log_softmax(student, temperature)
        return loops.kl(log_p, loops.mixture(log_p, log_q, skew))

    return loops.per_token(one, student_logits, teacher_logits)


def _mixed(log_p: Tensor, log_q: Tensor, of_p: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(of_p), log_q + math.log(1 - of_p))


def _skewed(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    return between(log_p, _mixed(log_p, log_q, skew))


def _right_far_apart(skew_kl: Function, draw: Draw) -> bool:
    """A property and no case, so that a mistake has its name in probabilities, too."""
    student, teacher = draw.logits(2, 2, 6), draw.logits(2, 2, 6)
    student[0, 1, 2], teacher[0, 1, 3], teacher[1, 0, 3] = 4000.0, 3000.0, 3000.0
    right, yours = (f(student, teacher, 0.1, 2.0) for f in (_skewed, skew_kl))
    return bool(torch.isclose(yours.to(right), right, 1e-3, 1e-5).all())


def _wrong_way(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    return _skewed(student, teacher, 1 - skew, temperature)


def _even(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    return _skewed(student, teacher, 0.5, temperature)


def _cross_entropy(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    return -(log_p.exp() * _mixed(log_p, log_q, skew)).sum(-1)


def _in_probabilities(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return (p * (p / (skew * p + (1 - skew) * q)).log()).sum(-1)


def _of_the_student(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    return between(log_q, _mixed(log_q, log_p, skew))


def _to_the_teacher(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    return between(_mixed(log_p, log_q, skew), log_p)


def _of_logits(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    mixed = skew * teacher + (1 - skew) * student
    return between(*log_probs(mixed, teacher, temperature))


def _weighed(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    return (1 - skew) * between(*log_probs(student, teacher, temperature))


def _mean(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    return _skewed(student, teacher, skew, temperature) / student.shape[-1]


def _scaled(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    return temperature**2 * _skewed(student, teacher, skew, temperature)


def _without_temperature(
    student: Tensor, teacher: Tensor, skew: float, temperature: float
) -> Tensor:
    return _skewed(student, teacher, skew, 1.0)


def _softened_teacher(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    return _skewed(student * temperature, teacher, skew, temperature)


def _plain(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    return between(*log_probs(student, teacher, temperature))


def _student_first(student: Tensor, teacher: Tensor, skew: float, temperature: float) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    return between(log_q, _mixed(log_p, log_q, skew))


def _shares_of_logarithms(
    student: Tensor, teacher: Tensor, skew: float, temperature: float
) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    return between(log_p, torch.logaddexp(skew * log_p, (1 - skew) * log_q))


def _helped_without_gradient(
    student: Tensor, teacher: Tensor, skew: float, temperature: float
) -> Tensor:
    log_p, log_q = log_probs(student, teacher, temperature)
    log_m = _mixed(log_p, log_q, skew).detach()
    return between(log_p, log_m + log_q - log_q.detach())


def _never_above(skew_kl: Function, draw: Draw) -> bool:
    teacher, student = draw.logits(3, 4, 6) * 200, draw.logits(3, 4, 6) * 200
    return bool((skew_kl(student, teacher, 0.1, 1.0) <= -math.log(0.1) + 1e-4).all())


def _zero_at_equality(skew_kl: Function, draw: Draw) -> bool:
    logits = draw.logits(2, 3, 5)
    return bool(skew_kl(logits, logits.clone(), 0.2, 2.0).abs().max() < 1e-5)


def _slope(skew_kl: Function, draw: Draw) -> bool:
    teacher, student = draw.logits(2, 5, dtype=torch.float64)

    def of(student: Tensor, skew: float) -> Tensor:
        value: Tensor = skew_kl(student, teacher.expand_as(student).clone(), skew, 2.0)
        return value

    return all(gradients.is_the_slope(partial(of, skew=skew), student) for skew in (0.1, 0.6))


def _finite_gradient(skew_kl: Function, draw: Draw) -> bool:
    teacher, student = draw.logits(2, 2, 5) * 400, draw.logits(2, 2, 5) * 400
    return gradients.is_finite(lambda student: skew_kl(student, teacher, 0.1, 2.0), student)


SKEW = Exercise(
    number="7.2",
    title="A KL that a small student can bear",
    kind="write",
    minutes=12,
    difficulty=3,
    hints=(
        "Write the forward KL first, from `log_softmax`. Then only its second half changes: log m "
        "in the place of log q.",
        "log m without leaving the logarithm: `torch.logaddexp(log_p + math.log(skew), log_q + "
        "math.log(1 - skew))`. The small share is the *teacher's*.",
        "`(log_p.exp() * (log_p - log_m)).sum(-1)`: no mean, no T².",
    ),
    cases=_skew_cases,
    oracle=_skew_oracle,
    library=(losses.SkewKL(),),
    properties=(
        Property(
            "zero at equality",
            _zero_at_equality,
            "Where the student is the teacher, m is the teacher too, and a KL is 0.",
        ),
        Property(
            "at most -log λ",
            _never_above,
            "However far the student is off, m has the share λ of p in it, so the value is at most "
            "-log λ. Yours is above.",
        ),
        Property(
            "equals finite differences",
            _slope,
            "The values are right, and their gradient is not what finite differences give: m "
            "depends on the student's logits, through the share (1-λ) of q. Let the gradient "
            "through.",
        ),
        Property(
            "right where logits lie far apart",
            _right_far_apart,
            "The values are right until logits lie far apart: where p is 0, `0 * log(0)` is NaN. "
            "Stay in logarithms: `log_softmax`, and `torch.logaddexp` for the mixture.",
        ),
        Property(
            "finite gradient",
            _finite_gradient,
            "The values are right, but `backward()` does not give a finite gradient when logits "
            "are large. Mix with `torch.logaddexp`.",
        ),
    ),
    mutants=(
        Mutant(
            "mixture the wrong way round",
            _wrong_way,
            "The shares in your mixture are swapped: λ is the *teacher's* share. With 0.1 of the "
            "student and 0.9 of the teacher there is next to nothing left to learn.",
            "a course notebook of 2026: gradients 11 to 72 times too small",
        ),
        Mutant(
            "a cross-entropy",
            _cross_entropy,
            "That is a cross-entropy, -Σ p log m: above the KL by the teacher's entropy. Same "
            "gradient, but it is not 0 where the student is right, so nobody can read it.",
            "distillm#7, where a reader asked for the missing term",
        ),
        Mutant(
            "mixture outside the logarithm",
            _in_probabilities,
            "Right until logits lie far apart: where p is 0, `0 * log(0)` is NaN. Stay in "
            "logarithms: `log_softmax`, and `torch.logaddexp` for the mixture.",
            "Soup#719 and pylate#239",
        ),
        Mutant(
            "the skew reverse KL",
            _of_the_student,
            "That is the *reverse* of the pair, KL(q‖λq + (1-λ)p): the student helps the teacher. "
            "Asked for is KL(p‖m), with a little of the teacher in m.",
            "DistiLLM has both, under names that differ in one letter",
        ),
        Mutant(
            "from the mixture to the teacher",
            _to_the_teacher,
            "Your mixture stands first, KL(m‖p). It is what the teacher is compared *with*: "
            "KL(p‖m).",
            "a reader",
        ),
        Mutant(
            "logits mixed",
            _of_logits,
            "You mixed the logits. A softmax of mixed logits is a geometric mean, and no bound "
            "holds for it. m is a mixture of *probabilities*.",
            "a reader",
        ),
        Mutant(
            "a weight",
            _weighed,
            "That is (1-λ)·KL(p‖q): a smaller loss, as unbounded as before. λ belongs into the "
            "mixture, inside the logarithm.",
            "a reader",
        ),
        Mutant(
            "an even mixture",
            _even,
            "Your mixture is half and half, whatever λ is.",
            "a reader",
        ),
        Mutant(
            "no temperature",
            _without_temperature,
            "`T` is not used, or only in one case of many. Divide both logits by it, before the "
            "softmax.",
            "a reader",
        ),
        Mutant(
            "the teacher alone is softened",
            _softened_teacher,
            "Only the teacher's logits are divided by T. A student that is its teacher would have "
            "a KL above 0: divide both.",
            "a reader",
        ),
        Mutant(
            "the plain forward KL",
            _plain,
            "That is KL(p‖q), without a mixture: λ does nothing. Put log m in the place of log q.",
            "a reader",
        ),
        Mutant(
            "the student first",
            _student_first,
            "The student stands first, KL(q‖m). The teacher is compared with the mixture: KL(p‖m).",
            "a reader",
        ),
        Mutant(
            "shares outside the logarithm",
            _shares_of_logarithms,
            "You multiply the *logarithms* by λ and 1-λ. A factor of a probability is a summand of "
            "its logarithm: `log_p + math.log(skew)`.",
            "a reader",
        ),
        Mutant(
            "mean over the vocabulary",
            _mean,
            "You took the mean over the vocabulary: too small by the factor V.",
            "haitongli/knowledge-distillation-pytorch#2 and #48",
        ),
        Mutant(
            "T² inside",
            _scaled,
            "Your value is T² times too large. Here it is the bare divergence; the factor belongs "
            "to the loss that is made of it.",
            "a reader",
        ),
        Mutant(
            "the gradient of the forward KL",
            _helped_without_gradient,
            "The values are right. The gradient is that of the plain forward KL: the mixture is "
            "detached. The student's help must reach the gradient as well, that is what it is for.",
            "a reader",
        ),
    ),
)

EXERCISES = (SKEW,)
