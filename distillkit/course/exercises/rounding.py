"""Numbers for the exercises of quantization: none lies where rounding could go either way."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.drawing import Draw


def units(draw: Draw, *shape: int, most: int, least: int | None = None) -> Tensor:
    """Whole numbers from `least` (-most) to `most`, each moved by 0.1 to 0.4 up or down, float64.

    Times a scale they are weights whose codes are sure, whatever the last digit.
    """
    least = -most if least is None else least
    whole = draw.integers(*shape, below=most + 1, least=least).double()
    moved = draw.integers(*shape, below=31).double() / 100 + 0.1
    return whole + torch.where(draw.integers(*shape, below=2).bool(), moved, -moved)


def largest_code(bits: int) -> int:
    """Q, the greatest code of symmetric quantization: 127 for 8 bits, 7 for 4."""
    return int(2 ** (bits - 1)) - 1
