"""Notice that a learner's function calls the course's own code.

While a run lasts, every watched function has a stand-in's code, which makes a note and goes on to
the function's own. So it does not matter in which thread it is called, under which name it was
imported, or what the learner's code does to Python's profiler. A call counts where it comes from
outside: properties, oracles and the library itself call what they like.

Not noticed, since it would cost more than it tells: a copy (its source pasted into a cell, a module
loaded a second time, a function made anew from the code of one), and what another process does. A
call by somebody else's thread in the same moment would count as the learner's.
"""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

from distillkit import losses
from distillkit.course.exercises import loops, losses_by_hand, whole_loss
from distillkit.course.exercises.definition import Exercise

ROOMS = (losses, loops, losses_by_hand, whole_loss)
"""What losses are made of: nothing in them may be called, their private pieces neither."""
PACKAGE = str(Path(losses.__file__).parent)
INSIDE = (str(Path(loops.__file__).parent), str(losses.__file__))
"""Code that may call what is watched: that of exercises, and the losses themselves."""
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def pieces(exercise: Exercise) -> set[FunctionType]:
    """The functions of which an answer must not be made.

    They are all of ROOMS, the oracle, what the exercise names as its library, and the private
    functions of the rooms that this comes from.
    """
    found = {each for room in ROOMS for each in _functions(room)} | set(_own(exercise.oracle))
    for each in exercise.library:
        found |= set(_own(each if callable(each) and not _is_object(each) else type(each)))
        room = sys.modules[getattr(each, "__module__", type(each).__module__)]
        found |= {piece for piece in _functions(room) if piece.__name__.startswith("_")}
    return found


@contextmanager
def watching(functions: Iterable[FunctionType]) -> Iterator[list[str]]:
    """Note meanwhile the name of the first of them that is called from outside, in any thread."""
    called: list[str] = []
    before = [(each, each.__code__, each.__kwdefaults__) for each in functions]
    try:
        for function, _, defaults in before:
            function.__kwdefaults__ = {**(defaults or {}), "stand_in": _noting(function, called)}
            function.__code__ = _through.__code__
        yield called
    finally:
        for function, code, defaults in before:
            function.__code__ = code
            function.__kwdefaults__ = defaults


def _through(*args: Any, stand_in: Callable[..., Any], **kwargs: Any) -> Any:
    """What runs in the place of a watched function, whose default `stand_in` is."""
    return stand_in(*args, **kwargs)


def _noting(function: FunctionType, called: list[str]) -> Callable[..., Any]:
    own = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    own.__kwdefaults__ = function.__kwdefaults__

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if not called and _from_outside(sys._getframe(2)):
            called.append(_name(function, args))
        return own(*args, **kwargs)

    return stand_in


def _from_outside(frame: FrameType | None) -> bool:
    """Whether the code that called, through installed packages or not, is none of INSIDE."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(INSIDE):
            return False
        if file.startswith(PACKAGE) or not file.startswith(INSTALLED):
            return True
        frame = frame.f_back
    return True


def _name(function: FunctionType, args: tuple[Any, ...]) -> str:
    """What to call a function: a divergence by its name, others by their own."""
    if "." not in function.__qualname__ or not args:
        return function.__name__
    said = getattr(args[0], "name", None)
    return said if isinstance(said, str) else function.__qualname__


def _is_object(each: Any) -> bool:
    """Whether it is a divergence: an object to be called, whose class has its code."""
    return not inspect.isroutine(each)


@cache
def _functions(room: ModuleType) -> tuple[FunctionType, ...]:
    """The functions of a module, and the methods of its classes."""
    here = [each for each in vars(room).values() if _module(each) == room.__name__]
    return tuple(function for each in here for function in _own(each))


def _own(each: Any) -> Iterator[FunctionType]:
    """The function itself, or the methods of a class, as far as their code can be replaced."""
    members = list(vars(each).values()) if inspect.isclass(each) else [each]
    for member in members:
        function = inspect.unwrap(getattr(member, "__func__", member))
        if not inspect.isfunction(function) or function.__code__.co_freevars:
            continue  # one that has free variables takes no other code
        if not function.__name__.startswith("__") or function.__name__ == "__call__":
            yield function


def _module(each: Any) -> str:
    return str(getattr(each, "__module__", ""))
