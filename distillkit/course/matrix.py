"""The matrix: what the engine says to every solution, every stub and every known wrong answer.

    python -m distillkit.course.matrix [2.3 …]

A right answer must be done, a stub not started, and a wrong answer not yet, with its own sentence
and no other's. The tests assert it of one run, and write the table of the same run into the README.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nbformat import NotebookNode

import distillkit.course
from distillkit.course.building import derived
from distillkit.course.exercises import all_exercises
from distillkit.course.exercises.definition import Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.judging import judge
from distillkit.course.notebooks import ROOT, read_notebook
from distillkit.course.stamp import SETUP_TAG
from distillkit.course.verdict import Verdict


@dataclass(frozen=True)
class Row:
    """What became of one exercise: the verdicts on its solution, its stub, and mutants by name."""

    exercise: Exercise
    cases: int
    solution: Verdict | None
    stub: Verdict | None
    wrong: dict[str, Verdict]

    @property
    def missed(self) -> tuple[str, ...]:
        """The mutants that were not refused with their own sentence."""
        mutants = self.exercise.mutants
        return tuple(each.name for each in mutants if not caught(each, self.wrong[each.name]))

    @property
    def good(self) -> bool:
        """Whether everything is as it must be."""
        found = (_state(self.solution), _state(self.stub), self.missed)
        return found == ("done", "not started", ())


def rows(
    root: Path = ROOT,
    numbers: Sequence[str] = (),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[Row]:
    """A row for each exercise (of those numbers), with cases drawn from a seed in a dtype."""
    wanted = [each for each in all_exercises() if not numbers or each.number in numbers]
    solved, begun = all_answers(root, {each.chapter for each in wanted})
    settings: dict[str, Any] = {"seed": seed, "dtype": dtype}
    return [
        Row(
            each,
            len(each.cases(Draw(seed, dtype))),
            _verdict(each, solved, settings),
            _verdict(each, begun, settings),
            {mutant.name: wrong(each, mutant, **settings) for mutant in each.mutants},
        )
        for each in wanted
    ]


def caught(mutant: Mutant, verdict: Verdict) -> bool:
    """Whether a wrong answer was refused with its own sentence and no other's."""
    return verdict.state == "not yet" and verdict.mistake is mutant


def wrong(each: Exercise, mutant: Mutant, **settings: Any) -> Verdict:
    """The verdict on a wrong answer."""
    asked = each.kind == "predict" and callable(mutant.answer)
    return judge(each, mutant.answer() if asked else mutant.answer, **settings)


def all_answers(
    root: Path = ROOT, chapters: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Number -> what the solutions check, and number -> what the untouched exercises check.

    Of all chapters, or of those whose two digits are named.
    """
    solved: dict[str, Any] = {}
    begun: dict[str, Any] = {}
    for path in sorted((root / "solutions").glob("*.ipynb")):
        if chapters and path.name[:2] not in chapters:
            continue
        source = read_notebook(path)
        solved |= checked_in(source)
        begun |= checked_in(derived(source, path.name), stubs=True)
    return solved, begun


def checked_in(notebook: NotebookNode, *, stubs: bool = False) -> dict[str, Any]:
    """Run the cells of a notebook, and collect what they give to `check`, by number.

    stubs: the notebook is an untouched exercise, in which cells may fail.
    """
    found: dict[str, Any] = {}
    room: dict[str, Any] = {"__name__": "__main__"}
    with _collecting(found):
        for cell in notebook.cells:
            if cell.cell_type != "code" or SETUP_TAG in cell.metadata.get("tags", []):
                continue
            try:
                exec(compile(cell.source, f"<cell {cell.id}>", "exec"), room)
            except Exception:
                if not stubs:
                    raise
    return found


def table(found: Iterable[Row]) -> str:
    """A run of the matrix in Markdown, with its sums in the first sentence."""
    made = list(found)
    known = sum(len(row.exercise.mutants) for row in made)
    missed = sum(len(row.missed) for row in made)
    solved = sum(_state(row.solution) == "done" for row in made)
    lines = [
        f"**{len(made)} exercises, {known} wrong answers, {known - missed} caught** with their own "
        f"sentence; {solved} of {len(made)} solutions accepted.",
        "",
        "| | exercise | kind | cases | properties | wrong answers | caught |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in made:
        each, count = row.exercise, len(row.exercise.mutants)
        lines.append(
            f"| {each.number} | {each.title} | {each.kind} | {row.cases} | "
            f"{len(each.properties)} | {count} | {count - len(row.missed)} |"
        )
    return "\n".join(lines)


@contextmanager
def _collecting(found: dict[str, Any]) -> Iterator[None]:
    """Let `from distillkit.course import check, …` give functions that collect, and say nothing."""
    quiet = {name: (lambda *_: None) for name in ("hint", "solution", "progress", "reset", "quiz")}
    stand_ins = {"check": found.__setitem__, **quiet}
    real = {name: getattr(distillkit.course, name) for name in stand_ins}
    try:
        for name, stand_in in stand_ins.items():
            setattr(distillkit.course, name, stand_in)
        yield
    finally:
        for name, function in real.items():
            setattr(distillkit.course, name, function)


def _verdict(each: Exercise, answers: dict[str, Any], settings: dict[str, Any]) -> Verdict | None:
    return judge(each, answers[each.number], **settings) if each.number in answers else None


def _state(verdict: Verdict | None) -> str:
    return verdict.state if verdict else "missing"


def main() -> int:
    """Say what happens to all answers, or to those of the exercises named; 1 if one is amiss."""
    made = rows(numbers=sys.argv[1:])
    for row in made:
        each = row.exercise
        states = f"solution {_state(row.solution)}, stub {_state(row.stub)}"
        print(f"{each.number} {each.title}: {states}")
        for mutant in each.mutants:
            verdict = row.wrong[mutant.name]
            told = "its own" if caught(mutant, verdict) else f"NOT its own: {verdict}"
            print(f"    {mutant.name}: {verdict.state}, sentence {told}")
    return int(not all(row.good for row in made))


if __name__ == "__main__":
    sys.exit(main())
