"""Exercises of chapter 04, the student: to predict."""

from __future__ import annotations

from collections.abc import Callable

from distillkit.course.exercises.definition import OFFERED, Exercise, Mutant
from distillkit.course.results import fair_fight

# 4.4 · where distillation gains -------------------------------------------------------------------

SIZES = {100: "100", 300: "300", 1000: "1,000", 3000: "3,000"}


def _ordered(gain: Callable[[dict, dict], float], seeds: slice = slice(None)) -> list[str]:
    """The sizes by the mean gain of the distilled runs over the labels', the greatest first."""
    fight = fair_fight()
    gains = {}
    for size in SIZES:
        pairs = list(zip(fight["distilled"][size], fight["labels"][size], strict=True))[seeds]
        gains[size] = sum(gain(ours, theirs) for ours, theirs in pairs) / len(pairs)
    return [SIZES[size] for size in sorted(gains, key=lambda size: -gains[size])]


def by_visits(seeds: slice = slice(None)) -> list[str]:
    """By visits served, as recorded by experiments/04_fair_fight.py."""
    return _ordered(lambda ours, theirs: ours["success"] - theirs["success"], seeds)


def by_likelihood() -> list[str]:
    """By the NLL of the same runs."""
    return _ordered(lambda ours, theirs: theirs["nll"] - ours["nll"])


GAIN = Exercise(
    number="4.4",
    title="Where does distillation gain most?",
    kind="predict",
    minutes=5,
    difficulty=2,
    hints=(
        "The question is about visits *served*. At 100 conversations, which of the two students "
        "serves anybody?",
        "The chapter's table has all eight numbers; one of the four differences is below zero.",
    ),
    choices=tuple(SIZES.values()),
    oracle=by_visits,
    mutants=(
        Mutant(
            "the fewer the better",
            ["100", "300", "1,000", "3,000"],
            "That is the usual rule: the fewer labels, the more the teacher helps. It holds from "
            "300 on. But with 100 conversations neither student serves anybody, so there is no "
            "gain to be had.",
            "a rule that many texts state without its lower end",
        ),
        Mutant(
            "by likelihood",
            by_likelihood,
            "That is the order of the gains in *NLL*. A visit needs every name and number right; "
            "at 100 conversations the likelihood gets better and still nobody is served.",
            "likelihood taken for success: the chapter shows where the two part",
        ),
        Mutant(
            "one seed",
            lambda: by_visits(slice(0, 1)),
            "That is what seed 0 says, and seed 0 alone. Over five seeds, the gain at 1,000 "
            "conversations is a tie that swings by 28 points.",
            "comparisons by one training each: Reimers and Gurevych 2017",
        ),
        Mutant(
            "never a loss",
            ["300", "1,000", "3,000", "100"],
            "The first two are right. At 3,000 conversations, though, the distilled student serves "
            "*fewer* visitors than the labels', and at 100 as many: none.",
            OFFERED,
        ),
        Mutant(
            "least first",
            ["3,000", "100", "1,000", "300"],
            "These are in order, the least gain first. The greatest comes first.",
            OFFERED,
        ),
    ),
)

EXERCISES = (GAIN,)
