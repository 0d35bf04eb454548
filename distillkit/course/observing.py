"""Run a learner's function and see what it does, without being harmed by it.

It runs in a thread of its own, which works on every platform and in every notebook; signals work in
the main thread of Unix only. A thread that takes too long is stopped by an exception raised inside
it, which reaches Python code within moments; code that sits in C (a long sleep) it cannot reach,
and then we say so.
"""

from __future__ import annotations

import ctypes
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case

GRACE = 0.3
"""Seconds that a function which is being stopped gets to end."""
MOST_PRINTED = 200


@dataclass
class Outcome:
    """What one call gave: a value, or an exception; and which arguments it changed (by place)."""

    value: Any = None
    error: Exception | None = None
    changed: tuple[int, ...] = ()


@dataclass
class Run:
    """What a guarded run showed beside its outcomes."""

    late: bool = False
    stuck: bool = False
    printed: str = ""
    used: str = ""
    outcomes: list[Outcome] = field(default_factory=list)


def observe(
    function: Callable[..., Any],
    cases: list[Case],
    *,
    seconds: float,
    watched: Mapping[CodeType, str] | None = None,
) -> Run:
    """Call a function with copies of the arguments of each case, within `seconds` for all of them.

    watched: code objects of the library -> the name to say when one of them runs.
    """
    run = Run()

    def job() -> None:
        for case in cases:
            run.outcomes.append(call(function, case))

    with _captured() as printed:
        _guard(job, run, seconds, watched or {})
    run.printed = printed.getvalue()
    return run


def call(function: Callable[..., Any], case: Case) -> Outcome:
    """One call, unguarded: with copies of the arguments, which are looked at afterwards."""
    given = tuple(_copy(argument) for argument in case.arguments)
    try:
        value = function(*given)
    except Exception as error:
        return Outcome(error=error)
    pairs = enumerate(zip(case.arguments, given, strict=True))
    return Outcome(value, changed=tuple(i for i, (old, new) in pairs if not _untouched(old, new)))


class _TimeIsUp(BaseException):
    """Raised inside the learner's thread; no Exception, so that `except Exception` lets it by."""


def _guard(
    job: Callable[[], None], run: Run, seconds: float, watched: Mapping[CodeType, str]
) -> None:
    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in watched:
            run.used = watched[frame.f_code]

    def work() -> None:
        if watched:
            sys.setprofile(watch)
        try:
            job()
        except _TimeIsUp:
            pass
        except BaseException as error:  # sys.exit(), say
            run.outcomes.append(Outcome(error=RuntimeError(f"{type(error).__name__}: {error}")))
        finally:
            sys.setprofile(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:  # also when the learner interrupts the kernel
        if thread.is_alive():
            run.late = True
            run.stuck = not _stop(thread)


def _stop(thread: threading.Thread) -> bool:
    """Raise _TimeIsUp in a thread, again and again, as it may be caught; whether it ended."""
    end = time.monotonic() + GRACE
    while thread.is_alive() and time.monotonic() < end:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TimeIsUp)
        )
        thread.join(0.02)
    return not thread.is_alive()


class _Short(io.StringIO):
    """Keeps the beginning of what is written: an endless loop may print for ever."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, MOST_PRINTED - self.tell())])
        return len(text)


@contextmanager
def _captured() -> Iterator[io.StringIO]:
    shown, sys.stdout = sys.stdout, _Short()
    try:
        yield sys.stdout
    finally:
        sys.stdout = shown


def _copy(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.clone()
    if isinstance(argument, list | tuple):
        return type(argument)(_copy(part) for part in argument)
    if isinstance(argument, dict):
        return {key: _copy(part) for key, part in argument.items()}
    return argument


def _untouched(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return old.shape == new.shape and torch.equal(old.nan_to_num(), new.nan_to_num())
    if isinstance(old, list | tuple):
        return len(old) == len(new) and all(map(_untouched, old, new))
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_untouched(old[key], new[key]) for key in old)
    return True
