"""Exercises of chapter 05, a classifier: its loss, and how good it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit import losses
from distillkit.course.exercises import loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function, kl, mean_kl, nll

# 5.1 · texts with and without labels --------------------------------------------------------------


def _texts(draw: Draw, n: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels: a third of the texts has none."""
    labels = draw.integers(n, below=c)
    labels[1::3] = IGNORED
    return draw.logits(n, c), draw.logits(n, c), labels


def _loss_cases(draw: Draw) -> list[Case]:
    shapes = ((5, 4, 0.3, 2.5), (8, 3, 0.9, 4.0), (4, 6, 0.6, 1.5), (7, 5, 1.0, 2.0))
    return [
        Case(f"N={n}, C={c}, α={alpha}, T={t}", (*_texts(draw, n, c), alpha, t))
        for n, c, alpha, t in shapes
    ]


def _loss_oracle(
    student_logits_NC: list[list[float]],
    teacher_logits_NC: list[list[float]],
    labels_N: list[int],
    alpha: float,
    T: float,
) -> float:
    soft, hard, labelled = 0.0, 0.0, 0
    for q, p, label in zip(student_logits_NC, teacher_logits_NC, labels_N, strict=True):
        soft += loops.kl(loops.log_softmax(p, T), loops.log_softmax(q, T))
        if label != IGNORED:
            hard -= loops.log_softmax(q)[label]
            labelled += 1
    return alpha * T**2 * soft / len(labels_N) + (1 - alpha) * hard / max(labelled, 1)


def _loss_with(
    *,
    soft: Function = kl,
    hard: Function = nll,
    power: int = 2,
    swapped: bool = False,
    all_hard: bool = False,
    few_soft: bool = False,
    clamp: bool = True,
) -> Function:
    """The loss with one part replaced.

    swapped: alpha on the labels' term. all_hard: divided by all texts. few_soft: the teacher is
    asked about the labelled texts alone. clamp: nothing is divided by zero.
    """

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, t: float) -> Tensor:
        mask = labels != IGNORED
        count = mask.sum().clamp(min=1) if clamp else mask.sum()
        weight = 1 - alpha if swapped else alpha
        parts = soft(student, teacher.detach(), t)
        mean = (parts * mask).sum() / count if few_soft else parts.mean()
        labelled = (hard(student, labels) * mask).sum() / (len(labels) if all_hard else count)
        result: Tensor = weight * t**power * mean + (1 - weight) * labelled
        return result

    return loss


def _softmax_twice(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.softmax(-1), labels, ignore_index=IGNORED, reduction="none")


def _reverse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return kl(teacher, student, temperature)


def _no_label(loss: Function, draw: Draw) -> bool:
    student, teacher, labels = _texts(draw, 6, 4)
    student.requires_grad_()
    value = loss(student, teacher, labels.fill_(IGNORED), 0.5, 2.0)
    value.backward()
    assert student.grad is not None
    return bool(torch.isfinite(value)) and bool(student.grad.abs().sum(-1).gt(0).all())


def _teacher_untouched(loss: Function, draw: Draw) -> bool:
    student, teacher, labels = _texts(draw, 6, 4)
    teacher.requires_grad_()
    loss(student.requires_grad_(), teacher, labels, 0.5, 2.0).backward()
    return teacher.grad is None or not teacher.grad.any()


TEXTS = Exercise(
    number="5.1",
    title="Texts with and without labels",
    kind="write",
    minutes=12,
    difficulty=2,
    hints=(
        "Two means over two sets: the KL over all N texts, and the negative log-likelihood over "
        "those whose label is not -100.",
        "`F.cross_entropy(student_logits_NC, labels_N, ignore_index=-100, reduction='sum')` sums "
        "over the labelled texts. Divide it by their number, clamped to 1.",
        "The soft term: both logits over T, `log_softmax` on both, the sum over classes of "
        "`p * (log_p - log_q)`, its mean over the texts, times T². `detach` the teacher's logits.",
    ),
    cases=_loss_cases,
    oracle=_loss_oracle,
    library=(losses.distillation_loss,),
    properties=(
        Property(
            "no label at all",
            _no_label,
            "A batch without any label must still teach: the soft term remains, finite, and with a "
            "gradient for every text. Clamp the number of labelled texts to 1.",
        ),
        Property(
            "no gradient to the teacher",
            _teacher_untouched,
            "The value is right, but a gradient reaches the teacher's logits: `detach` them first.",
        ),
    ),
    mutants=(
        Mutant(
            "no T²",
            _loss_with(power=0),
            "The factor T² on the soft term is missing, so the teacher is heard less and less as T "
            "grows.",
            "IntelLabs/distiller#122 and TropComplique/knowledge-distillation-keras#2",
        ),
        Mutant(
            "mean over the classes",
            _loss_with(soft=mean_kl),
            "Your KL is a mean over the classes, C times too small: the default reduction of "
            "`kl_div` does that. Sum over the classes, and take the mean over the texts.",
            "haitongli/knowledge-distillation-pytorch#2 and #48",
        ),
        Mutant(
            "reverse KL",
            _loss_with(soft=_reverse),
            "Teacher and student have changed places: yours is KL(q‖p). It is KL(p‖q), and in "
            "`F.kl_div` the *student* comes first.",
            "paiml/aprender PR#2153",
        ),
        Mutant(
            "alpha on the labels",
            _loss_with(swapped=True),
            "Your alpha weighs the labels. Here it is the teacher's weight; projects differ, so "
            "look before you copy a value.",
            "the other convention, as in AiDotNet PR#437",
        ),
        Mutant(
            "softmax twice",
            _loss_with(hard=_softmax_twice),
            "`F.cross_entropy` takes logits and makes the softmax itself. You gave it "
            "probabilities, so it makes a softmax of a softmax.",
            "proposed as a correction in haitongli/knowledge-distillation-pytorch#10",
        ),
        Mutant(
            "hard term divided by all",
            _loss_with(all_hard=True),
            "The hard term is summed over the labelled texts and divided by all of them: the fewer "
            "labels a batch has, the less each counts.",
            "Fast-LLM#344, divided by what was masked as well",
        ),
        Mutant(
            "NaN without labels",
            _loss_with(clamp=False),
            "All values are right, until a batch comes in which no text has a label: 0 / 0 is NaN. "
            "Clamp their number to 1.",
            "LMOps#38, a row with nothing to learn",
        ),
    ),
)

# 5.2 · in scope, and out of it --------------------------------------------------------------------


def _scope_cases(draw: Draw) -> list[Case]:
    cases = []
    for n, c in ((60, 5), (80, 4), (50, 8)):
        logits, labels = draw.logits(n, c), draw.integers(n, below=c)
        oos = int(draw.integers(1, below=c))
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
    ),
)

EXERCISES = (TEXTS, SCOPE)
