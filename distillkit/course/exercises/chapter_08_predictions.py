"""Exercise of chapter 08, pruning: what zeros weigh, to predict."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Exercise, Mutant

# 8.6 · what zeros weigh ---------------------------------------------------------------------------

WIDTH = 1000
"""As the statement has it."""


def megabytes() -> list[float]:
    """The four ways to keep a matrix of which every second weight is 0: measured on tensors."""
    weight = torch.ones(WIDTH, WIDTH)
    weight[:, ::2] = 0.0
    sparse = weight.to_sparse_coo().coalesce()
    bits = weight.numel() // 8
    return [
        _bytes(weight) / 1e6,
        (_bytes(sparse.values()) + _bytes(sparse.indices())) / 1e6,
        (_bytes(sparse.values()) + bits) / 1e6,
        _bytes(weight[: WIDTH // 2]) / 1e6,
    ]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


ZEROS = Exercise(
    number="8.6",
    title="What do zeros weigh?",
    kind="predict",
    minutes=5,
    difficulty=2,
    hints=(
        "A million weights of 4 bytes. Does a file know that a number is 0? And how many numbers "
        "must stand beside a value so that one knows where it belongs?",
        "COO keeps two indices of 8 bytes for each value that is left: row and column. A mask of "
        "one bit for each of the million weights is an eighth of a megabyte.",
        "First: 10⁶ · 4. Second: 0.5 · 10⁶ · (4 + 8 + 8). Third: 0.5 · 10⁶ · 4 + 10⁶ / 8. Fourth: "
        "0.5 · 10⁶ · 4. All in bytes.",
    ),
    oracle=megabytes,
    tolerance=0.005,
    mutants=(
        Mutant(
            "zeros are free",
            [2.0, 10.0, 2.125, 2.0],
            "You let the zeros of the first one go for nothing. It is an ordinary tensor: a 0.0 "
            "takes 4 bytes, as any other number does.",
            "wanda#9, #29 and #65, OWL#7: the same size as before",
        ),
        Mutant(
            "zeros are free everywhere",
            [2.0, 2.0, 2.0, 2.0],
            "You counted half of the weights, four times. But a 0.0 in an ordinary tensor takes 4 "
            "bytes, and who leaves zeros out must write down where the others belong.",
            "wanda#9, #29 and #65, OWL#7: the same size as before",
        ),
        Mutant(
            "values alone",
            [4.0, 2.0, 2.125, 2.0],
            "You counted the values of COO and not their places: two indices for each, of 8 bytes. "
            "They are four times as large as what they point at.",
            "impl-pruning-TF#11, whose sparse model was the larger one",
        ),
        Mutant(
            "half of the indices",
            [4.0, 6.0, 2.125, 2.0],
            "You gave each value 8 bytes of indices. torch's COO has two of them, row and column, "
            "and each is an int64 of 8 bytes.",
            "pytorch#106141, which asks whether int64 is necessary",
        ),
        Mutant(
            "a mask of booleans",
            [4.0, 10.0, 3.0, 2.0],
            "Your mask takes a byte for each weight, as `torch.bool` does. Asked for is one *bit*: "
            "packed, eight to a byte.",
            "a reader, who looked at `mask.element_size()`",
        ),
        Mutant(
            "a mask for nothing",
            [4.0, 10.0, 2.0, 2.0],
            "The mask of the third one is missing: a million bits are 125,000 bytes.",
            "a reader",
        ),
        Mutant(
            "a mask of what is left",
            [4.0, 10.0, 2.0625, 2.0],
            "Your mask has a bit for each value that is left. It needs one for every place, kept "
            "or not: it says which is which.",
            "a reader",
        ),
        Mutant(
            "rows stay",
            [4.0, 10.0, 2.125, 4.0],
            "The fourth is smaller: its rows are *gone*, the shape is 500 × 1,000, and nothing has "
            "to say where they were. That is what structured pruning buys.",
            "a reader, who set the rows to zero",
        ),
        Mutant(
            "a quarter",
            [4.0, 10.0, 2.125, 1.0],
            "Half of the rows goes, and all columns stay: half of the weights, not a quarter.",
            "a reader",
        ),
        Mutant(
            "mebibytes",
            [each * 1e6 / 2**20 for each in (4.0, 10.0, 2.125, 2.0)],
            "You counted mebibytes, of 2²⁰ bytes each. A megabyte is a million bytes.",
            "a reader, who divided by 1024 ** 2",
        ),
        Mutant(
            "bytes",
            [4e6, 10e6, 2.125e6, 2e6],
            "These are bytes, and rightly counted. Asked for are megabytes: over a million.",
            "a reader",
        ),
        Mutant(
            "two bytes",
            [2.0, 9.0, 1.125, 1.0],
            "You took 2 bytes for a weight. These are float32: 4 bytes each.",
            "a reader, who thought of float16",
        ),
    ),
)

EXERCISES = (ZEROS,)
