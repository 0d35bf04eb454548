"""Exercises of chapter 03, the teacher: the expected calibration error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises import loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.evaluation import calibration_of

# 3.3 · the expected calibration error -------------------------------------------------------------


def _bins_cases(draw: Draw) -> list[Case]:
    cases = []
    for n, v, bins in ((60, 6, 10), (80, 4, 5), (50, 9, 15)):
        logits = draw.logits(n, v, scale=1.5)
        likely = logits.argmax(-1)
        right = draw.integers(n, below=10) < 5
        labels = torch.where(right, likely, draw.integers(n, below=v))
        cases.append(Case(f"N={n}, V={v}, {bins} bins", (logits, labels, bins)))
    certain = draw.logits(40, 5)
    certain[:8, 2] = 900.0
    cases.append(
        Case("eight tokens of confidence 1", (certain, draw.integers(40, below=5), 10)),
    )
    return [*cases, Case("confidences on the edges of bins", _on_edges(draw, 4))]


def _on_edges(draw: Draw, bins: int) -> tuple[Tensor, Tensor, int]:
    """Tokens of confidence 1/4 and 1/2, in binary exactly, all wrong; all others are right."""
    logits = draw.logits(30, 6)
    labels = logits.argmax(-1)
    logits[:16] = -900.0
    logits[:8, :2] = logits[8:16, :4] = 3.0
    labels[:16] = 5  # none of those that are equally likely, so it does not matter which is named
    return logits, labels, bins


def _bins_oracle(logits: list[list[float]], labels: list[int], bins: int) -> float:
    counts, sure, right = [0] * bins, [0.0] * bins, [0] * bins
    for row, label in zip(logits, labels, strict=True):
        q = loops.softmax(row)
        likely = max(range(len(q)), key=q.__getitem__)
        place = 0
        while q[likely] > (place + 1) / bins and place < bins - 1:
            place += 1
        counts[place] += 1
        sure[place] += q[likely]
        right[place] += likely == label
    error = 0.0
    for count, confidence, hits in zip(counts, sure, right, strict=True):
        if count:
            error += count / len(labels) * abs(hits / count - confidence / count)
    return error


def _binned(
    *,
    confidence: Function = lambda q, labels: q.amax(-1),
    centre: bool = False,
    weighted: bool = True,
    closed: bool = True,
    lower: bool = True,
    size: Function = abs,
) -> Function:
    """The error with one part replaced.

    closed: whether a confidence of 1 is in the last bin; lower: whether an edge belongs to the bin
    below it.
    """

    def error(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
        q = logits.double().softmax(-1)
        sure, hit = confidence(q, labels), (q.argmax(-1) == labels).double()
        places = (sure * bins).ceil().sub(1) if lower else (sure * bins).floor()
        places = places.long().clamp(0, bins - 1)
        gaps, counts = [], []
        for place in places.unique():
            inside = (places == place) & (closed | (sure < 1))
            if not inside.any():
                continue
            middle = (place + 0.5) / bins if centre else sure[inside].mean()
            gaps.append(size(hit[inside].mean() - middle))
            counts.append(inside.sum())
        if not weighted:
            return torch.stack(gaps).mean()
        total: Any = sum(n * gap for n, gap in zip(counts, gaps, strict=True))
        return total / len(labels)

    return error


def _of_label(q: Tensor, labels: Tensor) -> Tensor:
    return q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


CALIBRATION = Exercise(
    number="3.3",
    title="The expected calibration error",
    kind="write",
    minutes=15,
    difficulty=3,
    hints=(
        "Two numbers a token: `confidence, likely = logits_NV.softmax(-1).max(-1)`, and whether "
        "`likely` is the label. Then take the bins one by one.",
        "Bin b holds the tokens with `b / bins < confidence` and `confidence <= (b + 1) / bins`. "
        "Skip it if it is empty: the mean of nothing is NaN.",
        "For each bin add `n / N * abs(accuracy - mean_confidence)`, where n is the number of "
        "tokens in it, and both means go over these tokens.",
    ),
    cases=_bins_cases,
    oracle=_bins_oracle,
    library=(calibration_of,),
    mutants=(
        Mutant(
            "bins of equal weight",
            _binned(weighted=False),
            "Every bin weighs the same in your mean, one token as much as a thousand. Weigh each "
            "by its share of the tokens, n / N.",
            "ethen8181/machine-learning#20",
        ),
        Mutant(
            "signs cancel",
            _binned(size=lambda gap: gap),
            "Your differences keep their signs, so a bin that is too sure makes up for one that "
            "is too modest. Take the absolute value bin by bin.",
            "a measure of its own, which google/uncertainty-metrics#22 calls signed",
        ),
        Mutant(
            "confidence in the label",
            _binned(confidence=_of_label),
            "Your confidence is the probability of the label. It is the probability of the "
            "*likeliest* token, which the model would say, right or wrong.",
            "a branch of cruijff_kit (its issue #305)",
        ),
        Mutant(
            "middle of the bin",
            _binned(centre=True),
            "You compare the accuracy with the middle of the bin. Compare it with the mean "
            "confidence of the tokens in it: they may all be at one edge.",
            "pycalib#4, where a perfect model had an error",
        ),
        Mutant(
            "certain tokens lost",
            _binned(closed=False, lower=False),
            "Tokens with a confidence of exactly 1 are in none of your bins, and softmax does give "
            "1. The last bin ends with 1, and 1 is in it.",
            "DeepTab#421, where a model that was always sure and always wrong got an error of 0",
        ),
        Mutant(
            "edges in the bin above",
            _binned(lower=False),
            "A confidence that lies exactly on an edge is in the bin above it, with yours. It "
            "belongs to the bin below: with 4 bins, 0.5 is in the second, not in the third.",
            "a reader",
        ),
    ),
)

EXERCISES = (CALIBRATION,)
