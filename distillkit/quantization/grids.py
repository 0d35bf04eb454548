"""Grids of integers for weights: ranges, scales, zeros, rounding, and the way back.

Everything here is a function of tensors. A weight w becomes an integer q and back again by

    q = clamp(round(w / scale) + zero, low, high)          ŵ = (q − zero) · scale

On a symmetric grid zero is 0 and the integers are −(2ᵇ⁻¹ − 1) … 2ᵇ⁻¹ − 1; on an affine one they are
0 … 2ᵇ − 1, and zero is the one that stands for 0.0, so that 0.0 comes back exactly on both.

Shapes: O outputs, I inputs, R rows of groups, G groups in a row, K weights in a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import UserError

__all__ = [
    "EIGHT_BITS",
    "Grid",
    "Limits",
    "Quantized",
    "dequantize",
    "grouped",
    "least_squares",
    "min_max",
    "quantize_to",
    "round_to_nearest",
    "scale_and_zero",
    "ungrouped",
]

_PER_ROW, _WHOLE = "channel", "tensor"


@dataclass(frozen=True)
class Grid:
    """Which integers may stand for weights, and how many weights share a scale.

    Args:
        bits: of each integer, 2 to 8.
        symmetric: whether 0 is in the middle; otherwise the grid is affine and has a zero to move.
        group: "tensor": one scale for the whole matrix; "channel": one for each row (each output);
            a number: one for so many neighbouring weights of a row.
        scales: how scales are stored, float16 or float32. Rounding knows of it: integers are those
            of the scale as it is stored.

    Raises UserError where a value is none of these.
    """

    bits: int = 8
    symmetric: bool = True
    group: int | str = _PER_ROW
    scales: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 2 <= self.bits <= 8):
            raise UserError(f"bits is {self.bits}: expected a whole number from 2 to 8")
        sized = isinstance(self.group, int) and self.group >= 1
        if not (sized or self.group in (_PER_ROW, _WHOLE)):
            raise UserError(f'group is {self.group!r}: expected "tensor", "channel" or a number')
        if self.scales not in (torch.float16, torch.float32):
            raise UserError(f"scales is {self.scales}: expected torch.float16 or torch.float32")

    @property
    def low(self) -> int:
        return -(2 ** (self.bits - 1) - 1) if self.symmetric else 0

    @property
    def high(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def groups(self, outputs: int, inputs: int) -> tuple[int, int]:
        """How many scales a matrix has: rows and columns of their table.

        Raises UserError where the number of inputs is no multiple of the group.
        """
        if self.group == _WHOLE:
            return 1, 1
        size = inputs if self.group == _PER_ROW else int(self.group)
        if inputs % size:
            divisors = [str(n) for n in range(8, min(inputs, 129)) if inputs % n == 0]
            raise UserError(
                f"a group of {size} does not divide {inputs} inputs: choose "
                f'{" or ".join(divisors[-3:]) or "a divisor"}, or group="channel"'
            )
        return outputs, inputs // size

    def bits_per_weight(self, outputs: int, inputs: int) -> float:
        """Bits stored for each weight: its own, and its share of scale and zero."""
        rows, groups = self.groups(outputs, inputs)
        scale = torch.finfo(self.scales).bits + (0 if self.symmetric else 8)
        return self.bits + scale * rows * groups / (outputs * inputs)

    def as_json(self) -> dict[str, Any]:
        """The grid in words that `Grid.from_json` reads."""
        return {
            "bits": self.bits,
            "symmetric": self.symmetric,
            "group": self.group,
            "scales": str(self.scales).removeprefix("torch."),
        }

    @classmethod
    def from_json(cls, words: dict[str, Any]) -> Grid:
        """The grid that `as_json` wrote. Raises UserError where it is none."""
        try:
            return cls(**(words | {"scales": getattr(torch, words["scales"])}))
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{words} describes no grid: expected what Grid.as_json gives"
            ) from error


EIGHT_BITS = Grid()  # symmetric, one scale a row


@dataclass(frozen=True)
class Quantized:
    """A matrix on its grid.

    codes (O, I): the integers, in int16. scale (R, G): in the grid's dtype. zero (R, G): in uint8,
    None on a symmetric grid. R is O, or 1 where the whole matrix shares a scale.
    """

    grid: Grid
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None

    def dequantized(self) -> Tensor:
        """The matrix ŵ (O, I) that the integers stand for, in float32."""
        return dequantize(self.codes, self.scale, self.zero)


# Groups --------------------------------------------------------------------------------------


def grouped(matrix_OI: Tensor, grid: Grid) -> Tensor:
    """The matrix cut into groups that share a scale: (R, G, K)."""
    rows, groups = grid.groups(*matrix_OI.shape)
    return matrix_OI.reshape(rows, groups, -1)


def ungrouped(values_RGK: Tensor, outputs: int) -> Tensor:
    """The matrix (O, I) again."""
    return values_RGK.reshape(outputs, -1)


# Ranges --------------------------------------------------------------------------------------

Limits = Callable[[Tensor, Grid], tuple[Tensor, Tensor]]


def min_max(values_RGK: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The range of each group: from its least to its largest weight, and 0 always inside.

    Returns low (R, G) and high (R, G); on a symmetric grid low is −high.
    """
    low, high = values_RGK.amin(-1).clamp(max=0), values_RGK.amax(-1).clamp(min=0)
    if grid.symmetric:
        high = torch.maximum(high, -low)
        return -high, high
    return low, high


