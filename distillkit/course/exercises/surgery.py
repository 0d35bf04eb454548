"""Pieces of the exercises of SparseGPT and GPTQ: Hessians, and linear equations in slow loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distillkit.course.exercises.drawing import Draw

Matrix = Sequence[Sequence[float]]


def hessian(draw: Draw, columns: int, size: float = 1.0) -> Tensor:
    """The (I, I) mean of x xᵀ of correlated inputs, in float64; its inverse is not extreme."""
    x = draw.logits(4 * columns, columns, scale=1.0, dtype=torch.float64)
    x = x + 0.9 * x.roll(1, -1) + 0.5 * x.roll(2, -1)
    damped = x.T @ x / len(x) + 0.3 * torch.eye(columns, dtype=torch.float64)
    return size * damped


def solved(matrix: Matrix, right: Sequence[float]) -> list[float]:
    """x of A x = b, by Gaussian elimination; A is positive, so no row is exchanged."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for place, pivot in enumerate(rows):
        for row in rows[place + 1 :]:
            factor = row[place] / pivot[place]
            for column in range(place, len(row)):
                row[column] -= factor * pivot[column]
    found = [0.0] * len(rows)
    for place in reversed(range(len(rows))):
        known = sum(rows[place][k] * found[k] for k in range(place + 1, len(rows)))
        found[place] = (rows[place][-1] - known) / rows[place][place]
    return found


def best_answer(hessian: Matrix, column: int, step: float) -> list[float]:
    """What the columns behind do best when one moves by `step`: the changes d that minimise dᵀHd.

    The columns before stay. Setting the slope of the others to zero gives H_rr d_r = -H_rq step.
    """
    behind = range(column + 1, len(hessian))
    others = [[hessian[r][s] for s in behind] for r in behind]
    return solved(others, [-hessian[r][column] * step for r in behind])
