"""Answers to "predict it": is it an answer to the question at all?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distillkit.course.comparing import Incomparable, Normal, normal
from distillkit.course.exercises.definition import Exercise
from distillkit.course.words import SAID


def spelled(exercise: Exercise, answer: Any) -> Any:
    """An answer whose whole numbers are written as the choices are: 1000 as "1,000"."""
    if isinstance(answer, list | tuple):
        return type(answer)(spelled(exercise, each) for each in answer)
    if isinstance(answer, str) and answer.strip().isdecimal():
        return spelled(exercise, int(answer))
    written = f"{answer:,}" if isinstance(answer, int) else ""
    return written if written in exercise.choices else answer


def unfit(exercise: Exercise, answer: Any) -> str:
    """What is wrong with the form of an answer, in a sentence; nothing if it has the right one."""
    right = normal(exercise.oracle())
    wanted = _wanted(exercise, right)
    sentence = SAID["not an answer"].format(expected=wanted)
    try:
        given = normal(answer)
    except Incomparable as problem:
        return sentence if callable(answer) else _type(problem, wanted)
    if isinstance(right, Tensor):
        fits = isinstance(given, Tensor) and given.shape == right.shape
    elif isinstance(right, str):
        fits = given in known(exercise)
    else:
        if unknown := _unknown(given, exercise):
            return SAID["unknown names"].format(names=unknown, expected=wanted)
        fits = isinstance(given, tuple) and sorted(map(str, given)) == sorted(known(exercise))
    return "" if fits else _type(type(answer).__name__, wanted)


def known(exercise: Exercise) -> list[Normal]:
    """The choices in the form in which they are compared."""
    return [normal(choice) for choice in exercise.choices]


def _unknown(given: Normal, exercise: Exercise) -> str:
    """The texts in an order that are no choices, in quotes."""
    texts = [each for each in given if isinstance(each, str)] if isinstance(given, tuple) else []
    return ", ".join(repr(each) for each in texts if each not in known(exercise))


def _type(found: object, wanted: str) -> str:
    return SAID["answer type"].format(found=found, expected=wanted)


def _wanted(exercise: Exercise, right: Normal) -> str:
    choices = ", ".join(repr(choice) for choice in exercise.choices)
    if isinstance(right, Tensor):
        several = SAID["several wanted"].format(count=right.numel())
        return several if right.dim() else SAID["numbers wanted"]
    return SAID["choice wanted" if isinstance(right, str) else "order wanted"].format(
        choices=choices
    )
