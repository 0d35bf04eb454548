"""Where zeros may stand: anywhere, or so many in every few weights in a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillkit.errors import UserError

__all__ = ["NofM", "Pattern", "Unstructured"]


@dataclass(frozen=True)
class Unstructured:
    """A share of the weights that are compared, wherever they stand.

    Raises UserError when the share is below 0, or is 1 or more.
    """

    sparsity: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise UserError(f"sparsity is {self.sparsity}: expected a share from 0 to below 1")

    def __str__(self) -> str:
        return f"{100 * self.sparsity:g} %"

    def check(self, columns: int) -> None:
        """Every number of columns will do."""

    def at_once(self, block_size: int) -> int:
        """How many columns are chosen from together, where blocks of columns are compared."""
        return block_size

    def keep(self, scores_RC: Tensor) -> Tensor:
        """True (R, C) where a weight stays: in each row the ⌊sparsity · C⌋ smallest scores go.

        Of equal scores the first ones go.
        """
        count = int(self.sparsity * scores_RC.shape[-1] + 1e-9)  # 0.29 · 100 is 28.999…
        return _without_smallest(scores_RC, count)


@dataclass(frozen=True)
class NofM:
    """At most n weights other than zero in each m columns in a row: 2:4 is what GPUs speed up.

    Raises UserError unless 1 ≤ n ≤ m.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise UserError(f"found {self.n}:{self.m}: expected to keep 1 to {self.m} of {self.m}")

    @property
    def sparsity(self) -> float:
        return 1.0 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def check(self, columns: int) -> None:
        """Raise UserError where the columns are no whole number of groups."""
        if columns % self.m:
            raise UserError(
                f"{columns} columns are no multiple of {self.m}: {self} cannot be cut out of them"
            )

    def at_once(self, block_size: int) -> int:
        """How many columns are chosen from together: one group, whatever the block."""
        return self.m

    def keep(self, scores_RC: Tensor) -> Tensor:
        """True (R, C) where a weight stays: the n largest scores of each m columns in a row."""
        self.check(scores_RC.shape[-1])
        groups = scores_RC.unflatten(-1, (-1, self.m))
        return _without_smallest(groups, self.m - self.n).flatten(-2)


Pattern = Unstructured | NofM


def _without_smallest(scores: Tensor, count: int) -> Tensor:
    order = torch.sort(scores, dim=-1, stable=True).indices
    keep = torch.ones_like(scores, dtype=torch.bool)
    return keep.scatter_(-1, order[..., :count], False)
