"""Keep what a learner's function does to its surroundings from going on after it.

What it prints is held back, to be told. The folder, the filters of warnings, what SETTINGS lists
and the functions of torch that it replaced are put back. Not held back: what code in C writes past
Python's streams.
"""

from __future__ import annotations

import inspect
import io
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

MOST_PRINTED = 200
HOUSES = (torch, torch.nn, torch.nn.functional, torch.optim, torch.Tensor)
"""Whose functions are put back: one that is replaced would change every check after it."""


SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
    (sys.getrecursionlimit, sys.setrecursionlimit),
)
"""How each is read and set."""


@contextmanager
def same_surroundings() -> Iterator[list[str]]:
    """Undo what changed meanwhile; the functions of torch that were put back, by name."""
    settings = [(put, get()) for get, put in SETTINGS]
    houses = [dict(vars(house)) for house in HOUSES]
    replaced: list[str] = []
    folder = None
    with suppress(OSError):  # the folder may have been deleted
        folder = os.getcwd()
    try:
        with warnings.catch_warnings():
            yield replaced
    finally:
        if folder is not None:
            os.chdir(folder)
        for put, before in settings:
            put(before)
        for house, before in zip(HOUSES, houses, strict=True):
            replaced += _put_back(house, before)


def _put_back(house: Any, before: dict[str, Any]) -> list[str]:
    """Put the public functions of a module or class back; their names.

    What is new stays (torch itself imports late), except in a class what hides something inherited.
    """
    now, place = dict(vars(house)), f"{house.__module__}." if isinstance(house, type) else ""
    changed = [
        name
        for name, each in before.items()
        if now.get(name) is not each
        and callable(each)
        and not name.startswith("_")
        and not _wrapped_by_torch(now.get(name), each)
    ]
    for name in changed:
        setattr(house, name, before[name])
    inherited = {name for base in getattr(house, "__mro__", ())[1:] for name in vars(base)}
    hiding = sorted((now.keys() - before.keys()) & inherited)
    for name in hiding:
        delattr(house, name)
    return [f"{place}{house.__name__}.{name}" for name in [*changed, *hiding]]


def _wrapped_by_torch(new: Any, old: Any) -> bool:
    """Whether torch itself wrapped one of its functions, as it does when its compiler loads."""
    code = getattr(new, "__code__", None)
    at_home = code is not None and code.co_filename.startswith(os.path.dirname(torch.__file__))
    return at_home and inspect.unwrap(new) is old


class _Short(io.BytesIO):
    """Keeps the beginning of what is written: an endless loop may print for ever."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: max(0, MOST_PRINTED - self.tell())])
        return len(data)

    def close(self) -> None:
        """Stays open: `getvalue` is still to come."""


class _Split:
    """A stream which is one for the threads that began before it, and another for those after."""

    def __init__(self, before: Any, after: Any) -> None:
        self._threads = set(threading.enumerate())
        self._before, self._after = before, after

    def __getattr__(self, name: str) -> Any:
        old = threading.current_thread() in self._threads
        return getattr(self._before if old else self._after, name)


@contextmanager
def captured() -> Iterator[_Short]:
    """Take what threads that begin meanwhile print, text or bytes, as results or as errors.

    A thread that an earlier check had to leave behind goes on printing where it did.
    """
    kept = _Short()
    text = io.TextIOWrapper(kept, encoding="utf-8", errors="replace", write_through=True)
    shown = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Split(each, text) for each in shown)
    try:
        yield kept
    finally:
        sys.stdout, sys.stderr = shown
        with suppress(ValueError):  # a thread that goes on may write until now
            text.detach()
