"""Exercises of chapter 02, the loss: to predict."""

from __future__ import annotations

import math

from distillkit.course.exercises import loops
from distillkit.course.exercises.definition import OFFERED, Exercise, Mutant

# 2.5 · three students before a teacher of two minds -----------------------------------------------

TOKENS = 9


def bump(*centres: float, width: float) -> list[float]:
    """Log-probabilities over TOKENS tokens: equal bumps around the centres."""
    heights = []
    for token in range(TOKENS):
        heights.append(sum(math.exp(-(((token - c) / width) ** 2) / 2) for c in centres))
    total = sum(heights)
    return [math.log(height / total) for height in heights]


TEACHER = bump(2, 6, width=0.5)
STUDENTS = {
    "one": bump(2, width=0.5),
    "between": bump(4, width=0.5),
    "both": bump(4, width=2.8),
}


def by_forward_kl() -> list[str]:
    """The students' names, the least KL(teacher‖student) first."""
    return sorted(STUDENTS, key=lambda name: loops.kl(TEACHER, STUDENTS[name]))


def by_reverse_kl() -> list[str]:
    """The same by KL(student‖teacher)."""
    return sorted(STUDENTS, key=lambda name: loops.kl(STUDENTS[name], TEACHER))


_SWAPPED = "ms-swift PR#6334, where two projects name the directions in opposite order"

TWO_MINDS = Exercise(
    number="2.5",
    title="Three students of a teacher with two minds",
    kind="predict",
    minutes=5,
    difficulty=2,
    hints=(
        "KL(p‖q) is an average over what the *teacher* says. A token which the teacher says often "
        "and the student holds for next to impossible costs log p - log q, however rare it is for "
        "the student.",
        "Ask of each student: what is the worst that it says about one of the teacher's two "
        "favourite tokens? `one` calls token 6 almost impossible; how far is `between` from both?",
    ),
    choices=tuple(STUDENTS),
    oracle=by_forward_kl,
    mutants=(
        Mutant(
            "the order of reverse KL",
            by_reverse_kl,
            "That is the order of the *reverse* KL(q‖p), which asks what the student's own words "
            "cost under the teacher: there `one` is excused for what it never says. The forward KL "
            "averages over the teacher's words, half of which `one` cannot say.",
            _SWAPPED,
        ),
        Mutant(
            "the greatest first",
            ["one", "between", "both"],
            "These are in order, the greatest first. The least comes first.",
            OFFERED,
        ),
        Mutant(
            "one before between",
            ["both", "one", "between"],
            "The first is right. But `one` is perfect on half of the teacher's words and pays for "
            "the other half more than `between` pays for both: its bump is four tokens away from "
            "token 6, and the cost grows with the square of the distance.",
            OFFERED,
        ),
        Mutant(
            "between first",
            ["between", "both", "one"],
            "`between` has the right mean and nothing else: it is sure of a token that the teacher "
            "never says. A KL compares probabilities of tokens, not means. The last is right.",
            OFFERED,
        ),
        Mutant(
            "between first, both last",
            ["between", "one", "both"],
            "`both` looks vague, but it holds nothing for impossible, and vagueness is cheap under "
            "the forward KL. What is dear is to exclude what the teacher says.",
            OFFERED,
        ),
    ),
)

EXERCISES = (TWO_MINDS,)
