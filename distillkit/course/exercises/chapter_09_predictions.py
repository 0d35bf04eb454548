"""Exercise of chapter 09, quantization: how many bits a weight takes, to predict."""

from __future__ import annotations

from distillkit.course.exercises.definition import Exercise, Mutant

# 9.8 · how many bits are four ---------------------------------------------------------------------

WIDTH = 1024
"""As the statement has it: the inputs of a row."""


def bits(*, scale: int = 16, row: int = 32, minimum: int = 16, table: float = 16.0) -> list[float]:
    """The bits a weight of the five files, counted over one row, or over the model.

    scale, minimum: the bits of a group's; row: of a row's scale; table: of each embedding.
    """
    int8 = (WIDTH * 8 + row) / WIDTH
    wide = (WIDTH * 4 + WIDTH // 128 * scale) / WIDTH
    narrow = (WIDTH * 4 + WIDTH // 32 * scale) / WIDTH
    affine = narrow + WIDTH // 32 * minimum / WIDTH
    return [int8, wide, narrow, affine, (table + narrow) / 2]


BITS = Exercise(
    number="9.8",
    title="How many bits are four?",
    kind="predict",
    minutes=5,
    difficulty=2,
    hints=(
        "Beside the codes, a file holds the scales. Take one group: how many bits have its codes, "
        "how many its scale, and how many weights share them?",
        "A group of 32 has 32 · 4 bits of codes and 16 of scale. For the last one, take the mean "
        "of a weight of the table and a weight of the layers.",
        "8 + 32/1024; 4 + 16/128; 4 + 16/32; 4 + 32/32; and half of 16 plus the third.",
    ),
    oracle=bits,
    tolerance=1.3e-3,
    mutants=(
        Mutant(
            "no scales",
            bits(scale=0, row=0, minimum=0),
            "You counted the codes alone. Each group brings a scale, and the smaller the group, "
            "the more it weighs: at 32 weights half a bit for each.",
            "inference-atlas PR#70, which explains why 4 bits are 4.5",
        ),
        Mutant(
            "no scale of the rows",
            bits(row=0),
            "You left out the scale of the first file: 32 bits for each row of 1,024, which is "
            "0.03 bits a weight. It is little, and not nothing.",
            "a reader",
        ),
        Mutant(
            "float16 for the rows",
            bits(row=16),
            "You took 16 bits for the scale of an int8 row. In the first file it is a float32: 32 "
            "bits.",
            "a reader",
        ),
        Mutant(
            "no minimum",
            bits(minimum=0),
            "The fourth has a scale *and* a minimum for each group, as GGUF's Q4_1: twice 16 bits.",
            "a reader",
        ),
        Mutant(
            "scales in float32",
            bits(scale=32, minimum=32),
            "You took 32 bits for the scales of the groups. Those are float16; only the int8 row "
            "has a float32.",
            "a reader",
        ),
        Mutant(
            "bytes for bits",
            bits(scale=2, row=4, minimum=2),
            "You added the scale's 2 *bytes* to the codes' bits. A float16 has 16 bits.",
            "a reader",
        ),
        Mutant(
            "the table forgotten",
            bits(table=4.5),
            "The first four are right. In the fifth, half of the weights are embeddings and stay "
            "in float16. They weigh more than three times as much as all layers together.",
            "coreai-models PR#17, which asks where the embeddings are counted",
        ),
        Mutant(
            "the table in float32",
            bits(table=32.0),
            "The first four are right. In the fifth the table stays in float16, not float32: 16 "
            "bits each.",
            "a reader",
        ),
        Mutant(
            "the table in int8",
            bits(table=8.0),
            "The first four are right. In the fifth the table is not quantized at all: 16 bits for "
            "each of its weights.",
            "a reader",
        ),
        Mutant(
            "bytes",
            [each / 8 for each in bits()],
            "These are bytes a weight, and rightly counted. Asked for are bits: times 8.",
            "a reader",
        ),
    ),
)

EXERCISES = (BITS,)
