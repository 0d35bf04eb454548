"""The judge: what is an answer worth, and if it is wrong, which mistake was made?

An answer's *prints* are the results of all cases, and the properties that do not hold. A mistake is
named when the prints of the learner's function are those of one mutant. Nothing is shown or kept
here: `checking` does that.
"""

from __future__ import annotations

import inspect
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from distillkit.course.bench import Bench, as_function, comparable
from distillkit.course.comparing import Normal, differs, first_difference, is_complex
from distillkit.course.describing import described, kind, members
from distillkit.course.exercises.definition import Exercise, Property
from distillkit.course.observing import Outcome, lines_of, message_of, takes
from distillkit.course.predictions import spelled, unfit
from distillkit.course.stopping import Left
from distillkit.course.verdict import Beside, Verdict
from distillkit.course.words import SAID

_ONE = threading.RLock()
"""One verdict at a time: streams and watched functions are those of the whole process."""


@contextmanager
def _undisturbed() -> Iterator[None]:
    """One verdict at a time, on the CPU and with gradients, whatever the notebook has switched."""
    with _ONE, torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        yield


@_undisturbed()
def judge(
    exercise: Exercise,
    answer: Any,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    seconds: float | None = None,
) -> Verdict:
    """The verdict on an answer, with cases drawn from `seed` in `dtype`.

    seconds: what the cases may take together, by default those of the exercise.
    """
    function = _function(exercise, answer)
    if isinstance(function, Verdict):
        return function
    return _told(Bench(exercise, function, seed, dtype, seconds or exercise.seconds))


@_undisturbed()
def examine(exercise: Exercise, answer: Any, seed: int) -> Verdict:
    """The verdict on the cases that are shown, and if they are right, on others of a seed.

    Of those, as many are tried as there is time for, one at least: whoever is slow, and right, is
    told so, and done.
    """
    function = _function(exercise, answer)
    if isinstance(function, Verdict):
        return function
    shown = Bench(exercise, function, 0, seconds=exercise.seconds)
    verdict = _told(shown)
    if verdict.state != "done" or exercise.kind == "predict":
        return verdict
    others = shown.again(seed)
    found = _told(others)
    if found.state != "done":
        found.sentences.append(_said("drawn", exercise, seed=seed))
        return found
    if others.unfinished:
        each = shown.run.seconds / len(shown.cases)
        verdict.sentences.append(_said("slow", exercise, seconds=each))
    return verdict


def _function(exercise: Exercise, answer: Any) -> Callable[..., Any] | Verdict:
    """An answer as a function, or what is to be said of one that is of the wrong form."""
    if answer is Ellipsis:
        return Verdict(exercise, "not started", [_said("stub", exercise)])
    if exercise.kind == "predict":
        answer = spelled(exercise, answer) if exercise.choices else answer
        if sentence := unfit(exercise, answer):
            return Verdict(exercise, "not yet", [sentence])
    elif not callable(answer):
        name = getattr(exercise.given, "__name__", "function")
        return Verdict(exercise, "not yet", [_said("not a function", exercise, name=name)])
    return as_function(answer)


def _told(bench: Bench) -> Verdict:
    """The verdict, with what the answer did beside answering."""
    verdict = _judged(bench)
    if bench.run.printed:
        text = " ⏎ ".join(bench.run.printed.splitlines())
        verdict.sentences.append(_said("printed", bench.exercise, text=text))
    if bench.replaced:
        names = ", ".join(f"`{name}`" for name in sorted(bench.replaced))
        verdict.sentences.append(_said("replaced", bench.exercise, names=names))
    return verdict


def _judged(bench: Bench) -> Verdict:
    exercise, run = bench.exercise, bench.run
    first = bench.outcomes[0] if bench.outcomes else Outcome()
    if _is_stub(bench.function, first):
        return Verdict(exercise, "not started", [_said("stub", exercise)])
    if run.late:
        return _late(bench, "stuck" if run.stuck else "time")
    if exercise.given is not None and bench.like(exercise.given):
        return Verdict(exercise, "not started", [_said("as given", exercise)])
    place = bench.wrong()
    return _right(bench) if place is None else _wrong(bench, place)


def _right(bench: Bench) -> Verdict:
    exercise = bench.exercise
    if changed := _changed(bench):
        return Verdict(exercise, "not yet", [changed])
    failing = bench.failing(bench.function)
    if bench.late:
        return _late(bench, "stuck" if bench.stuck else "time at", what=bench.late.name)
    if failing:
        return _named(bench, failing) or _unheld(bench, failing[0])
    if bench.used:
        return Verdict(exercise, "used the library", [_library(bench)])
    return Verdict(exercise, "done", [_because(bench)])


def _wrong(bench: Bench, place: int) -> Verdict:
    beside = _beside(bench, place)
    if verdict := _named(bench, None):
        verdict.beside = beside
        return verdict
    sentences = [_problem(bench, place), _changed(bench)]
    verdict = Verdict(bench.exercise, "not yet", [each for each in sentences if each])
    if not verdict.sentences:
        verdict.sentences.append(_unknown(bench, beside))
    verdict.beside = beside
    return verdict


def _named(bench: Bench, failing: list[Property] | None) -> Verdict | None:
    found = bench.mistakes(failing)
    if not found:
        return None
    return Verdict(bench.exercise, "not yet", [found[0].sentence], mistake=found[0])


