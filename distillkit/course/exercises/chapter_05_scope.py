"""Exercise of chapter 05, a classifier: how good it is, in scope and out of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 5.2 · in scope, and out of it --------------------------------------------------------------------


def _scope_cases(draw: Draw) -> list[Case]:
    cases = []
    for n, c in ((60, 5), (80, 4), (50, 8)):
        logits, labels = draw.logits(n, c), draw.integers(n, below=c)
        oos = int(draw.integers(1, below=c - 1, least=1))  # neither the first nor the last
        labels[: n // 4] = oos
        right = draw.integers(n, below=10) < 6
        logits[right, labels[right]] += 5.0
        logits[n // 2 : n // 2 + 9, oos] += 9.0  # some in scope are taken for out of it
        cases.append(Case(f"N={n}, C={c}, class {oos} out of scope", (logits, labels, oos)))
    return cases


def _scope_oracle(logits_NC: list[list[float]], labels_N: list[int], oos: int) -> list[float]:
    right, total = {True: 0, False: 0}, {True: 0, False: 0}
    for row, label in zip(logits_NC, labels_N, strict=True):
        said = max(range(len(row)), key=row.__getitem__)
        total[label != oos] += 1
        right[label != oos] += said == label
    return [right[True] / total[True], right[False] / total[False]]


def _scored(
    *, every: bool = False, precise: bool = False, kept: bool = False, closed: bool = False
) -> Function:
    """Both measures with one mistake; every: accuracy of all texts; kept: of those not called oos.

    precise: precision out of scope for recall; closed: classes in scope compete alone.
    """

    def measures(logits: Tensor, labels: Tensor, oos: int) -> Tensor:
        said = logits.argmax(-1)
        known = logits.clone()
        known[:, oos] = -torch.inf
        named = known.argmax(-1) if closed else said
        inside = labels != oos
        counted = torch.ones_like(inside) if every else inside & (said != oos) if kept else inside
        accuracy = (named == labels)[counted].double().mean()
        out = said == oos
        recall = (labels == oos)[out] if precise else out[~inside]
        return torch.stack([accuracy, recall.double().mean()])

    return measures


def _changed(change: Callable[[Tensor], Tensor]) -> Function:
    """Both measures, right, and then changed."""
    return lambda logits, labels, oos: change(_scored()(logits, labels, oos))


def _last_is_oos(logits: Tensor, labels: Tensor, oos: int) -> Tensor:
    result: Tensor = _scored()(logits, labels, logits.shape[-1] - 1)
    return result


def _of_all(logits: Tensor, labels: Tensor, oos: int) -> Tensor:
    right = logits.argmax(-1) == labels
    inside = labels != oos
    return torch.stack([(right & inside).double().mean(), (right & ~inside).double().mean()])


def _inside_or_not(logits: Tensor, labels: Tensor, oos: int) -> Tensor:
    out, inside = logits.argmax(-1) == oos, labels != oos
    return torch.stack([(~out)[inside].double().mean(), out[~inside].double().mean()])


def _by_class(logits: Tensor, labels: Tensor, oos: int) -> Tensor:
    said = logits.argmax(-1)
    each = [(said == labels)[labels == c].double().mean() for c in labels.unique() if c != oos]
    return torch.stack([torch.stack(each).mean(), (said == oos)[labels == oos].double().mean()])


SCOPE = Exercise(
    number="5.2",
    title="In scope, and out of it",
    kind="write",
    minutes=8,
    difficulty=2,
    hints=(
        "`said = logits_NC.argmax(-1)` with *all* classes, and `inside = labels_N != oos`.",
        "Accuracy: of the texts with `inside`, the share with `said == labels_N`. Recall: of the "
        "others, the share with `said == oos`.",
    ),
    cases=_scope_cases,
    oracle=_scope_oracle,
    mutants=(
        Mutant(
            "accuracy of all texts",
            _scored(every=True),
            "Your accuracy counts the texts out of scope as well, so it is two measures in one: a "
            "model that finds all of them looks better at the rest. Count those in scope.",
            "OVANet#2, whose accuracy of known classes took in others",
        ),
        Mutant(
            "precision",
            _scored(precise=True),
            "Your second number is the *precision*: of what was called out of scope, the share "
            "that was. Recall asks how much of what is out of scope was found.",
            "OpenLongTailRecognition-OLTR#24 and NRCan/geo-deep-learning#592, the two changed",
        ),
        Mutant(
            "rejected texts left out",
            _scored(kept=True),
            "Texts in scope that your model called out of scope are left out of the accuracy. "
            "The visitor asked for something that the desk does and was sent away: an error.",
            "mozilla/fathom#101, a denominator that depended on what was predicted",
        ),
        Mutant(
            "the class taken out",
            _scored(closed=True),
            "For the accuracy you let only the classes in scope compete. The model at work may say "
            "`oos` too, and that costs accuracy: measure what it says.",
            "a closed-set accuracy, as TL-Fault-Diagnosis-Library#20 names it",
        ),
        Mutant(
            "mean over classes",
            _by_class,
            "Your accuracy is a mean over classes: a class of three texts weighs as much as one of "
            "three hundred. A useful measure, but not this one: every text counts the same.",
            "OVANet#2, where the accuracy of known classes is a mean over classes",
        ),
        Mutant(
            "the two exchanged",
            _changed(lambda both: both.flip(0)),
            "Both numbers are right, and in the other order: accuracy in scope comes first.",
            "a reader",
        ),
        Mutant(
            "errors counted",
            _changed(lambda both: 1 - both),
            "These are the shares that are wrong. Asked for are the shares that are right.",
            "a reader",
        ),
        Mutant(
            "the last class is oos",
            _last_is_oos,
            "You take the last class for the one out of scope, as in the chapter. Here its number "
            "is given: `oos`.",
            "a reader, who wrote C - 1",
        ),
        Mutant(
            "divided by all texts",
            _of_all,
            "Each of your counts is divided by all N texts. Divide the first by the number of "
            "texts in scope, and the second by the number of those out of it.",
            "a reader, who took the mean of `right & inside`",
        ),
        Mutant(
            "in scope is enough",
            _inside_or_not,
            "Your first number counts whoever in scope was not called `oos`. That is half of it: "
            "the text must get *its own* class.",
            "a reader",
        ),
    ),
)

EXERCISES = (SCOPE,)