def least_squares(
    values_RGK: Tensor, grid: Grid, *, steps: int = 41, narrowest: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The range of each group, narrowed as far as lowers its squared error Σ (w − ŵ)².

    Of `steps` ranges, from the whole of `min_max` down to `narrowest` of it, the best one: large
    weights are clipped where all the others gain more by the finer steps than those lose.
    Source: Choukroun et al. 2019, "Low-bit Quantization of Neural Networks for Efficient
    Inference", which minimises the same error over the scale.
    """
    low, high = min_max(values_RGK, grid)
    best_low, best_high = low, high
    least = torch.full_like(high, torch.inf)
    for share in torch.linspace(1.0, narrowest, steps).tolist():
        scale, zero = scale_and_zero(low * share, high * share, grid)
        codes = quantize_to(values_RGK, scale[..., None], zero, grid)
        error = (values_RGK - _back(codes, scale, zero)).square().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best_low = torch.where(better, low * share, best_low)
        best_high = torch.where(better, high * share, best_high)
    return best_low, best_high


def scale_and_zero(low_RG: Tensor, high_RG: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """The scale (R, G) of each range, as it is stored, and the zero (R, G), None if symmetric.

    scale = (high − low) / (number of integers − 1), zero = round(−low / scale). A group of zeros
    has scale 1. Raises UserError where a scale is too large for the dtype it is stored in.
    """
    scale = ((high_RG - low_RG) / (grid.high - grid.low)).to(grid.scales)
    if not torch.isfinite(scale).all():
        largest = float(torch.maximum(high_RG, -low_RG).max())
        raise UserError(
            f"a weight of {largest:.3g} needs a scale that {grid.scales} cannot hold: take "
            "Grid(…, scales=torch.float32)"
        )
    kept = torch.finfo(grid.scales)
    scale = scale.clamp(min=kept.smallest_normal * kept.eps)  # the least that is not 0
    scale = torch.where(low_RG == high_RG, torch.ones_like(scale), scale)
    if grid.symmetric:
        return scale, None
    zero = (-low_RG / scale.to(low_RG.dtype)).round().clamp(grid.low, grid.high)
    return scale, zero.to(torch.uint8)


# Rounding ------------------------------------------------------------------------------------


def quantize_to(
    values_RGK: Tensor, scale_RG1: Tensor, zero_RG: Tensor | None, grid: Grid
) -> Tensor:
    """clamp(round(w / scale) + zero, low, high), as floats (R, G, K); ties go to the even one."""
    codes = (values_RGK / scale_RG1.to(values_RGK.dtype)).round()
    if zero_RG is not None:
        codes = codes + zero_RG[..., None]
    return codes.clamp(grid.low, grid.high)


def dequantize(codes_OI: Tensor, scale_RG: Tensor, zero_RG: Tensor | None) -> Tensor:
    """(q − zero) · scale for every integer of a matrix: (O, I), in float32."""
    rows, groups = scale_RG.shape
    size = codes_OI.shape[1] // groups if rows == len(codes_OI) else codes_OI.numel()
    codes_RGK = codes_OI.reshape(rows, groups, size).float()
    return _back(codes_RGK, scale_RG, zero_RG).reshape(codes_OI.shape)


def round_to_nearest(
    weight_OI: Tensor, grid: Grid, inputs: object = None, *, limits: Limits = min_max
) -> Quantized:
    """Each weight on the integer nearest to it, by itself: what all other methods are held against.

    Args:
        inputs: what the layer reads (`calibration.Inputs`); not looked at here.
        limits: how the range of a group is found: `min_max`, or `least_squares`.

    Raises UserError where a weight is NaN or infinite, or where a group does not divide the row.
    """
    check_finite(weight_OI)
    values = grouped(weight_OI.detach().float(), grid)
    scale, zero = scale_and_zero(*limits(values, grid), grid)
    codes = quantize_to(values, scale[..., None], zero, grid)
    return Quantized(grid, ungrouped(codes, len(weight_OI)).to(torch.int16), scale, zero)


def check_finite(weight: Tensor) -> None:
    """Raises UserError where a weight is NaN or infinite: no integer stands for it."""
    if not torch.isfinite(weight).all():
        raise UserError(
            f"{int((~torch.isfinite(weight)).sum())} of {weight.numel()} weights are NaN or "
            "infinite: no integer stands for them; look at how the model was trained"
        )


def _back(codes_RGK: Tensor, scale_RG: Tensor, zero_RG: Tensor | None) -> Tensor:
    if zero_RG is not None:
        codes_RGK = codes_RGK - zero_RG[..., None].to(codes_RGK.dtype)
    return codes_RGK * scale_RG[..., None].to(codes_RGK.dtype)
