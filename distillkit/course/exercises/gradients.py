"""What must hold of gradients: properties that several exercises of losses share.

Each takes a function of logits (B, S, V), with everything else filled in, and some logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

OfLogits = Callable[[Tensor], Tensor]
STEP = 1e-2
"""Of finite differences: wide enough for a function that computes in float32."""

NONE_ARRIVES = (
    "The values are right, but no gradient arrives at the {whose}: you detached it, or left the "
    "tensors on the way. No `.detach()`, `.item()` or `torch.no_grad()` on it."
)


def gradient(function: OfLogits, logits: Tensor) -> Tensor:
    """That of the function's sum; an exception where none arrives."""
    leaf = logits.detach().clone().requires_grad_()
    function(leaf).sum().backward()
    if leaf.grad is None:
        raise ValueError("no gradient arrives")
    return leaf.grad


def arrives(function: OfLogits, logits: Tensor) -> bool:
    """Whether a gradient comes back to the logits, of whatever size."""
    return gradient(function, logits).shape == logits.shape


def is_finite(function: OfLogits, logits: Tensor) -> bool:
    """Whether it is finite in every logit."""
    return bool(gradient(function, logits).isfinite().all())


def is_the_slope(function: OfLogits, row: Tensor) -> bool:
    """Whether the gradient at a row of V logits is what finite differences of the values give."""
    steps = STEP * torch.eye(len(row), dtype=row.dtype)[:, None]
    rise = function(row + steps) - function(row - steps)
    slope = rise.detach().flatten() / (2 * STEP)
    return torch.allclose(
        gradient(function, row[None, None]).flatten().double(), slope.double(), atol=1e-3
    )
