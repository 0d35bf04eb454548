"""Inputs for the cases of an exercise, drawn from a seed: the same seed, the same inputs."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100


class Draw:
    """Draws tensors from a seed, in one dtype where a case does not ask for another."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(1_000_003 * seed + 17)

    def logits(self, *shape: int, scale: float = 2.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers of the given scale, of mean 0.5 (a softmax must not depend on it)."""
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return (scale * drawn + 0.5).to(dtype or self.dtype)

    def probabilities(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Distributions over the last axis."""
        return self.logits(*shape, dtype=torch.float64).softmax(-1).to(dtype or self.dtype)

    def integers(self, *shape: int, below: int, least: int = 0) -> Tensor:
        """Whole numbers from `least` to `below` - 1."""
        return torch.randint(least, below, shape, generator=self._generator)

    def mask(self, batch: int, length: int) -> Tensor:
        """A ragged mask, (B, S) of booleans: a prompt, an answer, padding; rows differ in length.

        The first row is valid to its end, the second from its beginning; every row has one valid
        token at least, and a gap.
        """
        mask = torch.zeros(batch, length, dtype=torch.bool)
        for row in range(batch):
            least = min(2 + row, length)
            end = length if row == 0 else int(self.integers(1, below=length, least=least - 1))
            mask[row, row != 1 : max(end, 2)] = True
        return mask

    def labels(self, mask: Tensor, vocabulary: int, ignore_index: int = IGNORED) -> Tensor:
        """Token ids where the mask is true, `ignore_index` elsewhere."""
        ids = self.integers(*mask.shape, below=vocabulary)
        return ids.masked_fill(~mask, ignore_index)
