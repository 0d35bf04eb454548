"""Activations on eight bits, and products of integers: the A8 of W8A8.

A row x of activations becomes integers q = clamp(round(x / s), −127, 127) with

    s = max|x| / 127 of that row          "dynamic": found anew for every token
    s = max|x| / 127 of calibration text  "static": one number, known before

and a linear layer's product is one of integers: y = (q_x · q_wᵀ) · s_x · s_w, exact until the
two scales are multiplied in. A torch that has a product of int8 matrices for the device does it
(`torch._int_mm`); where it has none, the same integers are multiplied as floats that hold them
exactly, which is not faster than no quantization at all.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from distillkit.errors import UserError

__all__ = [
    "ACTIVATIONS",
    "activation_codes",
    "activation_scale",
    "has_integer_product",
    "integer_product",
    "static_scale",
]

ACTIVATIONS = ("dynamic", "static")
_HIGH = 127
_EXACT_IN_FP32 = 2**24 // _HIGH**2  # so many products of two codes sum to less than 2²⁴


def activation_scale(x: Tensor) -> Tensor:
    """max|x| / 127 of each row: (…, I) → (…, 1); 1 for a row of zeros."""
    largest = x.abs().amax(-1, keepdim=True)
    return torch.where(largest == 0, torch.ones_like(largest), largest / _HIGH)


def static_scale(largest_I: Tensor) -> Tensor:
    """One scale from the largest |x| of each input feature on calibration text: (I,) → ().

    Raises UserError where that is NaN or infinite.
    """
    largest = largest_I.max().float()
    if not torch.isfinite(largest):
        raise UserError(f"the largest activation is {largest}: calibrate on a model that works")
    return torch.where(largest == 0, torch.ones_like(largest), largest / _HIGH)


def activation_codes(x: Tensor, scale: Tensor) -> Tensor:
    """clamp(round(x / scale), −127, 127), as floats that hold integers."""
    return (x / scale).round().clamp(-_HIGH, _HIGH)


def integer_product(codes_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """The product of integers codes · weightᵀ (N, O), exact up to 2²⁴, in float32.

    Args:
        codes_NI: floats that hold integers from −127 to 127.
        weight_OI: int8.
    """
    if codes_NI.numel() and has_integer_product(codes_NI.device.type):
        try:
            return torch._int_mm(codes_NI.to(torch.int8), weight_OI.t()).float()
        except RuntimeError:  # CUDA's kernel takes some shapes only
            pass
    return float_product(codes_NI, weight_OI)


def float_product(codes_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """The same from floats that hold the integers, through which gradients flow.

    In float32 as long as every sum is exact there, in float64 beyond.
    """
    exact = torch.float32 if codes_NI.shape[-1] <= _EXACT_IN_FP32 else torch.float64
    return torch.nn.functional.linear(codes_NI.to(exact), weight_OI.to(exact)).float()


@lru_cache
def has_integer_product(device: str = "cpu") -> bool:
    """Whether this torch multiplies int8 matrices on the device (and gets it right)."""
    one = torch.arange(-16, 16, dtype=torch.int8).repeat(32, 1)
    try:
        product = torch._int_mm(one.to(device), one.t().to(device))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool((product.cpu() == one[0].long().square().sum()).all())
