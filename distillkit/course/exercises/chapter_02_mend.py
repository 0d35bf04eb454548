"""Exercises of chapter 02, the loss: a loss to mend."""

from __future__ import annotations

from typing import Any

import torch

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_02 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function, kl

# 2.4 · mend it ------------------------------------------------------------------------------------


def _mend_cases(draw: Draw) -> list[Case]:
    cases = []
    for b, s, v, t in ((3, 6, 5, 2.0), (2, 7, 4, 1.0), (4, 5, 8, 3.0)):
        spoken = draw.mask(b, s)
        spoken[0, s // 2] = False  # a visitor's word between two turns
        labels = draw.labels(spoken, v)
        attention = torch.ones(b, s, dtype=torch.int64)
        for row in range(1, b):
            attention[row, int(spoken[row].nonzero().max()) + 1 :] = 0
        drawn = (draw.logits(b, s, v), draw.logits(b, s, v), attention, labels, t)
        cases.append(Case(f"B={b}, S={s}, V={v}, T={t}", drawn))
    return cases


def _mend_oracle(
    student_logits: list[Any],
    teacher_logits: list[Any],
    attention_mask: list[list[int]],
    labels: list[list[int]],
    T: float,
) -> float:
    total, spoken = 0.0, 0
    for b in range(len(labels)):
        for s in range(len(labels[b]) - 1):
            if labels[b][s + 1] == IGNORED:  # the logits at s are about the token at s + 1
                continue
            total += loops.kl(
                loops.log_softmax(teacher_logits[b][s], T),
                loops.log_softmax(student_logits[b][s], T),
            )
            spoken += 1
    return T**2 * total / spoken


_NEXT = (slice(None), slice(1, None))
_HERE = (slice(None), slice(None, -1))
_ALL = (slice(None), slice(None))


def _mended(
    at: Any = _HERE, on: Any = _NEXT, prompts: bool = False, by_all: bool = False
) -> Function:
    """The loss mended in part: logits read `at`, the mask `on` these positions."""

    def loss(student: Any, teacher: Any, attention_mask: Any, labels: Any, T: float) -> Any:
        mask = (attention_mask.bool() if prompts else labels != IGNORED)[on]
        values = kl(student, teacher, T)[at]
        return T**2 * (values * mask).sum() / (mask.numel() if by_all else mask.sum())

    return loss


_SHIFT = "ms-swift PR#8436 and Arcee's DistillKit"
_PROMPTS = "optipfair#34 and MambaInLlama#11"
_BY_ALL = "Fast-LLM#344"

MEND_LOSS = Exercise(
    number="2.4",
    title="A loss with three faults",
    kind="mend",
    minutes=15,
    difficulty=3,
    hints=(
        "Ask three questions: which token are the logits at position s about? Which tokens does "
        "the assistant speak? By how many tokens is the sum divided?",
        "The logits at s are about the token at s + 1: `kl[:, :-1]` belongs to `labels[:, 1:]`.",
        "The mask is `labels[:, 1:] != -100`, and the sum is divided by `mask.sum()`.",
    ),
    cases=_mend_cases,
    oracle=_mend_oracle,
    given=broken.soft_loss,
    mutants=(
        Mutant(
            "not shifted",
            _mended(_ALL, _ALL),
            "Mask and denominator are mended. One fault is left: the logits at position s are "
            "about the token at s + 1, and you hold them against the label at s.",
            _SHIFT,
        ),
        Mutant(
            "mask not shifted",
            _mended(_HERE, _HERE),
            "The logits lose their last position, and the mask must lose its *first*: otherwise it "
            "still points one token too early.",
            "ms-swift PR#8436, where the mask was left unshifted",
        ),
        Mutant(
            "shifted the wrong way",
            _mended(_NEXT, _HERE),
            "Mask and denominator are mended, but the shift goes the wrong way: `kl[:, 1:]` with "
            "`labels[:, :-1]` holds the logits at s against the token at s - 1, which they have "
            "already read. They are about the token at s + 1.",
            "a reader",
        ),
        Mutant(
            "prompts counted",
            _mended(prompts=True),
            "Shift and denominator are mended. One fault is left: the attention mask lets the "
            "visitor's words in. The assistant's tokens are those with a label.",
            _PROMPTS,
        ),
        Mutant(
            "divided by all",
            _mended(by_all=True),
            "Shift and mask are mended. One fault is left: the sum is divided by all positions, "
            "not by the number of the assistant's tokens.",
            _BY_ALL,
        ),
        Mutant(
            "only the mask mended",
            _mended(_ALL, _ALL, by_all=True),
            "The mask is mended. Two faults are left: nothing is shifted, and the sum is divided "
            "by all positions.",
            f"{_SHIFT}; {_BY_ALL}",
        ),
        Mutant(
            "only the shift mended",
            _mended(prompts=True, by_all=True),
            "The shift is mended. Two faults are left: the mask lets the visitor's words in, and "
            "the sum is divided by all positions.",
            f"{_PROMPTS}; {_BY_ALL}",
        ),
        Mutant(
            "only shifted, and the wrong way",
            _mended(_NEXT, _HERE, prompts=True, by_all=True),
            "You shift, but the wrong way: the logits at s are about the token at s + 1, so it is "
            "the logits that lose their last position and the mask that loses its first. The two "
            "other faults are still there.",
            f"a reader; {_PROMPTS}; {_BY_ALL}",
        ),
        Mutant(
            "only the denominator mended",
            _mended(_ALL, _ALL, prompts=True),
            "The denominator is mended. Two faults are left: nothing is shifted, and the mask "
            "lets the visitor's words in.",
            f"{_SHIFT}; {_PROMPTS}",
        ),
    ),
)

EXERCISES = (MEND_LOSS,)
