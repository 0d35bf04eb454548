"""Exercise of chapter 09, quantization: a linear layer in integers, to mend."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.broken import chapter_09 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.ranking import signs
from distillkit.course.exercises.rounding import units

# 9.7 · mend it ------------------------------------------------------------------------------------

LAST = 127


def _linear_cases(draw: Draw) -> list[Case]:
    """Tokens by their codes, each with its own scale; the second one is all zeros (padding)."""
    cases = []
    for t, o, i in ((4, 5, 6), (5, 3, 12), (3, 7, 9)):
        x = units(draw, t, i, most=LAST - 1)
        x[:, 0] = LAST * signs(draw, t)
        x[0, 1:] = 114.2 * signs(draw, i - 1)
        loud = LAST * x[0].sign()  # with a row of such codes, two bytes overflow as well
        x = x * 0.002 * 5.0 ** draw.logits(t, 1, scale=1.0, dtype=torch.float64)
        x[1] = 0.0
        codes = draw.integers(o, i, below=LAST + 1, least=-LAST)
        codes[0] = loud.long()
        scales = 0.01 * 2.0 ** draw.logits(o, scale=1.0)
        arguments = (x.to(draw.dtype), codes.to(torch.int8), scales, draw.logits(o))
        cases.append(Case(f"T={t}, O={o}, I={i}", arguments))
    x = 2e-5 * units(draw, 3, 8, most=LAST - 1)  # a floor of 0.01 under the scale makes zeros of it
    x[:, 0], x[:, 1] = 2e-5 * LAST * signs(draw, 3), 2e-5 * 101.2
    codes = draw.integers(4, 8, below=LAST + 1, least=-LAST)
    codes[0] = LAST * x[0].sign().long()
    arguments = (x.to(draw.dtype), codes.to(torch.int8), 1.0 + draw.probabilities(4), x[0, :4] * 0)
    return [*cases, Case("T=3, O=4, I=8, quiet tokens", arguments)]


def _linear_oracle(
    inputs_TI: list[list[float]],
    codes_OI: list[list[int]],
    scales_O: list[float],
    bias_O: list[float],
) -> list[list[float]]:
    outputs = []
    for token in inputs_TI:
        largest = max(abs(x) for x in token)
        scale = largest / LAST if largest > 0 else 1.0
        x_codes = [round(x / scale) for x in token]
        row = []
        for codes, own, bias in zip(codes_OI, scales_O, bias_O, strict=True):
            total = sum(a * b for a, b in zip(x_codes, codes, strict=True))
            row.append(total * scale * own + bias)
        outputs.append(row)
    return outputs


def _linear(
    *,
    over: str = "token",
    rounded: bool = True,
    wide: str = "int32",
    last: int = LAST,
    bias: str = "last",
    scaled: str = "both",
    guarded: bool = True,
    floor: float = 1e-12,
    whole: bool = True,
) -> Function:
    """The layer mended in part.

    over: what shares a scale, "token" or "all". wide: what sums are kept in; "clamped" for an
    int8 that saturates. last: the code of the largest. bias: added "last", or "first", to the sum
    of codes. scaled: by "both" scales or by one. guarded: a token of zeros is not divided by 0.
    floor: under the scale. whole: the inputs become codes.
    """

    def linear(inputs: Tensor, codes: Tensor, scales: Tensor, offset: Tensor) -> Tensor:
        largest = inputs.abs().amax(-1, keepdim=True) if over == "token" else inputs.abs().max()
        scale = (largest / last).clamp(min=floor) if guarded else largest / last
        x = inputs / scale
        x = _wrapped(x.round() if rounded else x.trunc(), 128) if whole else x
        total = x.double() @ codes.double().T
        if wide in ("int8", "int16"):
            total = _wrapped(total, 128 if wide == "int8" else 2**15)
        if wide == "clamped":
            total = total.clamp(-128, 127)
        total = total.to(inputs.dtype)
        total = total + offset if bias == "first" else total
        total = total * {"both": scale * scales, "tokens": scale, "rows": scales}[scaled]
        return total + offset if bias == "last" else total  # "none": nowhere

    return linear


def _wrapped(numbers: Tensor, half: int) -> Tensor:
    """What an integer that ends at half - 1 makes of them."""
    return (numbers + half).remainder(2 * half) - half


_ALL = "smoothquant#108, where one scale for a whole tensor became very large"
_CUT = "a reader, who wrote `.to(torch.int8)` without `.round()`"
_BYTE = "triton#2296, where int8 times int8 stayed int8"

MEND_LINEAR = Exercise(
    number="9.7",
    title="A linear layer in integers, with three faults",
    kind="mend",
    minutes=12,
    difficulty=3,
    hints=(
        "Try three inputs: one token that is a hundred times louder than the others; values that "
        "are all 0.9 of a step; and a row of codes that are all 127.",
        "One fault each in the scale, in the way to whole numbers, and in the type in which "
        "products are summed.",
        "`inputs_TI.abs().amax(-1, keepdim=True)` is (T, 1); `.round()` comes before "
        "`.to(torch.int8)`; and both sides become `.int()` for the product: int32.",
    ),
    cases=_linear_cases,
    oracle=_linear_oracle,
    given=broken.int8_linear,
    mutants=(
        Mutant(
            "one scale",
            _linear(over="all"),
            "Rounding and sums are mended. One fault is left: all tokens share one scale, so a "
            "single loud one takes the digits of all others.",
            _ALL,
        ),
        Mutant(
            "truncated",
            _linear(rounded=False),
            "Scale and sums are mended. One fault is left: `.to(torch.int8)` cuts the decimals "
            "off. Round first.",
            _CUT,
        ),
        Mutant(
            "sums in a byte",
            _linear(wide="int8"),
            "Scale and rounding are mended. One fault is left: the product of two int8 is summed "
            "in an int8 and overflows. Sum in int32.",
            _BYTE,
        ),
        Mutant(
            "only the scale mended",
            _linear(rounded=False, wide="int8"),
            "Each token has its own scale, good. Two faults are left: the way to whole numbers, "
            "and the type of the sums.",
            f"{_CUT}; {_BYTE}",
        ),
        Mutant(
            "only the rounding mended",
            _linear(over="all", wide="int8"),
            "The codes are rounded, good. Two faults are left: whose scale it is, and the type of "
            "the sums.",
            f"{_ALL}; {_BYTE}",
        ),
        Mutant(
            "only the sums mended",
            _linear(over="all", rounded=False),
            "The sums are kept in int32, good. Two faults are left: whose scale it is, and the way "
            "to whole numbers.",
            f"{_ALL}; {_CUT}",
        ),
        Mutant(
            "sums that saturate",
            _linear(wide="clamped"),
            "Your sums stop at 127. That is what a *result* in int8 does; the sum itself needs "
            "int32.",
            "smoothquant#84, which asks for wrapping or saturation",
        ),
        Mutant(
            "sums in two bytes",
            _linear(wide="int16"),
            "Your sums are kept in an int16. Two products of 127 · 127 fit into it, a third does "
            "not: a sum over a row needs int32.",
            "a reader",
        ),
        Mutant(
            "NaN for zeros",
            _linear(guarded=False),
            "All three are mended, but a token of zeros divides by 0 now. The broken layer was "
            "safe there: clamp the scale.",
            "keras#23413, a division that nobody guarded",
        ),
        Mutant(
            "a high floor",
            _linear(floor=1e-2),
            "All three are mended, but your floor under the scale is too high: a quiet token, "
            "whose scale is smaller than that, gets zeros for codes. It only has to keep a token "
            "of zeros from dividing by 0: 1e-8.",
            "a reader, who wrote `clamp(min=1e-2)`",
        ),
        Mutant(
            "never whole",
            _linear(whole=False),
            "Your inputs stay what they were: divided by the scale, and never made whole numbers. "
            "Round them; only whole numbers can be multiplied as int8.",
            "a reader, who left out the cast",
        ),
        Mutant(
            "no bias",
            _linear(bias="none"),
            "The bias is missing. It is added at the end, as it is.",
            "a reader",
        ),
        Mutant(
            "128 steps",
            _linear(last=128),
            "All three are mended, but you divide by 128: then the largest value gets code 128, "
            "and an int8 makes -128 of it.",
            "a reader",
        ),
        Mutant(
            "the bias scaled",
            _linear(bias="first"),
            "The bias goes in before the scales. It is a number of the output: add it at the end, "
            "as it was.",
            "a reader",
        ),
        Mutant(
            "the tokens' scales alone",
            _linear(scaled="tokens"),
            "You left the scales of the rows out: the codes of a weight stand for code · scale.",
            "a reader",
        ),
        Mutant(
            "the rows' scales alone",
            _linear(scaled="rows"),
            "You left the tokens' scale out: you divided by it, so the output must be multiplied "
            "by it.",
            "a reader",
        ),
    ),
)

EXERCISES = (MEND_LINEAR,)
