"""GPTQ: each column's rounding error is made good by the columns that are not rounded yet.

Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1 (without its lazy blocks of columns, which save time and change nothing).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.calibration import Inputs
from distillkit.errors import UserError
from distillkit.quantization.grids import (
    Grid,
    Limits,
    Quantized,
    check_finite,
    grouped,
    min_max,
    quantize_to,
    scale_and_zero,
)

__all__ = ["gptq", "inverse_root"]


def gptq(
    weight_OI: Tensor,
    grid: Grid,
    inputs: Inputs | None,
    *,
    damping: float = 0.01,
    by_activation: bool = False,
    limits: Limits = min_max,
) -> Quantized:
    """A matrix on its grid, so that ‖X Wᵀ − X Ŵᵀ‖² on calibration text is small.

    Columns are rounded from the first to the last. With H = 2 Σ xxᵀ and U the upper Cholesky
    factor of H⁻¹ (UᵀU = H⁻¹), rounding column i leaves the error e = (w_i − ŵ_i) / U_ii, and

        w_j ← w_j − e · U_ij        for all columns j > i

    A group's scale is found when its first column is reached, from the weights as they are then.

    Args:
        inputs: what the layer reads, with `products`.
        damping: this part of H's mean diagonal is added to the diagonal (the paper's λ).
        by_activation: round the columns with the largest Σ x² first; scales are then those of the
            weights as they were, because the columns of a group come at different times.
        limits: how the range of a group is found.

    Raises UserError without products of inputs, or where H cannot be inverted.
    """
    if inputs is None or inputs.products is None:
        raise UserError("gptq needs what the layer reads: pass calibration text (encoded=…)")
    check_finite(weight_OI)
    order = _order(inputs, by_activation)
    root = inverse_root(inputs.products, damping, order)
    left = weight_OI.detach().double().clone()  # what is left to round, column by column
    scale, zero = scale_and_zero(*limits(grouped(left.float(), grid), grid), grid)
    codes, size = torch.zeros_like(left), left.shape[1] // scale.shape[1]
    for place, column in enumerate(order.tolist()):
        group = slice(column // size, column // size + 1)
        if column % size == 0 and scale.shape[1] > 1 and not by_activation:
            ahead = left[:, None, column : column + size].float()
            scale[:, group], renewed = scale_and_zero(*limits(ahead, grid), grid)
            zero = _with(zero, group, renewed)
        one, shift = scale[:, group], None if zero is None else zero[:, group.start]
        rounded = quantize_to(left[:, column, None], one, shift, grid)
        back = (rounded if shift is None else rounded - shift[:, None].double()) * one.double()
        codes[:, column] = rounded[:, 0]
        error = (left[:, column] - back[:, 0]) / root[place, place]
        left[:, order[place + 1 :]] -= error[:, None] * root[place, place + 1 :]
    return Quantized(grid, codes.to(torch.int16), scale, zero)


def inverse_root(products_II: Tensor, damping: float, order: Tensor) -> Tensor:
    """U, upper triangular with UᵀU = (H + λI)⁻¹, for the columns in this order: (I, I), float64.

    H = 2 Σ xxᵀ, λ = damping · mean H_ii. A feature that was always 0 has H_ii = λ, or 1 where all
    were: whatever its weights are, nothing is lost.

    Raises UserError where the damped H cannot be inverted in float64.
    """
    hessian = 2 * products_II.double()[order][:, order]
    mean = hessian.diagonal().mean()
    hessian.diagonal().add_(damping * mean if mean > 0 else 1.0)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)
    except RuntimeError as error:
        raise UserError(
            f"the inputs' products cannot be inverted with damping {damping}: take more "
            "calibration text, or a larger damping"
        ) from error


def _order(inputs: Inputs, by_activation: bool) -> Tensor:
    if not by_activation:
        return torch.arange(len(inputs.squares), device=inputs.squares.device)
    return inputs.squares.argsort(descending=True, stable=True)


def _with(zero: Tensor | None, group: slice, renewed: Tensor | None) -> Tensor | None:
    if zero is not None and renewed is not None:
        zero[:, group] = renewed
    return zero
