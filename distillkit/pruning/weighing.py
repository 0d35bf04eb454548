"""Zeros are not bytes: what a pruned model weighs as it is saved, and what it could weigh at best.

safetensors, PyTorch's own files and GGUF write a zero as they write any other number, so a model
with half of its weights at zero has a file of the same size and does the same multiplications. What
is cut out with structure (a neuron, a head, a layer, a word) is really gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Weight", "weigh"]


@dataclass(frozen=True)
class Weight:
    """What the weights of a model are and take; tied ones are counted once.

    zeros: how many of `parameters` are zero. saved: bytes of all tensors in a file that is written
    as usual. without_zeros: bytes if each tensor that gains by it were written as one bit a number
    (zero or not) and the numbers that are not zero. No tool of this course reads such a file; it
    shows what unstructured pruning could save at best.
    """

    parameters: int
    zeros: int
    saved: int
    without_zeros: int

    @property
    def sparsity(self) -> float:
        """The share of all parameters, embeddings and norms among them, that is zero."""
        return self.zeros / self.parameters


def weigh(model: nn.Module) -> Weight:
    """Count a model's parameters, their zeros and their bytes."""
    parts = [parameter.detach() for parameter in model.parameters()]
    zeros = [int((part == 0).sum()) for part in parts]
    return Weight(
        parameters=sum(part.numel() for part in parts),
        zeros=sum(zeros),
        saved=sum(part.numel() * part.element_size() for part in parts),
        without_zeros=sum(map(_at_best, parts, zeros)),
    )


def _at_best(part: Tensor, zeros: int) -> int:
    size = part.element_size()
    return min(part.numel() * size, math.ceil(part.numel() / 8) + (part.numel() - zeros) * size)
