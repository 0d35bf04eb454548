"""The judge: what is an answer worth, and if it is wrong, which mistake was made?

An answer's *prints* are the results of all cases, and the properties that do not hold. A mistake is
named when the prints of the learner's function are those of one mutant. Nothing is shown or kept
here: `checking` does that.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from distillkit.course.comparing import Incomparable, Normal, differs, normal, same
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.observing import Outcome, Run, call, observe
from distillkit.course.predictions import spelled, unfit
from distillkit.course.verdict import Beside, Verdict
from distillkit.course.words import SAID

PROPERTY_SEEDS = 7_919
"""Properties draw their own arguments: from seeds that no case has."""


@dataclass
class Bench:
    """One answer, the exercise, and everything that was found out about it so far."""

    exercise: Exercise
    function: Callable[..., Any]
    seed: int
    dtype: torch.dtype
    cases: list[Case] = field(init=False)
    targets: list[Normal] = field(init=False)
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        self.cases = list(self.exercise.cases(Draw(self.seed, self.dtype)))
        self.targets = [target(self.exercise, case) for case in self.cases]
        self.run = observe(
            self.function,
            self.cases,
            seconds=self.exercise.seconds,
            watched=entry_points(self.exercise),
        )

    @property
    def outcomes(self) -> list[Outcome]:
        """What each case gave, as far as the time sufficed."""
        return self.run.outcomes

    def wrong(self) -> int | None:
        """The place of the first case that is not right."""
        for place, (outcome, goal) in enumerate(zip(self.outcomes, self.targets, strict=False)):
            if not agree(outcome, Outcome(goal), self.exercise.tolerance):
                return place
        return None

    def failing(self, function: Callable[..., Any]) -> list[Property]:
        """The properties which do not hold for a function."""
        return [each for each in self.exercise.properties if not self._holds(each, function)]

    def _holds(self, each: Property, function: Callable[..., Any]) -> bool:
        draw = Draw(self.seed + PROPERTY_SEEDS, self.dtype)
        tried = observe(
            lambda: each.holds(function, draw),
            [Case(each.name)],
            seconds=self.exercise.seconds,
        )
        return bool(tried.outcomes and tried.outcomes[0].value is True)

    def like(self, answer: Any) -> bool:
        """Whether another answer gives the same on all cases, and a value on one at least.

        Two functions that raise the same kind of error everywhere have not made the same mistake.
        """
        other = as_function(answer)
        if all(outcome.error for outcome in self.outcomes):
            return False
        return len(self.outcomes) == len(self.cases) and all(
            agree(mine, call(other, case), self.exercise.tolerance)
            for mine, case in zip(self.outcomes, self.cases, strict=True)
        )

    def mistakes(self, failing: list[Property] | None) -> list[Mutant]:
        """The mutants of the same prints; without `failing`, properties decide between several."""
        found = [mutant for mutant in self.exercise.mutants if self.like(mutant.answer)]
        if failing is None and len(found) < 2:
            return found
        failing = self.failing(self.function) if failing is None else failing
        return [mutant for mutant in found if self.failing(mutant.answer) == failing]


def judge(
    exercise: Exercise, answer: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Verdict:
    """The verdict on an answer, with cases drawn from `seed` in `dtype`."""
    if answer is Ellipsis:
        return Verdict(exercise, "not started", [_said("stub", exercise)])
    if exercise.kind == "predict":
        if exercise.choices:
            answer = spelled(exercise, answer)
        if sentence := unfit(exercise, answer):
            return Verdict(exercise, "not yet", [sentence])
    elif not callable(answer):
        name = next(iter(getattr(exercise.given, "__name__", "").split()), "function")
        return Verdict(exercise, "not yet", [_said("not a function", exercise, name=name)])
    bench = Bench(exercise, as_function(answer), seed, dtype)
    verdict = _judged(bench)
    if bench.run.printed:
        text = " ⏎ ".join(bench.run.printed.splitlines())
        verdict.sentences.append(_said("printed", exercise, text=text))
    return verdict


def _judged(bench: Bench) -> Verdict:
    exercise, run = bench.exercise, bench.run
    first = bench.outcomes[0] if bench.outcomes else Outcome()
    if isinstance(first.error, NotImplementedError) or first.value is Ellipsis:
        return Verdict(exercise, "not started", [_said("stub", exercise)])
    if run.late:
        late = "stuck" if run.stuck else "time"
        return Verdict(exercise, "not yet", [_said(late, exercise, seconds=exercise.seconds)])
    if exercise.given is not None and bench.like(exercise.given):
        return Verdict(exercise, "not started", [_said("as given", exercise)])
    if run.used:
        return Verdict(exercise, "used the library", [_library(bench)])
    place = bench.wrong()
    return _right(bench) if place is None else _wrong(bench, place)


def _right(bench: Bench) -> Verdict:
    exercise = bench.exercise
    if changed := _changed(bench):
        return Verdict(exercise, "not yet", [changed])
    if failing := bench.failing(bench.function):
        return _named(bench, failing) or Verdict(exercise, "not yet", [failing[0].sentence])
    counts = {"cases": len(bench.cases), "properties": len(exercise.properties)}
    because = "done case" if exercise.kind == "predict" else "done because"
    return Verdict(exercise, "done", [_said(because, exercise, **counts)])


def _wrong(bench: Bench, place: int) -> Verdict:
    beside = _beside(bench, place)
    if verdict := _named(bench, None):
        verdict.beside = beside
        return verdict
    sentences = [_problem(bench, place), _changed(bench)]
    verdict = Verdict(bench.exercise, "not yet", [each for each in sentences if each])
    if not verdict.sentences:
        verdict.sentences.append(_unknown(bench))
    verdict.beside = beside
    return verdict


def _named(bench: Bench, failing: list[Property] | None) -> Verdict | None:
    found = bench.mistakes(failing)
    if not found:
        return None
    return Verdict(bench.exercise, "not yet", [found[0].sentence], mistake=found[0])


# What the sentences are made of -------------------------------------------------------------------


def _said(key: str, exercise: Exercise, **values: Any) -> str:
    return SAID[key].format(number=exercise.number, **values)


def _library(bench: Bench) -> str:
    return _said("library", bench.exercise, name=bench.run.used)


def _unknown(bench: Bench) -> str:
    if bench.exercise.kind == "predict":
        return _said("wrong number", bench.exercise, yours=bench.outcomes[0].value)
    return _said("closer", bench.exercise)


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
    found = _normal(outcome.value)
    if found is None or type(found) is not type(goal):
        name = type(outcome.value).__name__
        return _said("type", exercise, found=name, expected=_described(goal))
    if isinstance(found, tuple) and len(found) != len(goal):
        return _said("length", exercise, case=case, found=len(found), expected=len(goal))
    if not isinstance(found, Tensor) or not isinstance(goal, Tensor):
        return ""
    if found.shape != goal.shape:
        return _said(
            "shape", exercise, case=case, found=tuple(found.shape), expected=tuple(goal.shape)
        )
    if (goal.isfinite() & ~found.isfinite()).any():
        return _said("nan", exercise, case=case)
    dtype = getattr(outcome.value, "dtype", None)
    half = dtype in (torch.float16, torch.bfloat16)
    return _said("half", exercise, dtype=dtype) if half else ""


def _raised(bench: Bench, error: Exception, case: str) -> str:
    exercise = bench.exercise
    if isinstance(error, RecursionError):
        return _said("recursion", exercise)
    names = ", ".join(inspect.signature(exercise.oracle).parameters)
    if isinstance(error, TypeError) and not _lines(bench.function, error):
        return _said("arguments", exercise, names=names, error=error)
    said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    lines = _lines(bench.function, error)
    if lines:
        return _said("raised at", exercise, case=case, error=said, line=lines[-1])
    return _said("raised", exercise, case=case, error=said)


def _lines(function: Callable[..., Any], error: Exception) -> list[int]:
    """The lines of the function (1 is its `def`) through which an error went."""
    code = getattr(function, "__code__", None)
    frames = traceback.walk_tb(error.__traceback__)
    return [no - code.co_firstlineno + 1 for frame, no in frames if code and frame.f_code is code]


def _beside(bench: Bench, place: int) -> Beside | None:
    goal, outcome = bench.targets[place], bench.outcomes[place]
    yours = None if outcome.error else _normal(outcome.value)
    if bench.exercise.kind == "predict":
        return None  # the right answer would be given away
    if not isinstance(goal, Tensor) or not isinstance(yours, Tensor) or goal.shape != yours.shape:
        return None
    return Beside(
        bench.cases[place].name, yours, goal, differs(yours, goal, bench.exercise.tolerance)
    )


def _described(goal: Normal) -> str:
    if isinstance(goal, Tensor):
        return SAID["a tensor"].format(shape=tuple(goal.shape)) if goal.dim() else SAID["a number"]
    return SAID["a text"] if isinstance(goal, str) else SAID["a tuple"].format(count=len(goal))


# Comparing ----------------------------------------------------------------------------------------


def as_function(answer: Any) -> Callable[..., Any]:
    """A function as it is, any other answer as a function that gives it."""
    return answer if callable(answer) else lambda: answer


def target(exercise: Exercise, case: Case) -> Normal:
    """What the oracle says about a case: its loops get nested lists for tensors."""
    plain = [a.tolist() if isinstance(a, Tensor) else a for a in case.arguments]
    return normal(exercise.oracle(*plain))


def agree(one: Outcome, other: Outcome, tolerance: float) -> bool:
    """Whether two calls came out alike: the same values, or the same kind of error."""
    if one.error is not None or other.error is not None:
        return type(one.error) is type(other.error)
    a, b = _normal(one.value), _normal(other.value)
    if a is None or b is None:
        return a is b and type(one.value) is type(other.value)
    return same(a, b, tolerance)


def _normal(value: Any) -> Normal | None:
    try:
        return normal(value)
    except Incomparable:
        return None


def entry_points(exercise: Exercise) -> dict[CodeType, str]:
    """The code that runs when the library's own answer is called -> its name."""
    found = {}
    for each in exercise.library:
        if inspect.isfunction(each):
            found[each.__code__] = each.__name__
        elif inspect.ismethod(each):
            found[each.__func__.__code__] = each.__qualname__
        else:  # a divergence: an object whose class says what its value is
            found[type(each)._value.__code__] = each.name
    return found
