"""Exercise of chapter 09, quantization: outliers that move into the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 9.4 · where the outliers go ----------------------------------------------------------------------

Pair = tuple[Tensor, Tensor]
Rows = list[list[float]]


def _smooth_cases(draw: Draw) -> list[Case]:
    cases = []
    for t, o, i, alpha in ((7, 5, 6, 0.3), (9, 6, 6, 0.75), (5, 8, 4, 0.5)):
        x = draw.logits(t, i) * 2.0 ** draw.logits(i, scale=1.5)
        weight = draw.logits(o, i)
        x[1, 0], x[2, 0] = -40.0, 30.0  # the largest in size is the negative one
        weight[0, 1], weight[1, 1] = -9.0, 6.0
        cases.append(Case(f"T={t}, O={o}, I={i}, α={alpha}", (x, weight, alpha)))
    x, weight = draw.logits(6, 7), draw.logits(4, 7)
    x[:, 2], weight[:, 5] = 0.0, 0.0
    return [*cases, Case("an input and a column of zeros, α=0.6", (x, weight, 0.6))]


def _smooth_oracle(inputs_TI: Rows, weight_OI: Rows, alpha: float) -> tuple[Rows, Rows]:
    factors = []
    for i in range(len(weight_OI[0])):
        largest_x = max(abs(x[i]) for x in inputs_TI)
        largest_w = max(abs(w[i]) for w in weight_OI)
        none = largest_x == 0 or largest_w == 0
        factors.append(1.0 if none else largest_x**alpha / largest_w ** (1 - alpha))
    inputs = [[x / s for x, s in zip(row, factors, strict=True)] for row in inputs_TI]
    weight = [[w * s for w, s in zip(row, factors, strict=True)] for row in weight_OI]
    return inputs, weight


def _smoothed(
    *,
    exchanged: bool = False,
    both: bool = False,
    signed: str = "",
    mean: bool = False,
    guarded: bool = True,
    turned: str = "",
    whole: bool = False,
) -> Function:
    """Inputs and weights with one part replaced.

    exchanged: α and 1 - α. both: α on either side. signed: "x" or "w" without magnitude. mean: of
    |x|. guarded: 1 where a side is 0. turned: "weight" divided or "weight left", "inputs" left,
    "all" the other way. whole: one largest input for all features.
    """

    def smooth(x: Tensor, weight: Tensor, alpha: float) -> Pair:
        sizes = x if signed == "x" else x.abs()
        ones = weight if signed == "w" else weight.abs()
        top = sizes.mean(0) if mean else sizes.amax(0)
        top = sizes.max().expand(top.shape) if whole else top
        low = ones.amax(0)
        a, b = (1 - alpha, alpha) if exchanged else (alpha, alpha if both else 1 - alpha)
        factor = top**a / low**b
        if guarded:
            factor = torch.where((top == 0) | (low == 0), 1.0, factor)
        divided = x if turned == "inputs" else x * factor if turned == "all" else x / factor
        if turned == "weight left":
            return divided, weight
        wrong_way = turned in ("weight", "all")
        return divided, weight / factor if wrong_way else weight * factor

    return smooth


SMOOTH = Exercise(
    number="9.4",
    title="Where the outliers go",
    kind="write",
    minutes=12,
    difficulty=2,
    hints=(
        "Both largest values are of an input *feature*: `inputs_TI.abs().amax(0)` over the tokens, "
        "`weight_OI.abs().amax(0)` over the outputs. Both are (I,).",
        "`s = largest_x**alpha / largest_w ** (1 - alpha)`, and `torch.where(none, 1.0, s)` where "
        "one of the two is 0.",
        "The inputs are divided by s and the weights multiplied: `inputs_TI / s`, "
        "`weight_OI * s`. Their product is what it was.",
    ),
    cases=_smooth_cases,
    oracle=_smooth_oracle,
    mutants=(
        Mutant(
            "α exchanged",
            _smoothed(exchanged=True),
            "α and 1 - α have changed places. At α = 1 all of the difficulty moves into the "
            "weights, so α is the power of the *inputs'* largest value.",
            "a reader, at 0.5, where nobody notices",
        ),
        Mutant(
            "α twice",
            _smoothed(both=True),
            "You used α for both powers. The weights' largest value has 1 - α.",
            "a reader, at 0.5, where nobody notices",
        ),
        Mutant(
            "weights divided",
            _smoothed(turned="weight"),
            "You divide the weights as well, so the layer computes something else. What is taken "
            "out of the inputs goes *into* the weights.",
            "a reader",
        ),
        Mutant(
            "weights left",
            _smoothed(turned="weight left"),
            "The inputs are divided, and the weights are what they were, so the layer computes "
            "something else. Column i of the weights is multiplied by s_i.",
            "a reader, who returned `weight_OI`",
        ),
        Mutant(
            "one largest input",
            _smoothed(whole=True),
            "You took the largest |x| of all inputs. Each feature has its own: `amax(0)`, over the "
            "tokens.",
            "a reader, who wrote `abs().max()`",
        ),
        Mutant(
            "inputs left",
            _smoothed(turned="inputs"),
            "The weights are scaled and the inputs are not. In a model that division hides in the "
            "norm before the layer; here it is yours to do.",
            "smoothquant#79, which looks for it",
        ),
        Mutant(
            "the other way",
            _smoothed(turned="all"),
            "The layer still computes the same, but your outliers grow: you multiplied the inputs "
            "and divided the weights.",
            "a reader",
        ),
        Mutant(
            "the weights' signs",
            _smoothed(signed="w"),
            "You took the largest weight, and not the largest magnitude.",
            "OmniQuant PR#42, max for absmax",
        ),
        Mutant(
            "the inputs' signs",
            _smoothed(signed="x"),
            "You took the largest input, and not the largest magnitude: -40 is an outlier, too.",
            "a reader",
        ),
        Mutant(
            "mean",
            _smoothed(mean=True),
            "You took the mean of |x|, as AWQ does. A scale has to reach the largest value, and "
            "one token is enough to make it.",
            "a reader, who came from AWQ",
        ),
        Mutant(
            "NaN for zeros",
            _smoothed(guarded=False),
            "A feature that is always 0, or a column of zeros, gives a scale of 0 or infinity, and "
            "the matrix is lost. Such a feature gets the scale 1.",
            "neural-compressor#1427, weights that became NaN",
        ),
    ),
)

EXERCISES = (SMOOTH,)
