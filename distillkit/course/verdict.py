"""What a check found, as a notebook shows it and as plain text.

The picture of a result beside its target is a table made by hand: it needs no figure, and GitHub,
which drops styles, still shows its numbers and its marks.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

from torch import Tensor

from distillkit.course.exercises.definition import OFFERED, READER, Exercise, Mutant
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
        lines, shown = [], self._window(values).tolist()
        for line, numbers in zip(self._cells(values), shown, strict=True):
            cells = "".join(
                f'<td align="right" style="background: {_shade(number / greatest)}">'
                f"<code>{escape(cell)}</code></td>"
                for cell, number in zip(line, numbers, strict=True)
            )
            lines.append(f"<tr>{cells}</tr>")
        return f"<table>{''.join(lines)}</table>"

    def _cells(self, values: Tensor) -> list[list[str]]:
        """Numbers as texts; those that differ get as many digits as it takes to see it."""
        kinds = (values, self.yours, self.target, self.wrong)
        tables = [self._window(each).tolist() for each in kinds]
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
        rows, columns = self._window(self.target).shape
        if rows * columns == self.target.numel():
            return SAID["marked"]
        top, left = self._corner()
        key = "cut inside" if top or left else "cut"
        places = {"top": top, "bottom": top + rows - 1, "left": left, "right": left + columns - 1}
        shape = tuple(self.target.shape)
        return SAID[key].format(rows=rows, columns=columns, shape=shape, **places)

    def _corner(self) -> tuple[int, int]:
        """The first row and column shown: those of the table's corner, if a difference is in it."""
        wrong = _table_of(self.wrong)
        if not wrong.any() or wrong[:ROWS, :COLUMNS].any():
            return 0, 0
        row, column = wrong.nonzero()[0].tolist()
        height, width = wrong.shape
        top, left = row - ROWS // 2, column - COLUMNS // 2
        return max(0, min(top, height - ROWS)), max(0, min(left, width - COLUMNS))

    def _window(self, values: Tensor) -> Tensor:
        """The part of a tensor that is shown, as a table with a difference in it."""
        top, left = self._corner()
        return _table_of(values)[top : top + ROWS, left : left + COLUMNS]


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
        if self.mistake is None or self.mistake.seen in (OFFERED, READER):
            return self.sentences
        return [*self.sentences, SAID["seen"].format(seen=self.mistake.seen)]


def _table_of(values: Tensor) -> Tensor:
    """A tensor as a table: its last axis are the columns."""
    return values.reshape(1, -1) if values.dim() < 2 else values.reshape(-1, values.shape[-1])


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
