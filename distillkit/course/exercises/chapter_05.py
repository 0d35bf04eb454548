"""Exercise of chapter 05, a classifier: its loss on texts with and without labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit import losses
from distillkit.course.exercises import loops
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import (
    Function,
    cross_entropy,
    kl,
    mean_kl,
    nll,
)

# 5.1 · texts with and without labels --------------------------------------------------------------


def _texts(draw: Draw, n: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels: a third of the texts has none."""
    labels = draw.integers(n, below=c)
    labels[1::3] = IGNORED
    return draw.logits(n, c), draw.logits(n, c), labels


def _loss_cases(draw: Draw) -> list[Case]:
    shapes = ((5, 4, 0.3, 2.5), (8, 3, 0.9, 4.0), (4, 6, 0.6, 1.5), (7, 5, 1.0, 2.0))
    cases = [
        Case(f"N={n}, C={c}, α={alpha}, T={t}", (*_texts(draw, n, c), alpha, t))
        for n, c, alpha, t in shapes
    ]
    student, teacher, labels = _texts(draw, 6, 4)
    alone = (student, teacher, labels.fill_(IGNORED), 0.7, 3.0)
    return [*cases, Case("N=6, C=4, α=0.7, T=3.0, and no label at all", alone)]


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
    summed: bool = False,
    softens: bool = True,
) -> Function:
    """The loss with one part replaced.

    swapped: alpha on the labels' term. all_hard: divided by all texts. few_soft: the teacher is
    asked about the labelled texts alone. clamp: nothing is divided by zero. summed: the soft term
    is a sum over the texts. softens: logits are divided by T.
    """

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, t: float) -> Tensor:
        mask = labels != IGNORED
        count = mask.sum().clamp(min=1) if clamp else mask.sum()
        weight = 1 - alpha if swapped else alpha
        parts = soft(student, teacher.detach(), t if softens else 1.0)
        mean = (parts * mask).sum() / count if few_soft else parts.mean()
        mean = parts.sum() if summed else mean
        labelled = (hard(student, labels) * mask).sum() / (len(labels) if all_hard else count)
        result: Tensor = weight * t**power * mean + (1 - weight) * labelled
        return result

    return loss


def _softmax_twice(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.softmax(-1), labels, ignore_index=IGNORED, reduction="none")


def _reverse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return kl(teacher, student, temperature)


def _of_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    q, p = (logits / temperature for logits in (student, teacher))
    return F.kl_div(q.softmax(-1), p.softmax(-1), reduction="none").sum(-1)


def _square_on_both(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, t: float
) -> Tensor:
    result: Tensor = t**2 * _loss_with(power=0)(student, teacher, labels, alpha, t)
    return result


def _nothing(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, t: float) -> Tensor:
    result: Tensor = _loss_with()(student, teacher, labels, alpha, t)
    return result if (labels != IGNORED).any() else torch.zeros(())


def _gradients(loss: Function, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, bool]:
    """What arrives at the student's logits, and whether something arrives at the teacher's."""
    student, teacher = (logits.clone().requires_grad_() for logits in batch[:2])
    loss(student, teacher, batch[2], 0.3, 2.5).backward()
    assert student.grad is not None
    return student.grad, teacher.grad is not None and bool(teacher.grad.any())


def _batches(draw: Draw) -> list[tuple[Tensor, Tensor, Tensor]]:
    student, teacher, labels = _texts(draw, 6, 4)
    return [(student, teacher, labels), (student, teacher, torch.full_like(labels, IGNORED))]


def _student_hears(loss: Function, draw: Draw) -> bool:
    return all(
        torch.allclose(_gradients(loss, batch)[0], _gradients(_loss_with(), batch)[0], atol=1e-4)
        for batch in _batches(draw)
    )


def _teacher_untouched(loss: Function, draw: Draw) -> bool:
    return not any(_gradients(loss, batch)[1] for batch in _batches(draw))


def _sure(loss: Function, draw: Draw) -> bool:
    student, teacher, labels = _texts(draw, 6, 4)
    batch = 200 * student, 200 * teacher, labels
    return bool(torch.isfinite(loss(*batch, 0.3, 2.5))) and bool(
        _gradients(loss, batch)[0].isfinite().all()
    )


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
            "a gradient to the student",
            _student_hears,
            "The values are right, but the gradient that reaches the student's logits is not the "
            "loss's. Both terms must teach: no `.item()`, no `torch.no_grad()` around them, no "
            "`detach` on the student's logits.",
        ),
        Property(
            "no gradient to the teacher",
            _teacher_untouched,
            "The value is right, but a gradient reaches the teacher's logits: `detach` them, also "
            "where a batch has no label.",
        ),
        Property(
            "logits that are hundreds apart",
            _sure,
            "The values are right until a probability is too small for a float and becomes 0: its "
            "logarithm is -inf, and 0 · inf is NaN. Take `log_softmax`, not the `log` of a "
            "`softmax`.",
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
        Mutant(
            "nothing without labels",
            _nothing,
            "All values are right, until a batch comes in which no text has a label: you give 0. "
            "The teacher still speaks about its texts, so the first term stays.",
            "a reader",
        ),
        Mutant(
            "soft term on labelled texts",
            _loss_with(few_soft=True),
            "Your soft term leaves out the texts without a label. These are what the teacher is "
            "good for: its mean goes over all N.",
            "a reader, who masked both terms alike",
        ),
        Mutant(
            "kl_div of probabilities",
            _loss_with(soft=_of_probabilities),
            "`F.kl_div` takes the *logarithm* of the student's probabilities as its first "
            "argument. You gave it probabilities, and what comes out is no KL.",
            "microsoft/ProDA#20 and matchmaker#18",
        ),
        Mutant(
            "a cross-entropy for the KL",
            _loss_with(soft=cross_entropy),
            "Your soft term is the cross-entropy, -Σ p log q. Its gradient is the KL's, but its "
            "value is too large by the teacher's entropy: subtract -Σ p log p.",
            "torchtune's ForwardKLLoss, a cross-entropy by that name",
        ),
        Mutant(
            "no temperature in the KL",
            _loss_with(softens=False),
            "T² is there, but the logits are not divided by T: soften both, the student's too, "
            "before the softmax of the soft term.",
            "a reader",
        ),
        Mutant(
            "T for T²",
            _loss_with(power=1),
            "The soft term is multiplied by T. It is T²: the gradient of the KL shrinks by T "
            "twice, once in `logits / T`, and once because the distributions come closer.",
            "a reader",
        ),
        Mutant(
            "T² on both terms",
            _square_on_both,
            "T² multiplies your labels' term as well. That one knows no temperature: put T² on the "
            "soft term alone.",
            "a reader, who closed the bracket too late",
        ),
        Mutant(
            "a sum over the texts",
            _loss_with(summed=True),
            "Your soft term is a sum over the texts, N times too large: take its mean over all N "
            '(`reduction="batchmean"`).',
            "a reader",
        ),
    ),
)

EXERCISES = (TEXTS,)
