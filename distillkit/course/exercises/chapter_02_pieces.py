"""Exercises of chapter 02, the loss: temperature and entropy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises import gradients, loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 2.1 · temperature and entropy -------------------------------------------------------------------


def _entropy_cases(draw: Draw) -> list[Case]:
    shapes = [(2, 3, 5, 2.5), (3, 2, 7, 0.5), (1, 4, 6, 1.0)]
    cases = [
        Case(f"B={b}, S={s}, V={v}, T={t}", (draw.logits(b, s, v), t)) for b, s, v, t in shapes
    ]
    huge = draw.logits(2, 2, 6)
    huge[0, 1, 2] = 4000.0
    double = draw.logits(2, 3, 4, dtype=torch.float64)
    return [*cases, Case("a huge logit, T=2", (huge, 2.0)), Case("float64, T=3", (double, 3.0))]


def _entropy_oracle(logits: list[Any], temperature: float) -> list[list[float]]:
    def one(row: loops.Row) -> float:
        total = 0.0
        for log_p in loops.log_softmax(row, temperature):
            if math.exp(log_p) > 0.0:
                total -= math.exp(log_p) * log_p
        return total

    return loops.per_token(one, logits)


def _entropy(logits: Tensor, temperature: float, *, dim: int = -1) -> Tensor:
    log_p = (logits / temperature).log_softmax(dim)
    return -(log_p.exp() * log_p).sum(-1)


def _entropy_by_log_of_softmax(logits: Tensor, temperature: float) -> Tensor:
    p = (logits / temperature).softmax(-1)
    return -(p * p.log()).sum(-1)


def _entropy_mean(logits: Tensor, temperature: float) -> Tensor:
    return _entropy(logits, temperature) / logits.shape[-1]


def _uniform_at_great_temperature(entropy: Function, draw: Draw) -> bool:
    value = entropy(draw.logits(2, 3, 8), 1e5)
    return bool((value - math.log(8)).abs().max() < 1e-4)


def _entropy_clamped(logits: Tensor, temperature: float) -> Tensor:
    p = (logits / temperature).softmax(-1)
    return -(p * p.clamp_min(1e-12).log()).sum(-1)


def _entropy_of_fixed_weights(logits: Tensor, temperature: float) -> Tensor:
    log_p = (logits / temperature).log_softmax(-1)
    return -(log_p.exp().detach() * log_p).sum(-1)


def _at_one(entropy: Function) -> Function:
    return lambda logits: entropy(logits, 1.0)


def _gradient_arrives(entropy: Function, draw: Draw) -> bool:
    return gradients.arrives(_at_one(entropy), draw.logits(2, 2, 5))


def _gradient_is_finite(entropy: Function, draw: Draw) -> bool:
    return gradients.is_finite(_at_one(entropy), draw.logits(2, 2, 5) * 400)


def _gradient_is_the_slope(entropy: Function, draw: Draw) -> bool:
    return gradients.is_the_slope(_at_one(entropy), draw.logits(5, dtype=torch.float64))


def _unlikely_tokens_count(entropy: Function, draw: Draw) -> bool:
    """Against the slope by hand, -p (log p + H), which is small there; what counts is its ratio."""
    logits = draw.logits(1, 1, 5, scale=1.0)
    logits[..., 0] += 60.0
    log_p = logits.double().log_softmax(-1)
    slope = -log_p.exp() * (log_p - (log_p.exp() * log_p).sum())
    ratio = gradients.gradient(_at_one(entropy), logits).double() / slope
    return bool(((ratio - 1).abs() < 0.2)[..., 1:].all())


ENTROPY = Exercise(
    number="2.1",
    title="Temperature and entropy",
    kind="write",
    minutes=10,
    difficulty=1,
    hints=(
        "Divide the logits by T first; then take `log_softmax` over the vocabulary, dim=-1.",
        "H(p) = -Σ p log p. With log p at hand, p is its `.exp()`, and no logarithm of 0 is taken.",
    ),
    cases=_entropy_cases,
    oracle=_entropy_oracle,
    properties=(
        Property(
            "log V at a great temperature",
            _uniform_at_great_temperature,
            "At T = 100,000 every token is as likely as any other, and the entropy must be log V.",
        ),
        Property(
            "a gradient",
            _gradient_arrives,
            gradients.NONE_ARRIVES.format(whose="logits"),
        ),
        Property(
            "equals finite differences",
            _gradient_is_the_slope,
            "The values are right, and their gradient is not what finite differences give: a part "
            "of the formula is cut off from the logits.",
        ),
        Property(
            "finite gradient",
            _gradient_is_finite,
            "The values are right, but `backward()` does not give the logits a finite gradient "
            "when they are large. Stay in logarithms.",
        ),
        Property(
            "unlikely tokens",
            _unlikely_tokens_count,
            "The values are right, but the gradient of very unlikely tokens is not: something cuts "
            "their logarithm off.",
        ),
    ),
    mutants=(
        Mutant(
            "log of softmax",
            _entropy_by_log_of_softmax,
            "softmax() gives exactly 0 for an unlikely token, its log is -inf, and 0 · inf is NaN. "
            "Use log_softmax, which never leaves the logarithm.",
            "Soup#719 and pylate#239",
        ),
        Mutant(
            "mean over the vocabulary",
            _entropy_mean,
            "You took the mean over the vocabulary: too small by the factor V. An expectation is "
            "a sum that p weighs.",
            "haitongli/knowledge-distillation-pytorch#2 and #48, on the KL",
        ),
        Mutant(
            "softmax over time",
            lambda logits, temperature: _entropy(logits, temperature, dim=1),
            "Your softmax runs over the positions (dim=1), not over the vocabulary: probabilities "
            "must sum to 1 along dim=-1.",
            "torchdistill's KDLoss",
        ),
        Mutant(
            "bfloat16",
            lambda logits, temperature: _entropy(logits.bfloat16(), temperature).float(),
            "These are the numbers of a softmax in bfloat16, which keeps three digits. Compute "
            "it in float32, whatever the logits come in.",
            "Liger's chunked JSD and TRL's GKD",
        ),
        Mutant(
            "temperature forgotten",
            lambda logits, temperature: _entropy(logits, 1.0),
            "That is the entropy at T = 1, whatever the temperature: divide the logits by it "
            "before the softmax.",
            "a reader",
        ),
        Mutant(
            "in bits",
            lambda logits, temperature: _entropy(logits, temperature) / math.log(2),
            "Your entropy is in bits: too large by 1/log 2 = 1.44. The natural logarithm gives "
            "nats, which is what every loss of this course is in.",
            "a reader",
        ),
        Mutant(
            "log2 of softmax",
            lambda logits, T: _entropy_by_log_of_softmax(logits, T) / math.log(2),
            "Two things: log2 gives bits, not nats; and the logarithm of a softmax that came out "
            "as 0 is -inf, which makes NaN. `log_softmax` mends both.",
            "a reader",
        ),
        Mutant(
            "weights detached",
            _entropy_of_fixed_weights,
            "The values are right, and their gradient is 0: you detached p, but it depends on the "
            "logits as much as log p does. (In a KL p may be detached: there it is the teacher's.)",
            "a reader",
        ),
        Mutant(
            "clamped",
            _entropy_clamped,
            "The values are right. But a clamp or an epsilon inside the logarithm cuts it off "
            "where a token is very unlikely, and with it the gradient which brings the token back. "
            "With `log_softmax` nothing has to be cut off.",
            "a reader",
        ),
        Mutant(
            "the sign",
            lambda logits, temperature: -_entropy(logits, temperature),
            "The sign is wrong: log p is negative, so Σ p log p is. An entropy is never below 0.",
            "a reader",
        ),
        Mutant(
            "multiplied by T",
            lambda logits, temperature: _entropy(logits, 1 / temperature),
            "You multiply the logits by T. A high temperature is to make the teacher less sure: "
            "divide.",
            "a reader",
        ),
    ),
)

EXERCISES = (ENTROPY,)
