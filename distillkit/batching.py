"""In which order conversations are seen, and which of them share a batch.

The order of an epoch depends on the seed and the number of the epoch alone, so a run that is
resumed in its third epoch goes on in the order of the third epoch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback


class ShuffleSampler(Sampler[int]):
    """Row numbers in random order, another one in each epoch."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        yield from self.order(torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch))

    def order(self, generator: torch.Generator) -> list[int]:
        """The row numbers of one epoch."""
        return torch.randperm(self.count, generator=generator).tolist()


class BucketSampler(ShuffleSampler):
    """The same, such that each run of `batch_size` row numbers has like lengths: less padding."""

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int = 0, pool: int = 50
    ) -> None:
        super().__init__(len(lengths), seed=seed)
        self.lengths, self.batch_size, self.pool = lengths, batch_size, batch_size * pool

    def order(self, generator: torch.Generator) -> list[int]:
        """The row numbers of one epoch: sorted within pools, then cut, and the pieces shuffled."""
        rows = super().order(generator)
        pools = [rows[i : i + self.pool] for i in range(0, len(rows), self.pool)]
        rows = [row for pool in pools for row in sorted(pool, key=self.lengths.__getitem__)]
        size, full = self.batch_size, len(rows) // self.batch_size
        places = torch.randperm(full, generator=generator).tolist()
        places.append(full)  # a last, smaller batch stays last
        return [row for place in places for row in rows[place * size : (place + 1) * size]]


class EpochTeller(TrainerCallback):
    """Tells a sampler which epoch begins; not every version of accelerate does after a resume."""

    def __init__(self) -> None:
        self.sampler: ShuffleSampler | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.sampler is not None:
            self.sampler.epoch = int(state.epoch)
