"""What the learner has done so far: a small JSON file in the user's own data folder.

Nothing leaves the machine. The file appears whole or not at all; one that is damaged is set aside,
never lost, and never a reason to stop. While it cannot be read or written, changes are remembered,
and made up for as soon as it can.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from distillkit.course.words import SAID

HOME = "DISTILLKIT_HOME"
PATIENCE = 2.0
"""Seconds to wait for another notebook that writes."""
FORMAT = "distillkit progress 1"
QUESTIONS = 5
"""Of the quiz of each chapter."""


@dataclass
class Record:
    """What was done about one exercise."""

    state: str = "not started"
    checks: int = 0
    hints: int = 0
    solution_asked: int = 0


@dataclass
class Progress:
    """Everything that is kept: exercises by number, right answers of quizzes by chapter."""

    exercises: dict[str, Record] = field(default_factory=dict)
    quizzes: dict[str, int] = field(default_factory=dict)

    def of(self, number: str) -> Record:
        """The record of an exercise, made where there is none."""
        return self.exercises.setdefault(number, Record())


Change = Callable[[Progress], Any]

_unkept: dict[Path, list[Change]] = {}
"""Changes that are not in their file yet, as it could not be read or written."""


def path() -> Path:
    """Where progress is kept."""
    if chosen := os.environ.get(HOME):
        return Path(os.path.expanduser(chosen)) / "progress.json"
    home = Path(os.path.expanduser("~"))  # stays "~" for a user who has none
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "distillkit" / "progress.json"


def read(say: Callable[[str], None] = print) -> Progress:
    """What was done so far; a file that cannot be read is said, and a damaged one set aside."""
    try:
        progress = _read(say)
    except OSError as problem:
        _say_once(problem, say)
        progress = Progress()
    for change in _unkept.get(path(), []):
        change(progress)
    return progress


def update(change: Change, say: Callable[[str], None] = print) -> Any:
    """Read, change and write; what `change` returns. Two notebooks take turns."""
    with _alone():
        try:
            progress = _read(say)
            for earlier in _unkept.get(path(), []):
                earlier(progress)
            result = change(progress)
            _write(progress)
        except OSError as problem:
            _say_once(problem, say)
            result = change(read(say))
            _unkept.setdefault(path(), []).append(change)
        else:
            _unkept.pop(path(), None)
    return result


def _say_once(problem: OSError, say: Callable[[str], None]) -> None:
    """Say that the file cannot be read or written, and begin to remember what is not in it."""
    if path() not in _unkept:
        _unkept[path()] = []
        say(SAID["not kept"].format(path=path(), why=problem.strerror or problem))


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of the file; where there can be none, go on without."""
    lock = FileLock(path().with_name("progress.lock"), timeout=PATIENCE)
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # a time-out is an OSError too
        pass
    try:
        yield
    finally:
        lock.release()


def _read(say: Callable[[str], None]) -> Progress:
    """What the file holds; OSError where it cannot be read, and set aside if it is damaged."""
    _folder()
    try:
        return _parsed(json.loads(path().read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        return Progress()
    except OSError:
        raise
    except Exception as problem:  # a foreign file can be wrong in any way
        place = _set_aside()
        why = " ".join(f"{type(problem).__name__}: {problem}".split())
        say(SAID["set aside"].format(why=why, path=place))
        return Progress()


def _folder() -> Path:
    """The folder of the file; OSError for a user who has none, or does not exist."""
    if (user := path().parts[0]).startswith("~"):
        key = "no home" if user == "~" else "no such user"
        raise OSError(errno.ENOENT, SAID[key].format(user=user))
    return path().parent


def _parsed(content: Any) -> Progress:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}")
    records = {str(number): Record(**each) for number, each in content["exercises"].items()}
    for each in records.values():
        counts = (each.checks, each.hints, each.solution_asked)
        if not isinstance(each.state, str) or not all(map(_is_count, counts)):
            raise ValueError("a record of the wrong kind")
    quizzes = {str(chapter): right for chapter, right in content["quizzes"].items()}
    if not all(_is_count(right) and right <= QUESTIONS for right in quizzes.values()):
        raise ValueError("a quiz with more right answers than questions")
    return Progress(records, quizzes)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _write(progress: Progress) -> None:
    final = path()
    aside = final.with_name(f"{final.name}.{os.getpid()}.part")
    _folder().mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, **asdict(progress)}
    aside.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(aside, final)


def _set_aside() -> Path:
    """Give the file another name, which is returned."""
    number = 1
    while (place := path().with_name(f"progress.damaged-{number}.json")).exists():
        number += 1
    os.replace(path(), place)
    return place
