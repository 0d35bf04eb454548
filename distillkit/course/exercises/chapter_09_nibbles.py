"""Exercise of chapter 09, quantization: two weights in a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 9.3 · two weights in a byte ----------------------------------------------------------------------


def _packed_cases(draw: Draw) -> list[Case]:
    cases = []
    for o, columns, group in ((4, 12, 4), (3, 13, 6), (5, 16, 8), (2, 9, 3)):
        codes = draw.integers(o, columns + columns % 2, below=16)
        codes[:, 0], codes[:, 1], codes[:, 2] = 15, 2, 0
        packed = (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8)
        scales = 0.05 * 2.0 ** draw.logits(o, -(-columns // group), dtype=torch.float64)
        name = f"O={o}, {columns} columns, groups of {group}"
        cases.append(Case(name, (packed, scales.to(draw.dtype), group, columns)))
    return cases


def _packed_oracle(
    packed_OJ: list[list[int]], scales_OG: list[list[float]], group: int, columns: int
) -> list[list[float]]:
    weight = []
    for line, scales in zip(packed_OJ, scales_OG, strict=True):
        row = []
        for column in range(columns):
            byte = line[column // 2]
            stored = byte % 16 if column % 2 == 0 else byte // 16
            row.append((stored - 8) * scales[column // group])
        weight.append(row)
    return weight


def _unpacked(
    *,
    order: str = "low first",
    meaning: str = "offset",
    cut: bool = True,
    shifted: bool = True,
    scaled: str = "groups",
) -> Function:
    """The weights with one part replaced.

    order: of the halves of a byte; "halves" for the first and second half of a row. meaning: of
    the four bits. shifted: the high bits come down. scaled: how scales reach the columns.
    """

    def unpack(packed: Tensor, scales: Tensor, group: int, columns: int) -> Tensor:
        low, high = packed & 15, packed >> 4 if shifted else packed & 240
        both = (high, low) if order == "high first" else (low, high)
        stored = torch.cat(both, -1) if order == "halves" else torch.stack(both, -1).flatten(1)
        codes = {
            "offset": lambda: stored.int() - 8,
            "seven": lambda: stored.int() - 7,
            "plus": lambda: stored.int() + 8,
            "unsigned": lambda: stored.int(),
            "two's complement": lambda: stored.int() - 16 * (stored > 7).int(),
            "wrapped": lambda: stored - 8,
        }[meaning]()
        codes = codes[:, :columns] if cut else codes
        place = torch.arange(codes.shape[1])
        place = {
            "groups": place // group,
            "bytes": place // 2 // group,
            "in turn": place % scales.shape[1],
            "first": place * 0,
            "no": place,
        }[scaled]
        if scaled == "no":
            return codes.to(scales.dtype)
        return codes * scales[:, place.clamp(max=scales.shape[1] - 1)]

    return unpack


NIBBLES = Exercise(
    number="9.3",
    title="Two weights in a byte",
    kind="write",
    minutes=12,
    difficulty=3,
    hints=(
        "`packed_OJ & 15` has the low four bits of every byte, `packed_OJ >> 4` the high ones. "
        "`torch.stack([low, high], -1).flatten(1)` puts them side by side.",
        "Make them signed before you subtract: `.int() - 8`. A uint8 cannot be below 0. Then cut "
        "off what is more than `columns`.",
        "`scales_OG.repeat_interleave(group, dim=1)[:, :columns]` has each scale `group` times.",
    ),
    cases=_packed_cases,
    oracle=_packed_oracle,
    mutants=(
        Mutant(
            "high bits first",
            _unpacked(order="high first"),
            "Your neighbours are exchanged: the *low* four bits hold the even column, the high "
            "ones the odd one behind it.",
            "openvino PR#32144, where two paths packed in different orders",
        ),
        Mutant(
            "halves of the row",
            _unpacked(order="halves"),
            "You put all low bits first and all high bits behind them, as GGUF's Q4_0 does in each "
            "block. Here a byte holds two *neighbours*.",
            "1bit-MONSTER PR#572, which mixed up the two layouts",
        ),
        Mutant(
            "two's complement",
            _unpacked(meaning="two's complement"),
            "You read the bits as two's complement. Here a code is stored plus 8: 0 stands for -8, "
            "8 for 0, 15 for 7.",
            "1bit-MONSTER PR#572, which stored one and read the other",
        ),
        Mutant(
            "minus seven",
            _unpacked(meaning="seven"),
            "All your codes are one too high: 8 is added when they are stored, so subtract 8.",
            "tilelang#2477, which decoded nibble - 7",
        ),
        Mutant(
            "plus eight",
            _unpacked(meaning="plus"),
            "You add 8. It was added when the codes were stored; to read them, subtract it.",
            "a reader",
        ),
        Mutant(
            "codes",
            _unpacked(scaled="no"),
            "These are the codes, and they are right. A weight is its code times its scale.",
            "a reader",
        ),
        Mutant(
            "the first scale alone",
            _unpacked(scaled="first"),
            "Your codes all have the first scale of their row. Every `group` columns the next one "
            "begins.",
            "a reader",
        ),
        Mutant(
            "unsigned",
            _unpacked(meaning="unsigned"),
            "You left the codes as they are stored, from 0 to 15, so no weight is negative. "
            "Subtract 8.",
            "tilelang#2482, where every negative weight came out positive",
        ),
        Mutant(
            "wrapped around",
            _unpacked(meaning="wrapped"),
            "You subtract 8 from a uint8, which has nothing below 0: 3 - 8 becomes 251. Make it "
            "signed first: `.int()`.",
            "tilelang#2947, a subtraction in the unsigned type",
        ),
        Mutant(
            "not shifted",
            _unpacked(shifted=False),
            "The high bits are still where they were, so every second weight is 16 times too "
            "large: `packed_OJ >> 4` brings them down.",
            "a reader, who masked with 0xF0",
        ),
        Mutant(
            "scales in turn",
            _unpacked(scaled="in turn"),
            "Your scales change at every column: `repeat` lays the row of scales out again and "
            "again. `repeat_interleave` repeats each scale `group` times.",
            "a reader, who wrote `repeat`",
        ),
        Mutant(
            "groups of bytes",
            _unpacked(scaled="bytes"),
            "You counted groups in bytes. A group is `group` *columns*, which are half as many "
            "bytes.",
            "a reader, who multiplied before taking the bytes apart",
        ),
        Mutant(
            "filling kept",
            _unpacked(cut=False),
            "With an odd number of columns the last byte has four bits to spare. They are no "
            "weight: cut to `columns`.",
            "a reader",
        ),
    ),
)

EXERCISES = (NIBBLES,)
