"""What a check found, as a notebook shows it and as plain text.

The picture of a result beside its target is a table made by hand: it needs no figure, and GitHub,
which drops styles, still shows its numbers and its marks.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

from torch import Tensor

from distillkit.course.exercises.definition import OFFERED, Exercise, Mutant
from distillkit.course.showing import inline
from distillkit.course.words import SAID

State = Literal["done", "not yet", "not started", "used the library"]

SIGNS = {"done": "✓", "not yet": "✗", "not started": "○", "used the library": "◐"}
COLOURS = {
    "done": "#009E73",
    "not yet": "#D55E00",
    "not started": "#767676",
    "used the library": "#0072B2",
}
ROWS, COLUMNS = 6, 7
DIGITS = 4
MOST = 1e15
"""Whole numbers below it are written in full."""


@dataclass(frozen=True)
class Beside:
    """A result and its target in one case, and where they differ."""

    case: str
    yours: Tensor
    target: Tensor
    wrong: Tensor

    def text(self) -> str:
        """Both as aligned numbers."""
        tables = [self._cells(each) for each in (self.yours, self.target)]
        width = max(len(cell) for table in tables for line in table for cell in line)
        lines = [SAID["with"].format(case=self.case)]
        for name, table in zip((SAID["yours"], SAID["target"]), tables, strict=True):
            rows = ["  ".join(cell.rjust(width) for cell in line) for line in table]
            lines += [
                f"{name:>8}  {row}" if not i else " " * 10 + row for i, row in enumerate(rows)
            ]
        return "\n".join([*lines, self._note()]) if self.yours.dim() else "\n".join(lines)

    def html(self) -> str:
        """Both as tables, the shade of a cell its size, and a mark where they differ."""
        heads = "".join(f"<th>{escape(SAID[key])}</th>" for key in ("yours", "target"))
        tables = "".join(
            f'<td valign="top">{self._table(e)}</td>' for e in (self.yours, self.target)
        )
        note = f"<small>{escape(self._note())}</small>" if self.yours.dim() else ""
        case = escape(SAID["with"].format(case=self.case))
        return f"{case}<table><tr>{heads}</tr><tr>{tables}</tr></table>{note}"

    def _table(self, values: Tensor) -> str:
        greatest = float(self.target.nan_to_num().abs().max()) or 1.0
        lines = []
        for line, numbers in zip(self._cells(values), _slice(values).tolist(), strict=True):
            cells = "".join(
                f'<td align="right" style="background: {_shade(number / greatest)}">'
                f"<code>{escape(cell)}</code></td>"
                for cell, number in zip(line, numbers, strict=True)
            )
            lines.append(f"<tr>{cells}</tr>")
        return f"<table>{''.join(lines)}</table>"

    def _cells(self, values: Tensor) -> list[list[str]]:
        """Numbers as texts; those that differ get as many digits as it takes to see it."""
        tables = [_slice(each).tolist() for each in (values, self.yours, self.target, self.wrong)]
        mark = "✗" if values is self.yours else ""
        return [
            [
                _written(number, _digits(yours, target) if wrong else DIGITS)
                + (mark if wrong else "")
                for number, yours, target, wrong in zip(*line, strict=True)
            ]
            for line in zip(*tables, strict=True)
        ]

    def _note(self) -> str:
        shape = tuple(self.target.shape)
        rows, columns = _slice(self.target).shape
        whole = rows * columns == self.target.numel()
        key = "marked" if whole else "cut"
        return SAID[key].format(rows=rows, columns=columns, shape=shape)


@dataclass
class Verdict:
    """The state of an exercise after an answer, and what the learner should read."""

    exercise: Exercise
    state: State
    sentences: list[str]
    mistake: Mutant | None = None
    beside: Beside | None = None

    def __str__(self) -> str:
        return "\n".join(
            [self._title(), *self._body(), *([self.beside.text()] if self.beside else [])]
        )

    def _repr_html_(self) -> str:
        body = "<br>".join(inline(line) for line in self._body())
        picture = f"<br>{self.beside.html()}" if self.beside else ""
        colour = COLOURS[self.state]
        style = f"border-left: 4px solid {colour}; padding-left: 10px"
        title = f'<b style="color: {colour}">{escape(self._title())}</b>'
        return f'<div style="{style}">{title}<br>{body}{picture}</div>'

    def _title(self) -> str:
        exercise = self.exercise
        return f"{SIGNS[self.state]} {exercise.number} {exercise.title}: {SAID[self.state]}"

    def _body(self) -> list[str]:
        if self.mistake is None or self.mistake.seen == OFFERED:
            return self.sentences
        return [*self.sentences, SAID["seen"].format(seen=self.mistake.seen)]


def _slice(values: Tensor) -> Tensor:
    """The first rows and columns of a tensor, as a table."""
    if values.dim() < 2:
        return values.reshape(1, -1)[:, :COLUMNS]
    return values.reshape(-1, values.shape[-1])[:ROWS, :COLUMNS]


def _written(number: float, digits: int) -> str:
    """So many digits; a whole number in full, since counts may differ in the last digit."""
    whole = number.is_integer() and abs(number) < MOST
    return f"{number:.0f}" if whole else f"{number:.{digits}g}"


def _digits(one: float, other: float) -> int:
    """With how many digits two numbers that differ look different."""
    most = 17
    return next((n for n in range(DIGITS, most) if f"{one:.{n}g}" != f"{other:.{n}g}"), most)


def _shade(share: float) -> str:
    """Blue for what is above zero, orange below, as deep as the number is great."""
    if share != share:
        return "none"
    colour = "0, 114, 178" if share >= 0 else "230, 159, 0"
    return f"rgba({colour}, {min(abs(share), 1.0) * 0.35:.2f})"
