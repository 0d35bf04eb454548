"""Run a learner's function and see what it does, without being harmed by it.

How it is stopped is in `stopping`, what it must not leave behind in `surroundings`, and how calls
of the library are noticed in `watching`.
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case
from distillkit.course.stopping import within
from distillkit.course.surroundings import captured, same_surroundings
from distillkit.course.watching import watching

MOST_TOLD = 300
"""So many characters of an error's message: one may hold a tensor."""


@dataclass
class Outcome:
    """What one call gave: a value, or an exception; and which arguments it changed (by place)."""

    value: Any = None
    error: Exception | None = None
    changed: tuple[int, ...] = ()


@dataclass
class Run:
    """What a guarded run showed beside its outcomes; `seconds` are those that count.

    used: a function of the library that was called. replaced: functions of torch that were.
    """

    late: bool = False
    stuck: bool = False
    seconds: float = 0.0
    printed: str = ""
    used: str = ""
    replaced: tuple[str, ...] = ()
    outcomes: list[Outcome] = field(default_factory=list)


def observe(
    function: Callable[..., Any],
    cases: list[Case],
    *,
    seconds: float,
    enough: float = float("inf"),
    watched: Iterable[FunctionType] = (),
) -> Run:
    """Call a function with copies of the arguments of each case, within `seconds` for all of them.

    After `enough` seconds no further case begins. watched: functions whose calls are noted.
    """
    run = Run()
    end = time.perf_counter() + enough

    def job() -> None:
        for case in cases:
            if run.outcomes and time.perf_counter() > end:
                break
            run.outcomes.append(call(function, case))

    with captured() as printed:
        with watching(watched) as used, same_surroundings() as replaced:
            stopped = within(seconds, job, lambda left: run.outcomes.append(Outcome(error=left)))
        run.printed = printed.getvalue().decode(errors="ignore")
    run.seconds, run.late, run.stuck = stopped.seconds, stopped.late, stopped.stuck
    run.used, run.replaced = "".join(used), tuple(replaced)
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


def message_of(error: Exception) -> str:
    """The first line of an error's message, cut where it is long."""
    line = str(error).partition("\n")[0]
    return line if len(line) <= MOST_TOLD else f"{line[:MOST_TOLD]} …"


def lines_of(function: Callable[..., Any], error: Exception) -> list[int]:
    """The lines of a function (1 is its `def`) through which an error went."""
    code = getattr(function, "__code__", None)
    frames = traceback.walk_tb(error.__traceback__)
    return [no - code.co_firstlineno + 1 for frame, no in frames if code and frame.f_code is code]


def takes(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Whether a function can be called with such arguments, as far as it tells."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # one in C does not tell
        return True
    return True


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
