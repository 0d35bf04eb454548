"""Exercises of chapter 00, start here: how big a model is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw

# 0.1 · three files --------------------------------------------------------------------------------

PARAMETERS = 135_000_000
"""As the statement has it."""
BYTES = {"float32": 4, "float16": 2, "int8": 1}


def _sizes(unit: float = 1e6, factor: int = 1) -> list[float]:
    return [factor * PARAMETERS * each / unit for each in BYTES.values()]


def _always(width: int) -> list[float]:
    return [PARAMETERS * width / 1e6] * len(BYTES)


THREE_FILES = Exercise(
    number="0.1",
    title="One model, three files",
    kind="predict",
    minutes=3,
    difficulty=1,
    hints=(
        "A float32 has 32 bits, and a byte has 8 of them. What do the other two names say?",
        "Bytes are parameters times bytes each, and a megabyte (MB) is a million bytes.",
    ),
    oracle=_sizes,
    tolerance=0.01,
    mutants=(
        Mutant(
            "MiB",
            _sizes(unit=2**20),
            "These are mebibytes (MiB) of 1,048,576 bytes each. A megabyte (MB) is a million "
            "bytes, so the numbers are 5 % greater.",
            "torchinfo#23, which said MB and meant MiB",
        ),
        Mutant(
            "bytes",
            _sizes(unit=1),
            "These are bytes, and rightly counted. A megabyte (MB) is a million of them: divide.",
            "a reader",
        ),
        Mutant(
            "bits",
            _sizes(factor=8),
            "These are megabits. A byte has 8 bits: float32 takes 4 bytes, not 32.",
            "ecologits#84 had to ask which of the two was meant",
        ),
        Mutant(
            "always float32",
            _always(4),
            "You took 4 bytes for all three. Only a float32 has 4; float16 and int8 are there to "
            "take less.",
            "torchinfo#29",
        ),
        Mutant(
            "always float16",
            _always(2),
            "You took 2 bytes for all three. That is float16; a float32 has 4, and an int8 has 1.",
            "mlagility#330",
        ),
        Mutant(
            "always one byte",
            _always(1),
            "That is the number of parameters, in millions. Each of them takes several bytes, but "
            "for int8.",
            "BNext#9, whose table has parameters in MB",
        ),
    ),
)

# 0.2 · the bytes of the weights -------------------------------------------------------------------

Answer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _bytes_cases(draw: Draw) -> list[Case]:
    cases = []
    for name, count, tied in (
        ("tied embeddings", 6, True),
        ("no tensor tied", 5, False),
        ("many layers", 12, True),
    ):
        shapes = draw.integers(count, 2, below=40, least=2)
        shapes[0] = torch.tensor([50 + count, 20])
        places = 64 * (draw.logits(count).argsort() + 1)
        widths = 2 ** draw.integers(count, below=3)
        learned = torch.ones(count, dtype=torch.bool)
        learned[2] = False
        shapes[1] = shapes[3] = torch.tensor([7, 9])  # alike, at two places: not tied
        widths[:4] = torch.tensor([4, 1, 2, 1])
        if tied:
            shapes[-1], places[-1], widths[-1] = shapes[0], places[0], widths[0]
        cases.append(Case(name, (shapes, widths, places, learned)))
    return cases


def _bytes_oracle(
    shapes_N2: list[list[int]], widths_N: list[int], places_N: list[int], learned_N: list[bool]
) -> int:
    seen: list[int] = []
    total = 0
    for (rows, columns), width, place, learned in zip(
        shapes_N2, widths_N, places_N, learned_N, strict=True
    ):
        if learned and place not in seen:
            seen.append(place)
            total += rows * columns * width
    return total


def _first_at(places: Tensor) -> Tensor:
    """True where no tensor before begins at the same place."""
    same = places[:, None] == places[None, :]
    return ~same.tril(-1).any(1)


def _bytes_with(
    *,
    width: int | None = None,
    buffers: bool = False,
    twice: bool = False,
    embeddings: bool = True,
    alike: bool = False,
) -> Answer:
    """The bytes with one part replaced.

    width: that of every number; alike: tensors of one shape are taken for one.
    """

    def weigh(shapes: Tensor, widths: Tensor, places: Tensor, learned: Tensor) -> Tensor:
        each = shapes.prod(1) * (widths if width is None else width)
        marks = shapes[:, 0] * 1000 + shapes[:, 1] if alike else places
        counted = (learned | buffers) & (_first_at(marks) | twice)
        counted[0] &= embeddings
        return (each * counted).sum()

    return weigh


BYTES_OF_WEIGHTS = Exercise(
    number="0.2",
    title="The bytes of the weights",
    kind="write",
    minutes=8,
    difficulty=1,
    hints=(
        "Go through the N tensors one by one. Which do you leave out? And which have you counted "
        "already?",
        "Keep a set of the places that you have seen. A tensor at a place that is in it is tied, "
        "and takes no memory of its own.",
        "For the others add `rows * columns * width`, if `learned` is true.",
    ),
    cases=_bytes_cases,
    oracle=_bytes_oracle,
    mutants=(
        Mutant(
            "tied counted twice",
            _bytes_with(twice=True),
            "Tied tensors are counted twice. Embeddings and head are one tensor under two names: "
            "they begin at the same place.",
            "llama2.c#378, where a model of 42 million came out at 58",
        ),
        Mutant(
            "buffers counted",
            _bytes_with(buffers=True),
            "Buffers are counted, too. They are not learned: leave out where `learned_N` is false.",
            "deepmd-kit PR#4783, before its review",
        ),
        Mutant(
            "nothing left out",
            _bytes_with(twice=True, buffers=True),
            "You add up all N tensors. Two kinds are to be left out: buffers, where `learned_N` is "
            "false, and a tied tensor's second name, which begins at a place that you have seen.",
            "a reader",
        ),
        Mutant(
            "four bytes each",
            _bytes_with(width=4),
            "You took four bytes for every number. Each tensor has its own width.",
            "torchinfo#29",
        ),
        Mutant(
            "two bytes each",
            _bytes_with(width=2),
            "You took two bytes for every number. Each tensor has its own width.",
            "mlagility#330",
        ),
        Mutant(
            "parameters",
            _bytes_with(width=1),
            "That is how many parameters there are. Each takes as many bytes as its width says.",
            "fairseq#1771, where a table had the one for the other",
        ),
        Mutant(
            "embeddings left out",
            _bytes_with(embeddings=False),
            "The embeddings are missing. A tied tensor is counted once, not taken away.",
            "torchtitan PR#3225",
        ),
        Mutant(
            "tied by shape",
            _bytes_with(alike=True),
            "You take two tensors of one shape for one. All layers of a model have the same "
            "shapes; tied are only two names that begin at the same *place*.",
            "a reader",
        ),
    ),
)

EXERCISES = (THREE_FILES, BYTES_OF_WEIGHTS)
