"""The bench: one answer, its exercise, and everything that running it shows.

Its cases and its properties share the seconds of the exercise. Nothing is decided here, and nothing
said: `judging` does that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor

from distillkit import losses
from distillkit.course.comparing import Incomparable, Normal, normal, same
from distillkit.course.exercises import losses_by_hand
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.observing import Outcome, Run, call, observe

PROPERTY_SEEDS = 7_919
"""Properties draw their own arguments: from seeds that no case has."""
LEAST_SECONDS = 0.2
"""What a property gets even if the cases took all the time there was."""


@dataclass
class Bench:
    """One answer, the exercise, and everything that was found out about it so far."""

    exercise: Exercise
    function: Callable[..., Any]
    seed: int
    dtype: torch.dtype = torch.float32
    seconds: float = 1.5
    cases: list[Case] = field(init=False)
    targets: list[Normal] = field(init=False)
    run: Run = field(init=False)
    late: Property | None = field(init=False, default=None)
    stuck: bool = field(init=False, default=False)
    raised: Exception | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.cases = list(self.exercise.cases(Draw(self.seed, self.dtype)))
        self.targets = [target(self.exercise, case) for case in self.cases]
        self.run = observe(
            self.function,
            self.cases,
            seconds=self.seconds,
            watched=entry_points(self.exercise),
        )
        self.seconds -= self.run.seconds

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
        """The properties which do not hold for a function.

        `late` is the one at which the time ran out, if it did; `raised` what the first one raised.
        """
        failing: list[Property] = []
        self.raised = None
        for each in self.exercise.properties:
            tried = self._tried(each, function)
            if tried.late:
                self.late, self.stuck = each, tried.stuck
                break
            [outcome] = tried.outcomes
            if outcome.value is not True:
                self.raised = outcome.error if not failing else self.raised
                failing.append(each)
        return failing

    def _tried(self, each: Property, function: Callable[..., Any]) -> Run:
        draw = Draw(self.seed + PROPERTY_SEEDS, self.dtype)
        case = Case(each.name)
        left = max(self.seconds, LEAST_SECONDS)
        tried = observe(lambda: bool(each.holds(_in_tensors(function), draw)), [case], seconds=left)
        self.seconds -= tried.seconds
        return tried

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
        if self.late:
            return []
        return [mutant for mutant in found if self.failing(mutant.answer) == failing]


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
    a, b = comparable(one.value), comparable(other.value)
    if a is None or b is None:
        return a is b and type(one.value) is type(other.value)
    return same(a, b, tolerance)


def comparable(value: Any) -> Normal | None:
    try:
        return normal(value)
    except Incomparable:
        return None


def _in_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its result as a tensor where it gives an array, or numbers in lists.

    Tensors stay as they are, with their graph.
    """

    def converted(*arguments: Any) -> Any:
        value = function(*arguments)
        if isinstance(value, Tensor) or _holds_tensors(value):
            return value
        found = comparable(value)
        return found if isinstance(found, Tensor) else value

    return converted


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(
        isinstance(part, Tensor) or _holds_tensors(part) for part in value
    )


def entry_points(exercise: Exercise) -> dict[CodeType, str]:
    """The code that runs when somebody else's answer is called -> the name to say.

    That is what the exercise names, every loss of the library, and what the exercises themselves
    compute with.
    """
    found = {code: name for room in (losses, losses_by_hand) for code, name in _codes(room)}
    found[exercise.oracle.__code__] = exercise.oracle.__name__
    for each in exercise.library:
        if inspect.ismethod(each):
            found[each.__func__.__code__] = each.__qualname__
        elif inspect.isfunction(each):
            found[each.__code__] = each.__name__
        else:  # a divergence: an object whose class says what its value is
            found[type(each)._value.__code__] = each.name
    return found


def _codes(room: ModuleType) -> Iterator[tuple[CodeType, str]]:
    """The public functions of a module, and of its divergences the value, with their names."""
    for name, each in vars(room).items():
        if getattr(each, "__module__", "") != room.__name__ or name.startswith("_"):
            continue
        if inspect.isfunction(each):
            yield each.__code__, name
        elif inspect.isclass(each) and "_value" in vars(each):
            said = vars(each).get("name")
            yield vars(each)["_value"].__code__, said if isinstance(said, str) else name
