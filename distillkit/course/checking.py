"""What a learner calls: `check`, `hint`, `solution`, `progress`, `reset`.

They print, and let the notebook go on whatever was found. With DISTILLKIT_CHECK=raise, as in the
tests of the solutions, a check that is not passed raises. torch and the definitions are imported
when they are needed, so `import distillkit.course` stays light.
"""

from __future__ import annotations

import argparse
import os
import secrets
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillkit.course import learner
from distillkit.course.quizzes import quizzes
from distillkit.course.showing import Shown, say, show
from distillkit.course.stopping import LEARNERS
from distillkit.course.words import SAID
from distillkit.errors import UserError

if TYPE_CHECKING:
    from distillkit.course.exercises.definition import Exercise
    from distillkit.course.verdict import Verdict

SWITCH = "DISTILLKIT_CHECK"
SEEDS = 2**31
"""So many other draws of cases there are, for answers that pass the one that is shown."""
DOTS = {"done": "●", "used the library": "◐", "not yet": "◐", "not started": "○"}


class NotDone(AssertionError):
    """A check that was not passed, where DISTILLKIT_CHECK=raise asks to be told."""


def check(number: str, answer: Any = None, *, seed: int | None = None) -> None:
    """Check your answer to an exercise: a function, or to predict, a value.

    It says *not started*, *not yet* (and which mistake it was, if it is a known one), *done*, or
    that the library was used. An answer that passes the cases which are shown meets others, drawn
    anew each time; a verdict that comes from those names their seed, with which they come again.
    """
    if threading.current_thread().name == LEARNERS:
        raise UserError(SAID["inside"])  # told as what their function raised
    exercise = _exercise(number)
    if exercise is None:
        return
    verdict = _judged(exercise, answer, secrets.randbelow(SEEDS) + 1 if seed is None else seed)

    def note(progress: learner.Progress) -> None:
        record = progress.of(exercise.number)
        if verdict.state != "not started":
            record.checks += 1
            record.state = "done" if record.state == "done" else verdict.state

    learner.update(note)
    show(verdict)
    if _raises() and verdict.state != "done":
        raise NotDone(str(verdict))


def _judged(exercise: Exercise, answer: Any, seed: int) -> Verdict:
    """The verdict, whatever strange thing was given."""
    from distillkit.course.judging import examine
    from distillkit.course.verdict import Verdict

    try:
        return examine(exercise, answer, seed)
    except Exception as problem:
        why = type(problem).__name__
        return Verdict(exercise, "not yet", [SAID["beyond us"].format(why=why)])


def hint(number: str) -> None:
    """Show the next hint for an exercise, one more each time."""
    exercise = _exercise(number)
    if exercise is None:
        return
    count = len(exercise.hints)

    def take(progress: learner.Progress) -> int:
        record = progress.of(exercise.number)
        before = record.hints
        record.hints = min(before + 1, count)
        return before

    before = learner.update(take)
    for place, text in enumerate(exercise.hints[: before + 1], start=1):
        say(SAID["hint"].format(number=place, count=count, text=text))
    if before >= count:
        say(SAID["no more hints"].format(number=exercise.number))


def solution(number: str) -> None:
    """Show one way to solve an exercise; while hints are unread, only when asked twice."""
    exercise = _exercise(number)
    if exercise is None:
        return

    def ask(progress: learner.Progress) -> int:
        record = progress.of(exercise.number)
        record.solution_asked += 1
        ready = record.state == "done" or record.solution_asked > 1
        return 0 if ready else len(exercise.hints) - record.hints

    if unread := learner.update(ask):
        say(SAID["hints left"].format(count=unread, number=exercise.number))
        return
    source = _solution_source(exercise)
    if source is None:
        say(SAID["no solutions"])
        return
    head = SAID["solution"].format(number=exercise.number)
    show(Shown(f"{head}\n\n{source}", f"{escape(head)}<pre>{escape(source)}</pre>"))


def progress() -> None:
    """Show where you are: a line for each exercise, chapter by chapter."""
    from distillkit.course.exercises import all_exercises

    kept = learner.read()
    rows = [_row(exercise, kept) for exercise in all_exercises()]
    done = sum(dots == DOTS["done"] for dots, *_ in rows)
    total = SAID["progress"].format(done=done, count=len(rows))
    marks = [
        f"{chapter}: "
        + SAID["quizzes"].format(right=kept.quizzes.get(chapter, 0), count=len(asked))
        for chapter, asked in quizzes().items()
    ]
    width = max((len(title) for *_, title, _ in rows), default=0)
    lines = [
        f"{dots} {number:>5}  {title:{width}}  {note}".rstrip()
        for dots, number, title, note in rows
    ]
    where = SAID["kept in"].format(path=learner.path())
    text = "\n".join([total, *lines, "  ".join(marks), where])
    cells = "".join(
        "<tr>" + "".join(f'<td align="left">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    foot = "<br>".join(escape(line) for line in ("  ".join(marks), where))
    show(Shown(text, f"<b>{escape(total)}</b><table>{cells}</table>{foot}"))


def reset(number: str | None = None) -> None:
    """Forget what you did about one exercise, or about everything."""
    number = None if number is None else str(number)
    if number is not None and _exercise(number) is None:
        return

    def forget(progress: learner.Progress) -> None:
        if number is None:
            progress.exercises.clear()
            progress.quizzes.clear()
        else:
            progress.exercises.pop(number, None)

    learner.update(forget)
    say(SAID["forgotten"].format(what=number or SAID["everything"]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`distillkit progress` takes none."""


def main(args: argparse.Namespace) -> int:
    """`distillkit progress`: show where you are."""
    progress()
    return 0


def _exercise(number: str) -> Exercise | None:
    """The exercise; where there is none, that is said, and nothing raised."""
    from distillkit.course.exercises import exercise

    try:
        return exercise(str(number))
    except UserError as problem:
        if _raises():
            raise
        say(str(problem))
        return None


def _raises() -> bool:
    return os.environ.get(SWITCH) == "raise"


def _row(exercise: Exercise, kept: learner.Progress) -> tuple[str, str, str, str]:
    record = kept.exercises.get(exercise.number, learner.Record())
    notes = [SAID[record.state]] if record.state in SAID else []
    if record.hints:
        key = "one hint" if record.hints == 1 else "hints taken"
        notes.append(SAID[key].format(count=record.hints))
    if record.solution_asked > 1:
        notes.append(SAID["seen solution"])
    dots = DOTS.get(record.state, DOTS["not started"])
    return dots, exercise.number, exercise.title, ", ".join(notes)


def _solution_source(exercise: Exercise) -> str | None:
    """The cell that solves an exercise, from the notebooks beside the package or this notebook."""
    from distillkit.course.building import solved_cell

    for path in _solution_notebooks(exercise.chapter):
        if source := solved_cell(path, exercise.number):
            return source
    return None


def _solution_notebooks(chapter: str) -> Iterator[Path]:
    from distillkit.course.notebooks import ROOT

    for folder in (ROOT, Path.cwd(), Path.cwd().parent):
        yield from sorted((folder / "solutions").glob(f"{chapter}_*.ipynb"))
