"""Run a learner's function and see what it does, without being harmed by it.

It runs in a thread of its own, which works on every platform and in every notebook; signals work in
the main thread of Unix only. A thread that takes too long is stopped by an exception raised inside
it, which reaches Python code within moments; code that sits in C (a long sleep) it cannot reach,
and then we say so. The time in which modules are imported is not the learner's: the first optimizer
of a process makes torch import for seconds, and an import that is broken off would stay broken.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case

GRACE = 0.3
"""Seconds that a function which is being stopped gets to end."""
MOST_PRINTED = 200
MOST_IMPORTING = 30.0
"""Seconds that imports may take; longer, and something else is wrong."""


@dataclass
class Outcome:
    """What one call gave: a value, or an exception; and which arguments it changed (by place)."""

    value: Any = None
    error: Exception | None = None
    changed: tuple[int, ...] = ()


@dataclass
class Run:
    """What a guarded run showed beside its outcomes; `seconds` are those that count."""

    late: bool = False
    stuck: bool = False
    seconds: float = 0.0
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
        run.printed = printed.getvalue().decode(errors="ignore")
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


class Left(Exception):
    """The function ended the program, as sys.exit() does."""


class _TimeIsUp(BaseException):
    """Raised inside the learner's thread; no Exception, so that `except Exception` lets it by."""


def _guard(
    job: Callable[[], None], run: Run, seconds: float, watched: Mapping[CodeType, str]
) -> None:
    def work() -> None:
        try:
            with _watching(watched, run):
                job()
        except _TimeIsUp:
            pass
        except BaseException as error:  # sys.exit(), say
            run.outcomes.append(Outcome(error=Left(type(error).__name__)))

    thread = threading.Thread(target=work, daemon=True)
    with _same_surroundings():
        thread.start()
        try:
            run.seconds = _wait(thread, seconds)
        finally:  # also when the learner interrupts the kernel
            if thread.is_alive():
                run.late = True
                run.stuck = not _stop(thread)


@contextmanager
def _watching(watched: Mapping[CodeType, str], run: Run) -> Iterator[None]:
    """Note in `run` when code of the library runs, in this thread and in those begun meanwhile."""

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and not run.used and frame.f_code in watched:
            run.used = watched[frame.f_code]

    if not watched:
        yield
        return
    before = threading.getprofile()
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(before)


def _wait(thread: threading.Thread, seconds: float) -> float:
    """Wait for a thread, at most so long; the seconds it took. Imports do not count."""
    took = imports = 0.0
    while thread.is_alive() and took < seconds and imports < MOST_IMPORTING:
        start = time.perf_counter()
        thread.join(min(0.05, seconds - took))
        passed = time.perf_counter() - start
        if _imports(thread):
            imports += passed
        else:
            took += passed
    return took


def _imports(thread: threading.Thread) -> bool:
    """Whether a thread is in the middle of an import."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def _same_surroundings() -> Iterator[None]:
    """Undo what a function may change around itself: the folder, and torch's default dtype."""
    dtype = torch.get_default_dtype()
    folder = None
    with suppress(OSError):  # the folder may have been deleted
        folder = os.getcwd()
    try:
        yield
    finally:
        if folder is not None:
            os.chdir(folder)
        torch.set_default_dtype(dtype)


def _stop(thread: threading.Thread) -> bool:
    """Raise _TimeIsUp in a thread, again and again, as it may be caught; whether it ended."""
    end = time.monotonic() + GRACE
    while thread.is_alive() and time.monotonic() < end:
        _raise_in(thread.ident, ctypes.py_object(_TimeIsUp))
        thread.join(0.02)
    if not thread.is_alive():
        return True
    _raise_in(thread.ident, None)
    _settle()
    return False


def _raise_in(ident: int | None, error: Any) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident or 0), error)


def _settle() -> None:
    """Let this thread take an exception in place of the one that was taken back.

    While one is announced that nobody takes, CPython 3.11 keeps every profiled thread waiting, and
    the next check would be one.
    """
    with suppress(_TimeIsUp):
        _raise_in(threading.get_ident(), ctypes.py_object(_TimeIsUp))
        time.sleep(0)
        for _ in range(1000):
            pass


class _Short(io.BytesIO):
    """Keeps the beginning of what is written: an endless loop may print for ever."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: max(0, MOST_PRINTED - self.tell())])
        return len(data)


@contextmanager
def _captured() -> Iterator[_Short]:
    """Take what is printed, text or bytes."""
    kept = _Short()
    text = io.TextIOWrapper(kept, encoding="utf-8", errors="replace", write_through=True)
    shown, sys.stdout = sys.stdout, text
    try:
        yield kept
    finally:
        sys.stdout = shown
        with suppress(ValueError):  # a thread that goes on may write until now
            text.detach()


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
        return _kind(old) == _kind(new) and torch.equal(old.nan_to_num(), new.nan_to_num())
    if isinstance(old, list | tuple):
        return len(old) == len(new) and all(map(_untouched, old, new))
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_untouched(old[key], new[key]) for key in old)
    return True


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.requires_grad
