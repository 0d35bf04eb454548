"""Two results beside each other: are they the same, and if not, how do they differ?

Results of any reasonable kind are brought into one form first: a float64 tensor, a text, or a tuple
of such. So a right answer passes whether it comes as a float, a list, an array or a tensor, in
float32 or float64.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

ABSOLUTE = 2e-6
"""Absolute tolerance, in units of the greatest number of the target (at least 1)."""

MOST = 10_000_000
"""Longer results are not compared: a range or an expanded tensor takes no memory, a copy does."""

Normal = Tensor | str | tuple[Any, ...]


class Incomparable(TypeError):
    """A result of a type with which nothing can be compared."""


def normal(value: Any) -> Normal:
    """A result in the form in which results are compared; Incomparable where there is none."""
    if (count := _count(value)) > MOST:
        raise Incomparable(f"{type(value).__name__} of {count:,} numbers")
    if isinstance(value, Tensor) and not value.is_complex():
        return value.detach().to("cpu", torch.float64)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return torch.tensor(np.array(value, dtype=np.float64, order="C"))  # of any stride and order
    if isinstance(value, numbers.Real):
        return torch.tensor(float(value), dtype=torch.float64)
    if isinstance(value, str):
        return value.strip().casefold()
    if isinstance(value, range):
        return normal(list(value))
    if isinstance(value, list | tuple) and all(isinstance(part, float | int) for part in value):
        return torch.tensor([float(part) for part in value], dtype=torch.float64)
    if isinstance(value, list | tuple):
        parts = tuple(normal(part) for part in value)
        return _stacked(parts) if isinstance(value, list) or _all_numbers(parts) else parts
    raise Incomparable(type(value).__name__)


def is_complex(value: Any) -> bool:
    """Whether a result has complex numbers, which no target has."""
    if isinstance(value, list | tuple):
        return any(is_complex(part) for part in value)
    if isinstance(value, Tensor):
        return value.is_complex()
    return isinstance(value, complex | np.ndarray | np.generic) and np.iscomplexobj(value)


def _count(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return value.size
    return len(value) if isinstance(value, range | list | tuple) else 1


def _all_numbers(parts: tuple[Normal, ...]) -> bool:
    return all(isinstance(part, Tensor) and part.dim() == 0 for part in parts)


def _stacked(parts: tuple[Normal, ...]) -> Normal:
    """A list of equal shapes is a tensor; a ragged one stays a tuple."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) < len(parts) or len({part.shape for part in tensors}) > 1:
        return parts
    return torch.stack(tensors) if tensors else torch.zeros(0, dtype=torch.float64)


def differs(yours: Tensor, target: Tensor, tolerance: float) -> Tensor:
    """Where two tensors of one shape differ; NaN is like NaN, and infinity like infinity."""
    greatest = target[target.isfinite()].abs().max().item() if target.isfinite().any() else 0.0
    near = torch.isclose(
        yours, target, rtol=tolerance, atol=ABSOLUTE * max(1.0, greatest), equal_nan=True
    )
    return ~near


def first_difference(
    yours: Normal | None, target: Normal, tolerance: float
) -> tuple[int, Normal, Normal] | None:
    """The first part of a tuple that differs, counted from 1, with its target.

    None where one of the two is no tuple, or where they have not as many parts.
    """
    if not isinstance(yours, tuple) or not isinstance(target, tuple) or len(yours) != len(target):
        return None
    pairs = enumerate(zip(yours, target, strict=True), start=1)
    return next(((n, a, b) for n, (a, b) in pairs if not same(a, b, tolerance)), None)


def same(yours: Normal, target: Normal, tolerance: float) -> bool:
    """Whether two results in normal form agree."""
    if isinstance(yours, Tensor) and isinstance(target, Tensor):
        return yours.shape == target.shape and not differs(yours, target, tolerance).any()
    if isinstance(yours, tuple) and isinstance(target, tuple):
        return len(yours) == len(target) and all(
            same(a, b, tolerance) for a, b in zip(yours, target, strict=True)
        )
    return type(yours) is type(target) and yours == target
