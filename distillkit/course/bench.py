"""The bench: one answer, its exercise, and everything that running it shows.

Nothing is decided here, and nothing said: `judging` does that. **What is too slow.** The cases of
an exercise share its seconds. Its properties share what the cases left, and have twice as long as
the cases took at least: no more than two calls in them come on one case, so a slow function that
ends gets through. What a second is, `stopping` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distillkit.course.comparing import Incomparable, Normal, normal, same
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.observing import Outcome, Run, call, observe
from distillkit.course.watching import pieces

PROPERTY_SEEDS = 7_919
"""Properties draw their own arguments: from a seed that is not that of the cases."""
LEAST_SECONDS = 0.2
"""What a property gets even if the cases took all the time there was."""
SLOW = 2.0
"""How much longer than the cases all properties may take, whatever the cases took."""


@dataclass
class Bench:
    """One answer, the exercise, and everything that was found out about it so far.

    seconds: for the cases, and then what is left. enough: after so many, no further case or
    property begins, and `unfinished` is true.
    """

    exercise: Exercise
    function: Callable[..., Any]
    seed: int
    dtype: torch.dtype = torch.float32
    seconds: float = 1.5
    enough: float = float("inf")
    cases: list[Case] = field(init=False)
    targets: list[Normal] = field(init=False)
    run: Run = field(init=False)
    spent: float = field(init=False, default=0.0)
    used: str = field(init=False, default="")
    replaced: set[str] = field(init=False, default_factory=set)
    late: Property | None = field(init=False, default=None)
    stuck: bool = field(init=False, default=False)
    raised: Exception | None = field(init=False, default=None)
    unfinished: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.cases = list(self.exercise.cases(Draw(self.seed, self.dtype)))
        self.targets = [target(self.exercise, case) for case in self.cases]
        self._watched = pieces(self.exercise)
        self.run = self._observed(self.function, self.cases, self.seconds)
        self.seconds = max(self.seconds, SLOW * self.run.seconds)
        self.unfinished = not self.run.late and len(self.outcomes) < len(self.cases)

    def again(self, seed: int) -> Bench:
        """The same answer on other cases, as far as the seconds suffice, and on one at least."""
        left = max(self.exercise.seconds - self.spent, 0.0)
        least = max(LEAST_SECONDS, SLOW * self.run.seconds)
        return Bench(
            self.exercise, self.function, seed, self.dtype, seconds=left + least, enough=left
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
        """The properties which do not hold for a function.

        `late` is the one at which the time ran out, if it did; `raised` what the first one raised.
        """
        failing: list[Property] = []
        self.raised = None
        for each in self.exercise.properties:
            if self.spent > self.enough:
                self.unfinished = True
                break
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
        holds = lambda: bool(each.holds(_in_tensors(function), draw))  # noqa: E731
        return self._observed(holds, [Case(each.name)], max(self.seconds, LEAST_SECONDS))

    def _observed(self, function: Callable[..., Any], cases: list[Case], seconds: float) -> Run:
        run = observe(function, cases, seconds=seconds, enough=self.enough, watched=self._watched)
        self.seconds -= run.seconds
        self.spent += run.seconds
        self.used = self.used or run.used
        self.replaced |= set(run.replaced)
        return run

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
    """The function with its result as a tensor where it gives an array, or lists.

    Tensors keep their graph, in lists too; tuples of them stay as they are.
    """

    def converted(*arguments: Any) -> Any:
        value = _stacked(function(*arguments))
        if isinstance(value, Tensor) or _holds_tensors(value):
            return value
        found = comparable(value)
        return found if isinstance(found, Tensor) else value

    return converted


def _stacked(value: Any) -> Any:
    """Lists of tensors of one shape, nested or not, as one tensor; anything else as it is."""
    if not isinstance(value, list):
        return value
    parts = [_stacked(part) for part in value]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    alike = parts and len(tensors) == len(parts) and len({each.shape for each in tensors}) == 1
    return torch.stack(tensors) if alike else value


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(
        isinstance(part, Tensor) or _holds_tensors(part) for part in value
    )
