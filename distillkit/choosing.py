"""Choose among compressed models by what was measured of them: bytes, time a turn, visits served.

Nothing here knows how a model was made: it answers from a table. A number that was not measured is
not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distillkit.errors import UserError

__all__ = ["COSTS", "Budget", "Choice", "Variant", "choose", "pareto_front"]

COSTS = ("bytes", "milliseconds")


@dataclass(frozen=True)
class Variant:
    """One compressed model and what was measured of it.

    family: how it was made, as the figures colour it. bytes: all that loading needs, tokenizer and
    configuration included. milliseconds: the median time of a turn, on the threads and in the
    runtime that `name` or the table says. success: the share of visits served, and its interval.
    """

    name: str
    family: str
    bytes: float
    milliseconds: float
    success: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 < self.bytes < math.inf and 0 < self.milliseconds < math.inf):
            raise UserError(
                f"{self.name}: found {self.bytes} bytes and {self.milliseconds} ms: expected "
                "measured numbers above zero"
            )
        if not 0 <= self.low <= self.success <= self.high <= 1:
            raise UserError(
                f"{self.name}: found a success of {self.success} in [{self.low}, {self.high}]: "
                "expected shares from 0 to 1, the rate between the ends of its interval"
            )


def pareto_front(variants: Sequence[Variant], costs: Sequence[str] = COSTS) -> list[Variant]:
    """The variants that no other one beats, cheapest first by the first of the costs.

    One beats another when it costs no more in any of `costs`, serves no fewer visits, and is
    better in one of these. Equal ones stay both. Rates are taken as they were measured: which of
    two neighbours is on the front may be chance where their intervals overlap.

    >>> a, b, c = (Variant(n, "", size, 1.0, s, s, s) for n, size, s in
    ...            (("a", 1, 0.5), ("b", 2, 0.4), ("c", 3, 0.9)))
    >>> [each.name for each in pareto_front([c, b, a])]
    ['a', 'c']
    """
    if not costs or not set(costs) <= set(COSTS):
        raise UserError(f"found the costs {tuple(costs)}: expected some of {', '.join(COSTS)}")
    places = {each: _place(each, costs) for each in variants}
    kept = [
        each
        for each in variants
        if not any(_beats(places[other], places[each]) for other in variants)
    ]
    return sorted(kept, key=lambda each: places[each])


def _place(variant: Variant, costs: Sequence[str]) -> tuple[float, ...]:
    """Everything the less, the better."""
    return (*(getattr(variant, cost) for cost in costs), -variant.success)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))


@dataclass(frozen=True)
class Budget:
    """What there is to spend, and the least share of visits that must be served."""

    bytes: float = math.inf
    milliseconds: float = math.inf
    success: float = 0.0

    def __post_init__(self) -> None:
        if not (self.bytes > 0 and self.milliseconds > 0 and 0 <= self.success <= 1):
            raise UserError(
                f"{self}: expected bytes and milliseconds above zero, and a success from 0 to 1"
            )

    def misses(self, variant: Variant) -> list[str]:
        """What the variant lacks, in words; nothing where it fits."""
        said = []
        if variant.bytes > self.bytes:
            said.append(f"{variant.bytes / 1e6:.2f} MB, {self.bytes / 1e6:.2f} are allowed")
        if variant.milliseconds > self.milliseconds:
            said.append(
                f"{variant.milliseconds:.1f} ms a turn, {self.milliseconds:.1f} are allowed"
            )
        if variant.success < self.success:
            said.append(f"{variant.success:.1%} of visits, {self.success:.1%} are asked for")
        return said

    def excess(self, variant: Variant) -> float:
        """By what factor the variant misses the budget where it misses it most; at most 1 fits."""
        failed = (1 - variant.success) / max(1 - self.success, 1e-3)
        return max(variant.bytes / self.bytes, variant.milliseconds / self.milliseconds, failed)


@dataclass(frozen=True)
class Choice:
    """What fits a budget: the best, those that cannot be told from it, and why, in sentences."""

    best: Variant | None
    ties: list[Variant]
    sentences: list[str]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def choose(variants: Sequence[Variant], budget: Budget) -> Choice:
    """What fits the budget and serves most visits, answered from the table.

    Of those whose interval holds the best one's rate no order is claimed: they are its `ties`,
    smallest first. Where nothing fits, `best` is None, and the sentences name what comes nearest
    and what it lacks. Raises UserError for an empty table.
    """
    if not variants:
        raise UserError("found no variant to choose from: measure some first")
    fitting = [each for each in variants if not budget.misses(each)]
    if not fitting:
        nearest = min(variants, key=budget.excess)
        lacks = "; ".join(budget.misses(nearest))
        return Choice(None, [], ["Nothing measured fits.", f"Nearest is {nearest.name}: {lacks}."])
    best = min(fitting, key=lambda each: (-each.success, each.bytes, each.milliseconds))
    ties = [each for each in fitting if each is not best and each.high >= best.success]
    ties.sort(key=lambda each: each.bytes)
    said = [f"{len(fitting)} of {len(variants)} fit. Most visits: {_told(best)}."]
    if best.low < budget.success:
        said.append(
            f"Its interval reaches below the {budget.success:.1%} that you ask for: measure it "
            "with more visitors before you promise that."
        )
    smaller = [each for each in ties if each.bytes < best.bytes]
    if smaller:
        said.append(f"Not to be told from it by its visits, and smallest: {_told(smaller[0])}.")
    return Choice(best, ties, said)


def _told(variant: Variant) -> str:
    return (
        f"{variant.name}, {variant.success:.1%} [{variant.low:.1%}, {variant.high:.1%}], "
        f"{variant.bytes / 1e6:.2f} MB, {variant.milliseconds:.1f} ms a turn"
    )
