"""What an exercise is: one definition, from which checks, hints, notebooks and tests are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distillkit.course.exercises.drawing import Draw
from distillkit.course.words import SAID

Kind = Literal["write", "predict", "mend"]
MOST_DIFFICULT = 5
OFFERED = "a choice offered"
"""Where the wrong answer to a question was seen, if the question itself offers it."""
READER = "a reader"
"""Where a mistake was seen that needs no source: no line is shown for it."""


@dataclass(frozen=True)
class Case:
    """One call of the learner's function: `name` ends the sentence "With …"."""

    name: str
    arguments: tuple[Any, ...] = ()


def _answered_once(draw: Draw) -> list[Case]:
    return [Case("this question")]


@dataclass(frozen=True)
class Property:
    """What must hold beside the values, such as "no gradient reaches the teacher".

    `holds` gets the learner's function and something to draw its own arguments with; an exception
    means that it does not hold. `sentence` is what the learner reads then.
    """

    name: str
    holds: Callable[[Callable[..., Any], Draw], bool]
    sentence: str


@dataclass(frozen=True)
class Mutant:
    """A real mistake: a wrong function (to predict: a wrong value, or a function that computes it).

    `sentence` is for the learner, who sees it when all cases come out as this mutant's do. `seen`
    is where the mistake was made: a public bug, "a reader", or OFFERED.
    """

    name: str
    answer: Any
    sentence: str
    seen: str


@dataclass(frozen=True)
class Exercise:
    """An exercise, whole except for its statement and its solution, which solutions/NN_*.ipynb has.

    cases: the calls that decide, drawn from a seed. oracle: the right answer in slow loops, with
    the arguments of the learner's function by name and order; it gets nested lists for tensors.
    given: the broken function of an exercise to mend; the notebook's stub is its source.
    library: functions and divergences of distillkit which would be the answer itself.
    choices: the words of which an answer to a question, or an order, is made.
    tolerance: relative, of each number. seconds: of all cases together.
    """

    number: str
    title: str
    kind: Kind
    minutes: int
    difficulty: int
    hints: tuple[str, ...]
    oracle: Callable[..., Any]
    mutants: tuple[Mutant, ...]
    cases: Callable[[Draw], Sequence[Case]] = _answered_once
    properties: tuple[Property, ...] = ()
    given: Callable[..., Any] | None = None
    library: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    tolerance: float = 1e-4
    seconds: float = 1.5

    @property
    def chapter(self) -> str:
        """Its chapter in two digits, as file names begin."""
        return self.number.split(".")[0].zfill(2)

    def head(self) -> str:
        """The heading and the box which open its statement in a notebook."""
        dots = "●" * self.difficulty + "○" * (MOST_DIFFICULT - self.difficulty)
        box = SAID["box"].format(kind=SAID[self.kind], dots=dots, minutes=self.minutes)
        return f"## {self.number} · {self.title}\n\n> {box}"