def _late(bench: Bench, key: str, **more: Any) -> Verdict:
    sentence = _said(key, bench.exercise, seconds=bench.exercise.seconds, **more)
    return Verdict(bench.exercise, "not yet", [sentence])


def _unheld(bench: Bench, failing: Property) -> Verdict:
    """The sentence of a property, and what the learner's function raised there, if it did."""
    sentences = [failing.sentence]
    if isinstance(bench.raised, Left) or (bench.raised and lines_of(bench.function, bench.raised)):
        sentences.append(_raised(bench, bench.raised, f"“{failing.name}”"))
    return Verdict(bench.exercise, "not yet", sentences)


# What the sentences are made of -------------------------------------------------------------------


def _said(key: str, exercise: Exercise, **values: Any) -> str:
    return SAID[key].format(number=exercise.number, **values)


def _library(bench: Bench) -> str:
    return _said("library", bench.exercise, name=bench.used)


def _because(bench: Bench) -> str:
    exercise, cases = bench.exercise, len(bench.cases)
    if exercise.kind == "predict":
        return _said("done case", exercise)
    count = len(exercise.properties)
    key = ("done because", "done and one", "done and more")[min(count, 2)]
    return _said(key, exercise, cases=cases, properties=count)


def _unknown(bench: Bench, beside: Beside | None) -> str:
    if bench.exercise.kind != "predict":
        return _said("closer" if beside else "not shown", bench.exercise)
    [goal] = bench.targets
    if isinstance(goal, Tensor):
        key = "wrong numbers" if goal.dim() else "wrong number"
    else:
        key = "wrong word" if isinstance(goal, str) else "wrong order"
    return _said(key, bench.exercise, yours=bench.outcomes[0].value)


def _changed(bench: Bench) -> str:
    names = list(inspect.signature(bench.exercise.oracle).parameters)
    for outcome in bench.outcomes:
        if outcome.changed:
            return _said("changed", bench.exercise, name=names[outcome.changed[0]])
    return ""


def _problem(bench: Bench, place: int) -> str:
    """Why nothing can be compared, if that is so."""
    outcome, goal, case = bench.outcomes[place], bench.targets[place], bench.cases[place].name
    exercise = bench.exercise
    if outcome.error is not None:
        return _raised(bench, outcome.error, case)
    if outcome.value is None:
        return _said("none", exercise)
    found = comparable(outcome.value)
    if found is None and is_complex(outcome.value):
        return _said("complex", exercise)
    if found is None or type(found) is not type(goal):
        return _said("type", exercise, found=kind(outcome.value), expected=described(goal))
    if isinstance(found, tuple) and len(found) != len(goal):
        return _said("length", exercise, case=case, found=len(found), expected=len(goal))
    case, found, goal = _part(bench, place)
    if not isinstance(found, Tensor) or not isinstance(goal, Tensor):
        return ""
    if found.shape != goal.shape:
        shapes = {"found": tuple(found.shape), "expected": tuple(goal.shape)}
        return " ".join([_said("shape", exercise, case=case, **shapes), *members(found, goal)])
    if (goal.isfinite() & ~found.isfinite()).any():
        return _said("nan", exercise, case=case)
    dtype = getattr(outcome.value, "dtype", None)
    half = dtype in (torch.float16, torch.bfloat16)
    return _said("half", exercise, dtype=dtype) if half else ""


def _part(bench: Bench, place: int) -> tuple[str, Normal | None, Normal]:
    """The name of a case, its result and its target; of several parts, the first that differs."""
    case, goal = bench.cases[place].name, bench.targets[place]
    found = comparable(bench.outcomes[place].value)
    different = first_difference(found, goal, bench.exercise.tolerance)
    if different is None:
        return case, found, goal
    part, mine, its = different
    count = len(goal) if isinstance(goal, tuple) else 1
    return SAID["part"].format(case=case, part=part, count=count), mine, its


def _raised(bench: Bench, error: Exception, case: str) -> str:
    exercise = bench.exercise
    if isinstance(error, RecursionError):
        return _said("recursion", exercise)
    if isinstance(error, Left):
        return _said("left", exercise, error=error)
    if isinstance(error, TypeError) and not takes(bench.function, bench.cases[0].arguments):
        names = ", ".join(inspect.signature(exercise.oracle).parameters)
        return _said("arguments", exercise, names=names, error=message_of(error))
    said = ": ".join(filter(None, (type(error).__name__, message_of(error))))
    lines = lines_of(bench.function, error)
    if lines:
        return _said("raised at", exercise, case=case, error=said, line=lines[-1])
    return _said("raised", exercise, case=case, error=said)


def _beside(bench: Bench, place: int) -> Beside | None:
    if bench.exercise.kind == "predict" or bench.outcomes[place].error:
        return None  # where one predicts, the right answer would be given away
    case, yours, goal = _part(bench, place)
    if not isinstance(goal, Tensor) or not isinstance(yours, Tensor) or goal.shape != yours.shape:
        return None
    return Beside(case, yours, goal, differs(yours, goal, bench.exercise.tolerance))


def _is_stub(function: Callable[..., Any], first: Outcome) -> bool:
    """Whether the stub is still there: its own NotImplementedError, not one from further down."""
    if first.value is Ellipsis:
        return True
    if not isinstance(first.error, NotImplementedError):
        return False
    *_, (frame, _) = traceback.walk_tb(first.error.__traceback__)
    return frame.f_code is getattr(function, "__code__", frame.f_code)
