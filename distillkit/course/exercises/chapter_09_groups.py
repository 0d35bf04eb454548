"""Exercise of chapter 09, quantization: a scale for each group of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.ranking import signs
from distillkit.course.exercises.rounding import largest_code, units

# 9.2 · a scale for each group ---------------------------------------------------------------------

Pair = tuple[Tensor, Tensor]


def _weight(draw: Draw, o: int, i: int, group: int, bits: int) -> Tensor:
    """Weights by their codes: in every group one at the end of the range, on the side of a sign."""
    last = largest_code(bits)
    codes = units(draw, o, i // group, group, most=last - 1)
    codes[..., 1] = last * signs(draw, o, i // group)
    codes[0, 0, 1], codes[-1, -1, 1] = -last, -last
    codes[..., 0] = -codes[..., 1].sign() * 0.6 * last  # on the other side, less
    scales = 0.05 * 4.0 ** draw.logits(o, i // group, 1, scale=1.0, dtype=torch.float64)
    return (codes * scales).flatten(1)


def _group_cases(draw: Draw) -> list[Case]:
    cases = []
    for o, i, group, bits in ((6, 12, 4, 4), (5, 8, 8, 8), (8, 16, 8, 3)):
        weight = _weight(draw, o, i, group, bits)
        name = f"O={o}, I={i}, groups of {group}, {bits} bits"
        cases.append(Case(name, (weight.to(draw.dtype), group, bits)))
    weight = _weight(draw, 4, 12, 6, 4)
    weight[1, 6:] = 0.0
    stored = weight.T.contiguous().T.to(draw.dtype)
    return [*cases, Case("a group of zeros, W a transposed view", (stored, 6, 4))]


def _group_oracle(
    weight_OI: list[list[float]], group: int, bits: int
) -> tuple[list[list[int]], list[list[float]]]:
    last = 2 ** (bits - 1) - 1
    all_codes, all_scales = [], []
    for row in weight_OI:
        codes, scales = [], []
        for start in range(0, len(row), group):
            part = row[start : start + group]
            largest = max(abs(w) for w in part)
            scale = largest / last if largest > 0 else 1.0
            codes += [round(w / scale) for w in part]
            scales.append(scale)
        all_codes.append(codes)
        all_scales.append(scales)
    return all_codes, all_scales


def _quantized(
    *,
    over: str = "group",
    largest: str = "size",
    more: float = 0.0,
    rounded: Function = torch.round,
    guarded: bool = True,
    clipped: bool = False,
    inverse: bool = False,
    floor: float = 0.0,
    given: str = "codes",
) -> Function:
    """Codes and scales with one part replaced.

    over: what shares a scale, of "group", "tensor", "row", "column" and "stride". largest: its
    "size", "signed", or half the "span". more: added to Q. clipped: to codes that
    there are. guarded: a scale of 0 becomes 1. floor: under all scales instead. given: back,
    "codes", "values", or both in the other order, "exchanged".
    """

    def quantize(weight: Tensor, group: int, bits: int) -> Pair:
        last = largest_code(bits)
        parts = weight.unflatten(-1, (-1, group))
        parts = weight.unflatten(-1, (group, -1)).mT if over == "stride" else parts
        axes = {"tensor": (0, 1, 2), "row": (1, 2), "column": (0,)}.get(over, (2,))
        most = {
            "size": parts.abs().amax(axes, keepdim=True),
            "signed": parts.amax(axes, keepdim=True),
            "span": (parts.amax(axes, keepdim=True) - parts.amin(axes, keepdim=True)) / 2,
        }[largest]
        most = most.expand(*parts.shape[:2], 1) if over != "column" else most.expand_as(parts)
        scales = most / (last + more)
        scales = scales.clamp(min=floor) if floor else scales
        scales = torch.where(scales == 0, 1.0, scales) if guarded else scales
        codes = rounded(parts / scales)
        codes = codes.clamp(-last - 1, last) if clipped else codes
        codes = codes.mT if over == "stride" else codes
        told = scales[..., 0]
        codes = codes * scales if given == "values" else codes
        if given == "exchanged":
            return told, codes.flatten(1)
        return codes.flatten(1), 1 / told if inverse else told

    return quantize


GROUPS = Exercise(
    number="9.2",
    title="A scale for each group",
    kind="write",
    minutes=12,
    difficulty=2,
    hints=(
        "`groups = weight_OI.unflatten(-1, (-1, group))` is (O, I/group, group). The scale needs "
        "the largest *magnitude* of each: `groups.abs().amax(-1, keepdim=True)`.",
        "`scales = largest / (2 ** (bits - 1) - 1)`. Where that is 0, put 1: "
        "`torch.where(scales == 0, 1.0, scales)`.",
        "`codes = (groups / scales).round()`. Return `codes.flatten(1)` and `scales.squeeze(-1)`.",
    ),
    cases=_group_cases,
    oracle=_group_oracle,
    mutants=(
        Mutant(
            "a floor under the scale",
            _quantized(floor=1e-8),
            "All is right except for a group of zeros: its scale is 0, or nearly 0. Clamping the "
            "scale is common, and safe as well; the statement asks for the scale 1 there.",
            "a reader, who wrote `scales.clamp(min=1e-8)`",
        ),
        Mutant(
            "values for codes",
            _quantized(given="values"),
            "The scales are right. In the place of the codes you give back code times scale, which "
            "is the weight again: asked for are the codes.",
            "a reader",
        ),
        Mutant(
            "codes and scales exchanged",
            _quantized(given="exchanged"),
            "Both are right, in the other order: asked for are codes, then scales.",
            "a reader",
        ),
        Mutant(
            "one scale",
            _quantized(over="tensor"),
            "One scale for the whole matrix: a single large weight makes the steps coarse for all "
            "others. Each group of a row has its own.",
            "optimum-quanto#137, which asks whether one is enough",
        ),
        Mutant(
            "a scale for each row",
            _quantized(over="row"),
            "One scale for each output row, as int8 often has it. With so few bits, each *group* "
            "of the row gets its own.",
            "a reader",
        ),
        Mutant(
            "down the columns",
            _quantized(over="column"),
            "Your scales go over the outputs: `dim=0`. An output is a sum along its row, so only a "
            "scale that its row shares can be taken out of the sum.",
            "ppq#339, where the channels' axis was the other one",
        ),
        Mutant(
            "strided groups",
            _quantized(over="stride"),
            "Your groups take every (I/group)-th column. Neighbours belong together: "
            "`unflatten(-1, (-1, group))`.",
            "a reader",
        ),
        Mutant(
            "signed",
            _quantized(largest="signed"),
            "You took the largest value, and not the largest magnitude: a group whose greatest "
            "weight is negative loses it. `groups.abs().amax(-1)`.",
            "onnxruntime PR#11339, whose formula lacked an abs; OmniQuant PR#42",
        ),
        Mutant(
            "half the span",
            _quantized(largest="span"),
            "You took half of max - min. Symmetric codes have no zero point that could move the "
            "middle: the side that reaches further decides.",
            "a reader, who came from 9.1",
        ),
        Mutant(
            "one code more",
            _quantized(more=1.0),
            "You divide by 2^(b-1), 128 for 8 bits. An int8 has no code 128: symmetric codes end "
            "at 127 on both sides, and the largest weight gets that one.",
            "a reader, who counted 256 codes in two halves",
        ),
        Mutant(
            "one code more, clipped",
            _quantized(more=1.0, clipped=True),
            "You divide by 2^(b-1) and clip what is too large, so the greatest weight of a group "
            "loses up to a step. Divide by Q = 2^(b-1) - 1, and nothing has to be clipped.",
            "distiller PR#463, a scale of one range and the clamp of the other",
        ),
        Mutant(
            "truncated",
            _quantized(rounded=torch.trunc),
            "You cut the decimals off instead of rounding: all weights shrink.",
            "a reader, who wrote `.to(torch.int8)` without `.round()`",
        ),
        Mutant(
            "NaN for zeros",
            _quantized(guarded=False),
            "A group of zeros has the scale 0, and 0 / 0 is NaN. Pruned models have such groups: "
            "give them the scale 1.",
            "keras#23413 and neural-compressor#1427, a division that nobody guarded",
        ),
        Mutant(
            "inverse scales",
            _quantized(inverse=True),
            "The codes are right. Your scales are upside down: a weight is its code *times* the "
            "scale.",
            "a reader",
        ),
    ),
)

EXERCISES = (GROUPS,)
