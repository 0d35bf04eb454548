"""Run a job in a thread of its own, for so many seconds at most.

A thread works on every platform and in every notebook; signals work in the main thread of Unix
only. One that takes too long is stopped by an exception raised inside it, which reaches Python code
within moments; code that sits in C (a long sleep) it cannot reach, and then we say so. One call in
C that never ends and lets no other thread run, as `sum(itertools.repeat(1))`, holds us up as well:
only a process of its own could be ended then, and starting one takes seconds.

**What a second is.** On a machine that does other things too, time by the clock would refuse a good
function, and computing time alone would never end a sleep. So a second is one of computing (of this
process, on one core), and waiting counts by half: an endless loop is stopped after its seconds, an
endless sleep after twice as many. The time in which a module is loaded is not the learner's: the
first optimizer of a process makes torch load its compiler, 1 to 2 s, and an import that is broken
off would stay broken. Only loading is free, not asking again for what has been loaded, and
MOST_LOADING is its end.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LEARNERS = "an answer that is checked"
"""The name of the thread."""
GRACE = 0.3
"""Seconds that a function which is being stopped gets to end."""
WAITING = 0.5
"""What a second of waiting counts."""
MOST_LOADING = 10.0
"""Seconds that the modules may take which a function loads; longer, and something else is wrong."""


@dataclass
class Stopped:
    """How a job ended: `seconds` are those that count."""

    seconds: float = 0.0
    late: bool = False
    stuck: bool = False


class Left(Exception):
    """The function ended the program, as sys.exit() does."""


class _TimeIsUp(BaseException):
    """Raised inside the learner's thread; no Exception, so that `except Exception` lets it by."""


def within(seconds: float, job: Callable[[], None], left: Callable[[Left], None]) -> Stopped:
    """Run a job and see how it ended; what it lets out other than an Exception goes to `left`."""

    stopped = Stopped()
    thread = _Thread(job, left)
    thread.start()
    try:
        stopped.seconds = _wait(thread, seconds)
    finally:  # also when the learner interrupts the kernel
        if thread.works():
            stopped.late = True
            stopped.stuck = not _stop(thread)
    return stopped


class _Thread(threading.Thread):
    """A thread that says itself whether it works.

    `is_alive` does not tell: when `join` is interrupted, Python 3.11 takes a thread for dead that
    runs, and an endless loop would go on unseen.
    """

    def __init__(self, job: Callable[[], None], left: Callable[[Left], None]) -> None:
        super().__init__(name=LEARNERS, daemon=True)
        self._job, self._left = job, left
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            self._job()
        except _TimeIsUp:
            pass
        except BaseException as error:  # sys.exit(), say
            self._left(Left(type(error).__name__))
        finally:
            self._ended.set()

    def works(self) -> bool:
        return self.is_alive() and not self._ended.is_set()

    def wait(self, seconds: float) -> None:
        self._ended.wait(seconds)


def _wait(thread: _Thread, seconds: float) -> float:
    """Wait for a thread, at most so long; the seconds it took."""
    took = loading = 0.0
    while thread.works() and took < seconds and loading < MOST_LOADING:
        start, computed = time.perf_counter(), time.process_time()
        thread.wait(min(0.05, seconds - took))
        passed, computed = time.perf_counter() - start, time.process_time() - computed
        counted = min(passed, max(computed, WAITING * passed))
        if _loads(thread):
            loading += counted
        else:
            took += counted
    return took


def _loads(thread: threading.Thread) -> bool:
    """Whether a thread is in the middle of loading a module, for the first time."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        code = frame.f_code
        if (code.co_filename, code.co_name) == ("<frozen importlib._bootstrap>", "_load_unlocked"):
            return True
        frame = frame.f_back
    return False


def _stop(thread: _Thread) -> bool:
    """Raise _TimeIsUp in a thread, again and again, as it may be caught; whether it ended."""
    end = time.monotonic() + GRACE
    while thread.works() and time.monotonic() < end:
        _raise_in(thread.ident, ctypes.py_object(_TimeIsUp))
        thread.wait(0.02)
    if thread.works():
        _raise_in(thread.ident, None)
    return not thread.works()


def _raise_in(ident: int | None, error: Any) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident or 0), error)
