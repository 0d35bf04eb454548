"""Exercise of chapter 09, quantization: a scale and a zero point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.rounding import units

# 9.1 · a scale and a zero point -------------------------------------------------------------------

Quantized = tuple[Tensor, float, float]


def _affine_cases(draw: Draw) -> list[Case]:
    """Ranges around zero, above it and below it; values of which some lie outside."""
    cases = []
    for bits, zero, count in ((8, 77.3, 24), (4, 5.7, 15), (6, None, 20), (8, math.inf, 18)):
        most = 2**bits - 1
        scale = 0.01 + float(draw.probabilities(4, dtype=torch.float64)[0]) / 10
        if zero is None:  # all of it above zero
            low, high, first = 0.3 * scale * most, scale * most, 0
        elif math.isinf(zero):  # all of it below zero
            low, high, first = -scale * most, -0.4 * scale * most, -most
        else:
            low, high, first = -zero * scale, (most - zero) * scale, -int(zero)
        x = scale * units(draw, count, least=first + 1, most=first + most - 1)
        x[0], x[1] = scale * (first + most + 9.2), scale * (first - 8.7)
        name = f"{bits} bits, a range from {low:.3f} to {high:.3f}"
        cases.append(Case(name, (x.to(draw.dtype), low, high, bits)))
    return cases


def _affine_oracle(
    x_N: list[float], low: float, high: float, bits: int
) -> tuple[list[int], float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    last = 2**bits - 1
    scale = (high - low) / last
    zero_point = round(-low / scale)
    codes = []
    for x in x_N:
        code = round(x / scale) + zero_point
        codes.append(0 if code < 0 else last if code > last else code)
    return codes, scale, zero_point


def _affine(
    *,
    levels: int = -1,
    widened: str = "zero",
    rounded: Function = torch.round,
    whole: Function = round,
    sign: int = 1,
    limit: str = "clamp",
    signed: bool = False,
    measured: bool = False,
    shifted: bool = False,
    late: bool = False,
    given: str = "codes",
) -> Function:
    """The codes with one part replaced.

    levels: 2^b plus this many steps. widened: the range takes in "zero", or not ("no"), or not
    and the zero point is clamped ("clamp"). whole: what makes the zero point so; sign: of it.
    limit: "wrap" for what a cast to uint8 does, "int8" for a clamp and a cast to that. measured:
    the range is x's own. shifted: x - low is rounded. late: the zero point is added before
    rounding. given: back, "codes", "values", or scale and zero point "exchanged" or of the other
    "sign".
    """

    def quantize(x: Tensor, low: float, high: float, bits: int) -> Quantized:
        low, high = (x.min().item(), x.max().item()) if measured else (low, high)
        if widened == "zero":
            low, high = min(low, 0.0), max(high, 0.0)
        last = 2**bits - 1
        scale = (high - low) / (2**bits + levels)
        zero = whole(-sign * low / scale)
        zero = min(max(zero, 0), last) if widened == "clamp" else zero
        codes = rounded((x - low) / scale) if shifted else rounded(x / scale) + zero
        codes = rounded(x / scale + zero) if late else codes
        codes = codes % 256 if limit == "wrap" else codes
        codes = codes.clamp(0, last) if limit in ("clamp", "int8") else codes
        codes = (codes + 128) % 256 - 128 if limit == "int8" else codes
        if given in ("exchanged", "sign"):
            return (codes, zero, scale) if given == "exchanged" else (codes, scale, -zero)
        half = 2 ** (bits - 1) if signed else 0
        return (codes - zero) * scale if given == "values" else codes - half, scale, zero - half

    return quantize


def _symmetric(x: Tensor, low: float, high: float, bits: int) -> Quantized:
    half = 2 ** (bits - 1)
    scale = max(abs(low), abs(high)) / (half - 1)
    return ((x / scale).round() + half).clamp(0, 2 * half - 1), scale, half


AFFINE = Exercise(
    number="9.1",
    title="A scale and a zero point",
    kind="write",
    minutes=12,
    difficulty=2,
    hints=(
        "Widen the range first: `low, high = min(low, 0.0), max(high, 0.0)`. Then 2^b codes have "
        "2^b - 1 steps between them.",
        "`scale = (high - low) / (2**bits - 1)` and `zero_point = round(-low / scale)`: the code "
        "that stands for 0.0.",
        "`codes = (x_N / scale).round() + zero_point`, clamped to 0 … 2^b - 1: what lies outside "
        "of the range gets the last code on its side.",
    ),
    cases=_affine_cases,
    oracle=_affine_oracle,
    mutants=(
        Mutant(
            "as many steps as codes",
            _affine(levels=0),
            "You divide the range by 2^b. There are 2^b codes, and one step fewer between them: "
            "255 for 8 bits.",
            "onnxruntime PR#14640, where 127 and 128 intervals are weighed",
        ),
        Mutant(
            "a range without zero",
            _affine(widened="no"),
            "Your range has no zero in it where all values are on one side. 0.0 must have a code "
            "of its own, since padding and ReLU give it exactly: widen the range to take it in.",
            "burn PR#2055 and pytorch#89619, a zero point that was no code",
        ),
        Mutant(
            "a clamped zero point",
            _affine(widened="clamp"),
            "You clamped the zero point and left the range as it is: the codes now stand for "
            "another range than the one that you measured. Widen the range first.",
            "Jermmy/pytorch-quantization-demo#5, where [1, 2] came back as [1, 1]",
        ),
        Mutant(
            "truncated",
            _affine(rounded=torch.trunc),
            "You cut the decimals off instead of rounding, as `.int()` does: every error goes "
            "towards zero, up to a whole step.",
            "a reader, who wrote `(x / scale).int()`",
        ),
        Mutant(
            "rounded down",
            _affine(rounded=torch.floor),
            "You round down. The nearest code is half a step away at most; yours up to a whole "
            "one, and always on the same side.",
            "a reader, who wrote `x // scale`",
        ),
        Mutant(
            "a broken zero point",
            _affine(whole=float),
            "Your zero point is not whole. It is stored as a code, and 0.0 must come back as "
            "exactly 0.0.",
            "FQ-ViT#3, which asks why others keep it as a float",
        ),
        Mutant(
            "a zero point never rounded",
            _affine(whole=float, late=True),
            "Your codes are whole and the zero point is not: you round x / s + z in one go. Round "
            "the zero point first; 0.0 must come back as exactly 0.0.",
            "a reader, who left out `round(-low / scale)`",
        ),
        Mutant(
            "values for codes",
            _affine(given="values"),
            "Scale and zero point are right. In the place of the codes you give back what they "
            "stand for, s (c - z): asked for are the codes themselves.",
            "a reader",
        ),
        Mutant(
            "scale and zero point exchanged",
            _affine(given="exchanged"),
            "All three are right, in another order: asked for are codes, scale, zero point.",
            "a reader",
        ),
        Mutant(
            "minus the zero point",
            _affine(given="sign"),
            "Codes and scale are right, and your zero point has the wrong sign: it is the code of "
            "0.0, and no code is negative.",
            "a reader, who returned what he subtracted",
        ),
        Mutant(
            "a zero point cut off",
            _affine(whole=int),
            "You cut the decimals of the zero point off: `int()` goes towards zero. It is the "
            "*nearest* code: `round()`.",
            "a reader, who wrote `int(-low / scale)`",
        ),
        Mutant(
            "from the lower end",
            _affine(shifted=True),
            "Scale and zero point are right, but you round (x - low) / scale. The low end need not "
            "lie on the grid: round x / scale, and add the whole zero point.",
            "a reader, who scaled from min to max",
        ),
        Mutant(
            "the zero point's sign",
            _affine(sign=-1),
            "The zero point has the wrong sign. It is the code of 0.0, and lies -low / scale steps "
            "above the lower end, which has code 0.",
            "a reader",
        ),
        Mutant(
            "wrapped around",
            _affine(limit="wrap"),
            "What lies outside of the range wraps around, as in a cast to uint8: a value a little "
            "too large comes back as the smallest. Clamp first.",
            "pytorch#76390, sums that overflowed where they should saturate",
        ),
        Mutant(
            "no clamp",
            _affine(limit="none"),
            "Your codes leave 0 … 2^b - 1 where a value lies outside of the range. Clamp them: "
            "that value gets the last code on its side.",
            "a reader",
        ),
        Mutant(
            "kept in an int8",
            _affine(limit="int8"),
            "Your codes are right up to 127, and negative above: an int8 ends there. Codes from 0 "
            "to 255 need a uint8, or an int.",
            "a reader, who wrote `.to(torch.int8)` at the end",
        ),
        Mutant(
            "signed codes",
            _affine(signed=True),
            "These are int8's codes, from -128 on. Asked for are unsigned ones, from 0 to 2^b - 1.",
            "a reader",
        ),
        Mutant(
            "its own range",
            _affine(measured=True),
            "You took the range of x itself. It was measured before, on calibration text, and "
            "comes as `low` and `high`; at work, nobody knows x beforehand.",
            "a reader",
        ),
        Mutant(
            "symmetric",
            _symmetric,
            "This is symmetric quantization, moved up by half. It spends codes on values that "
            "never come, where a range lies more on one side.",
            "a reader",
        ),
    ),
)

EXERCISES = (AFFINE,)
