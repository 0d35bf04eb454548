"""SparseGPT: the weights that stay make good, as well as they can, what those that go did."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit.calibration import Inputs
from distillkit.errors import UserError
from distillkit.pruning.patterns import Pattern

__all__ = ["SparseGPT", "inverse_hessian_rows", "sparsegpt_update"]


def sparsegpt_update(
    weight_RC: Tensor,
    products_CC: Tensor,
    pattern: Pattern,
    *,
    block_size: int = 128,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Zero weights column by column; each time, the columns behind it take over its error.

    With H = Σ x xᵀ and B = (H of the columns from c on)⁻¹, zeroing the weight w of column c, and

        W[r, c:] ← W[r, c:] − (w / B_cc) · B_c,c:

    is the best that the columns behind c can do for ‖W x − W' x‖² (the optimal brain surgeon's
    step), and costs w² / B_cc. By this cost the weights of `block_size` columns, of all rows
    together, are chosen when the first of these columns is reached; N:M is chosen group by group.

    Args:
        weight_RC: the weight of a linear layer. It is not changed.
        products_CC: Σ x xᵀ over the calibration tokens (`Inputs.products`).
        damping: this share of H's mean diagonal is added to its diagonal, so that it has an inverse
            however few the tokens are.

    Returns:
        The new weight (R, C), and True (R, C) where it was kept.

    Raises:
        UserError: `block_size` is below 1, `damping` is not positive, H is no (C, C) of numbers, or
            the pattern does not fit the columns.

    Source: Frantar & Alistarh 2023, "SparseGPT", equation 3 and algorithm 1, without its lazy
    batches in the N:M case.
    """
    columns = weight_RC.shape[1]
    pattern.check(columns)
    if block_size < 1:
        raise UserError(f"block_size is {block_size}: expected at least 1 column")
    weight = weight_RC.double().clone()
    weight[:, products_CC.diagonal() == 0] = 0.0  # nothing is ever read there
    inverse = inverse_hessian_rows(products_CC, damping)
    keep = torch.ones_like(weight, dtype=torch.bool)
    step = pattern.at_once(block_size)
    for start in range(0, columns, step):
        block = slice(start, min(start + step, columns))
        costs = weight[:, block].square() / inverse.diagonal()[block].square()
        keep[:, block] = pattern.keep(costs.reshape(1, -1)).view(costs.shape)
        errors = torch.zeros_like(costs)
        for column in range(block.start, block.stop):
            gone = weight[:, column] * ~keep[:, column]
            errors[:, column - start] = gone / inverse[column, column]
            weight[:, column : block.stop] -= torch.outer(
                errors[:, column - start], inverse[column, column : block.stop]
            )
            weight[~keep[:, column], column] = 0.0  # not 1e-17
        weight[:, block.stop :] -= errors @ inverse[block, block.stop :]
    return weight.to(weight_RC.dtype), keep


def inverse_hessian_rows(products_CC: Tensor, damping: float) -> Tensor:
    """Upper triangular U (C, C), whose row c is B_c,c: / √B_cc, with B = (H from column c on)⁻¹.

    All these inverses come from one: U is the Cholesky factor of H⁻¹ = Uᵀ U. Dividing by the root
    leaves the update as it is: (w / U_cc) · U_c,c: equals (w / B_cc) · B_c,c:. In float64.

    Raises UserError where `damping` is not positive, or H has no inverse or no numbers.
    """
    hessian = products_CC.double().clone()
    if not damping > 0.0:
        raise UserError(f"damping is {damping}: expected a share above 0, for example 0.01")
    diagonal = hessian.diagonal()  # a view: what is written here is written into the Hessian
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise UserError(
            "the Hessian of these inputs has no inverse: they hold NaN or infinity, or damping "
            f"({damping}) is too small"
        ) from error


@dataclass(frozen=True)
class SparseGPT:
    """`sparsegpt_update` as a method."""

    block_size: int = 128
    damping: float = 0.01
    name: str = "SparseGPT"
    reads_inputs: bool = True
    reads_products: bool = True

    def __call__(
        self, weight_RC: Tensor, inputs: Inputs | None, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        if inputs is None or inputs.products is None:
            raise UserError("SparseGPT needs Σ x xᵀ of its inputs: measure them with products=True")
        return sparsegpt_update(
            weight_RC,
            inputs.products,
            pattern,
            block_size=self.block_size,
            damping=self.damping,
        )
