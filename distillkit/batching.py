"""In which order conversations are seen, and which of them share a batch.

The order of an epoch depends on the seed and the number of the epoch alone, so a run that is
resumed in its third epoch goes on in the order of the third epoch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback

from distillkit.chat import IGNORE_INDEX


class EvenRows(Dataset):
    """Rows, and behind them `blank` ones without labels, up to a multiple of `step`.

    So each of several processes gets as many batches as the others. accelerate would fill up with
    conversations from the beginning of the epoch, which would then count twice.
    """

    def __init__(self, rows: Any, step: int) -> None:
        self.rows, self.blank = rows, -len(rows) % step

    def __len__(self) -> int:
        return len(self.rows) + self.blank

    def __getitem__(self, index: int) -> Any:
        if index < len(self.rows):
            return self.rows[index]
        row = self.rows[0]
        if isinstance(row.get("labels"), int):  # a text with one label
            return {**row, "labels": IGNORE_INDEX}
        return {**row, "labels": [IGNORE_INDEX] * len(row["input_ids"])}


class ShuffleSampler(Sampler[int]):
    """Row numbers in random order, another one in each epoch, and then those of `blank` more."""

    def __init__(self, count: int, *, seed: int = 0, blank: int = 0) -> None:
        self.count, self.seed, self.blank, self.epoch = count, seed, blank, 0

    def __len__(self) -> int:
        return self.count + self.blank

    def __iter__(self) -> Iterator[int]:
        yield from self.order(torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch))
        yield from range(self.count, len(self))

    def order(self, generator: torch.Generator) -> list[int]:
        """The row numbers of one epoch."""
        return torch.randperm(self.count, generator=generator).tolist()


class BucketSampler(ShuffleSampler):
    """The same, such that each run of `batch_size` row numbers has like lengths: less padding."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        blank: int = 0,
        pool: int = 50,
    ) -> None:
        super().__init__(len(lengths), seed=seed, blank=blank)
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


def shuffled(dataset: Any, bucket: int | None, *, seed: int) -> ShuffleSampler:
    """The order in which the rows of a data set are seen: in buckets of that size, or without."""
    rows, blank = (dataset, 0)
    if isinstance(dataset, EvenRows):
        rows, blank = dataset.rows, dataset.blank
    if bucket is None:
        return ShuffleSampler(len(rows), seed=seed, blank=blank)
    lengths = [len(row["input_ids"]) for row in rows]
    return BucketSampler(lengths, bucket, seed=seed, blank=blank)


class EpochTeller(TrainerCallback):
    """Tells a sampler which epoch begins; not every version of accelerate does after a resume.

    And a collator that draws: it may make batches ahead, so it cannot know the step.
    """

    def __init__(self, collator: Any = None) -> None:
        self.sampler: ShuffleSampler | None = None
        self.collator = collator if hasattr(collator, "stream") else None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.sampler is not None:
            self.sampler.epoch = int(state.epoch)
        if self.collator is not None:
            self.collator.stream = f"{args.seed}/{int(state.epoch)}"
