"""Integers of fewer than eight bits, one after the other in bytes.

Eight integers of b bits fill b bytes exactly: they are laid side by side in one 64-bit word, the
first in its lowest bits, and the word is cut into bytes. With four bits, two lie in a byte.
Each row is filled up by itself, so that a row can be read without the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.errors import UserError

__all__ = ["bytes_a_row", "pack", "unpack"]


def bytes_a_row(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take.

    >>> bytes_a_row(5, 4), bytes_a_row(8, 3)
    (3, 3)
    """
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers 0 … 2ᵇ − 1 (…, N) as bytes (…, ⌈N·b / 8⌉) in uint8; what is left over is 0.

    >>> import torch
    >>> pack(torch.tensor([[1, 2, 15]]), bits=4)
    tensor([[33, 15]], dtype=torch.uint8)

    Raises UserError where an integer needs more bits.
    """
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise UserError(
            f"found integers from {int(codes.min())} to {int(codes.max())}: {bits} bits hold 0 to "
            f"{2**bits - 1}"
        )
    count = codes.shape[-1]
    filled = torch.nn.functional.pad(codes.long(), (0, -count % 8)).unflatten(-1, (-1, 8))
    words = (filled << _steps(8, bits, codes)).sum(-1, keepdim=True)
    parts = (words >> _steps(bits, 8, codes)) & 255
    return parts.flatten(-2)[..., : bytes_a_row(count, bits)].to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` integers (…, count) of what `pack` wrote, in uint8.

    >>> import torch
    >>> unpack(torch.tensor([[33, 15]], dtype=torch.uint8), bits=4, count=3)
    tensor([[ 1,  2, 15]], dtype=torch.uint8)
    """
    if 8 % bits == 0:  # none lies across two bytes: no words are needed
        steps = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        return (packed[..., None] >> steps & (2**bits - 1)).flatten(-2)[..., :count]
    filled = torch.nn.functional.pad(packed.long(), (0, -packed.shape[-1] % bits))
    words = (filled.unflatten(-1, (-1, bits)) << _steps(bits, 8, packed)).sum(-1, keepdim=True)
    codes = words >> _steps(8, bits, packed) & (2**bits - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8)


def _steps(count: int, width: int, like: Tensor) -> Tensor:
    """0, width, 2·width, …: by how many bits each of `count` parts of a word is moved."""
    return torch.arange(count, device=like.device) * width
