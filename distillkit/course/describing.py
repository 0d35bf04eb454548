"""Results and targets in words: which type they have, and which whole numbers are missing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distillkit.course.comparing import Incomparable, Normal, normal
from distillkit.course.words import SAID


def members(found: Tensor, goal: Tensor) -> list[str]:
    """Which whole numbers are missing and which are too many, where the goal is a list of such."""
    rows = [each.tolist() for each in (found, goal)]
    if found.dim() != 1 or goal.dim() != 1 or any(x % 1 for row in rows for x in row):
        return []
    yours, target = map(set, rows)
    if len(target) < len(rows[1]):
        return []  # not a set: how often each comes is what counts
    several = {"missing": target - yours, "extra": yours - target}
    text = {key: ", ".join(f"{x:.0f}" for x in sorted(each)) for key, each in several.items()}
    return [
        SAID[key].format(**text)
        for key, part in (("missing", "missing"), ("too many", "extra"))
        if text[part]
    ]


def kind(value: Any) -> str:
    """The type of a result, or of the part of it with which nothing can be compared."""
    try:
        normal(value)
    except Incomparable as problem:
        return str(problem)
    return "tuple" if isinstance(value, tuple) else type(value).__name__  # and not "max"


def described(goal: Normal) -> str:
    if isinstance(goal, Tensor):
        key = ("a number", "some numbers", "a tensor")[min(goal.dim(), 2)]
        return SAID[key].format(shape=tuple(goal.shape), count=goal.numel())
    return SAID["a text"] if isinstance(goal, str) else SAID["a tuple"].format(count=len(goal))
