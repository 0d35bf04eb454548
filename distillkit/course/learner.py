"""What the learner has done so far: a small JSON file in the user's own data folder.

Nothing leaves the machine. The file appears whole or not at all; one that cannot be read is set
aside, never lost, and never a reason to stop.
"""

from __future__ import annotations

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


_unkept: dict[Path, Progress] = {}
"""The progress of this session, by the file that cannot be written."""


def path() -> Path:
    """Where progress is kept."""
    if chosen := os.environ.get(HOME):
        return Path(os.path.expanduser(chosen)) / "progress.json"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "distillkit" / "progress.json"


def read(say: Callable[[str], None] = print) -> Progress:
    """What was done so far; a file that cannot be read is set aside, and that is said."""
    if path() in _unkept:
        return _unkept[path()]
    try:
        return _parsed(json.loads(path().read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Progress()
    except OSError as problem:
        return _keep_in_session(Progress(), problem, say)
    except Exception as problem:  # a foreign file can be wrong in any way
        return _set_aside(problem, say)


def update(change: Callable[[Progress], Any], say: Callable[[str], None] = print) -> Any:
    """Read, change and write; what `change` returns. Two notebooks take turns."""
    with _alone():
        progress = read(say)
        result = change(progress)
        if path() not in _unkept:
            _write(progress, say)
    return result


@contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of the file; where there can be none, go on without."""
    lock = FileLock(path().with_name("progress.lock"), timeout=PATIENCE)
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # a time-out is an OSError too
        pass
    try:
        yield
    finally:
        lock.release()


def _parsed(content: Any) -> Progress:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}")
    records = {str(number): Record(**each) for number, each in content["exercises"].items()}
    for each in records.values():
        if not isinstance(each.state, str) or not all(
            type(count) is int and count >= 0
            for count in (each.checks, each.hints, each.solution_asked)
        ):
            raise ValueError("a record of the wrong kind")
    return Progress(records, {str(k): int(v) for k, v in content["quizzes"].items()})


def _write(progress: Progress, say: Callable[[str], None]) -> None:
    final = path()
    aside = final.with_name(f"{final.name}.{os.getpid()}.part")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, **asdict(progress)}
        aside.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(aside, final)
    except OSError as problem:
        _keep_in_session(progress, problem, say)


def _keep_in_session(progress: Progress, problem: OSError, say: Callable[[str], None]) -> Progress:
    _unkept[path()] = progress
    say(SAID["not kept"].format(path=path(), why=problem.strerror or problem))
    return progress


def _set_aside(problem: Exception, say: Callable[[str], None]) -> Progress:
    found = path()
    number = 1
    while (place := found.with_name(f"progress.damaged-{number}.json")).exists():
        number += 1
    try:
        os.replace(found, place)
    except OSError as stuck:
        return _keep_in_session(Progress(), stuck, say)
    why = " ".join(f"{type(problem).__name__}: {problem}".split())
    say(SAID["set aside"].format(why=why, path=place))
    return Progress()
