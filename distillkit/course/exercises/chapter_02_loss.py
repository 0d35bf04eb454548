"""Exercises of chapter 02, the loss: the loss of the course."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit import losses
from distillkit.course.exercises import loops
from distillkit.course.exercises import whole_loss as whole
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function, cross_entropy, kl, mean_kl

# 2.3 · the loss of the course ---------------------------------------------------------------------


def _loss_cases(draw: Draw) -> list[Case]:
    cases = []
    for (b, s, v), alpha, t in (
        ((3, 5, 7), 0.3, 2.5),
        ((2, 6, 4), 0.8, 1.0),
        ((4, 3, 6), 1.0, 4.0),
        ((2, 4, 9), 0.0, 3.0),
    ):
        labels = draw.labels(draw.mask(b, s), v)
        drawn = (draw.logits(b, s, v), draw.logits(b, s, v), labels, alpha, t)
        cases.append(Case(f"B={b}, S={s}, V={v}, α={alpha}, T={t}", drawn))
    student, labels = draw.logits(2, 4, 5), draw.labels(draw.mask(2, 4), 5)
    student[0, 1, 2] = 700.0
    cases.append(Case("one huge logit", (student, draw.logits(2, 4, 5), labels, 0.6, 2.0)))
    logits = [draw.logits(2, 3, 8, dtype=torch.float64) for _ in range(2)]
    labels = draw.labels(draw.mask(2, 3), 8)
    return [*cases, Case("float64 logits", (*logits, labels, 0.5, 1.5))]


def _loss_oracle(
    student_logits: list[Any],
    teacher_logits: list[Any],
    labels: list[list[int]],
    alpha: float,
    temperature: float,
) -> float:
    soft, hard, valid = 0.0, 0.0, 0
    for b in range(len(labels)):
        for s in range(len(labels[b])):
            if labels[b][s] == IGNORED:
                continue
            log_p = loops.log_softmax(teacher_logits[b][s], temperature)
            log_q = loops.log_softmax(student_logits[b][s], temperature)
            soft += loops.kl(log_p, log_q)
            hard += -loops.log_softmax(student_logits[b][s])[labels[b][s]]
            valid += 1
    if valid == 0:
        return 0.0
    return alpha * temperature**2 * soft / valid + (1 - alpha) * hard / valid


def _batch(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = draw.logits(3, 4, 6), draw.logits(3, 4, 6)
    return student, teacher, draw.labels(draw.mask(3, 4), 6)


def _student_learns(loss: Function, draw: Draw) -> bool:
    student, teacher, labels = _batch(draw)
    loss(student.requires_grad_(), teacher, labels, 0.5, 2.0).backward()
    assert student.grad is not None
    return bool(student.grad[labels != IGNORED].abs().sum(-1).gt(0).all())


def _teacher_does_not(loss: Function, draw: Draw) -> bool:
    student, teacher, labels = _batch(draw)
    loss(student.requires_grad_(), teacher.requires_grad_(), labels, 0.5, 2.0).backward()
    return teacher.grad is None or not teacher.grad.any()


def _masked_content_is_nothing(loss: Function, draw: Draw) -> bool:
    student, teacher, labels = _batch(draw)
    before = loss(student, teacher, labels, 0.5, 2.0)
    student[labels == IGNORED], teacher[labels == IGNORED] = 50.0, -50.0
    student[labels == IGNORED, 0] = -20.0
    return bool(torch.isclose(loss(student, teacher, labels, 0.5, 2.0), before))


def _nothing_valid_is_zero(loss: Function, draw: Draw) -> bool:
    student, teacher, labels = _batch(draw)
    value = loss(student, teacher, torch.full_like(labels, IGNORED), 0.5, 2.0)
    return bool(torch.as_tensor(value).detach() == 0)


def _nothing_valid_keeps_the_path(loss: Function, draw: Draw) -> bool:
    student, teacher, labels = _batch(draw)
    nothing = torch.full_like(labels, IGNORED)
    value = loss(student.requires_grad_(), teacher, nothing, 0.5, 2.0)
    value.backward()  # of NaN too, and that leads nowhere
    return student.grad is not None and not student.grad.any() and bool(value.isfinite())


WHOLE_LOSS = Exercise(
    number="2.3",
    title="The loss of the course",
    kind="write",
    minutes=20,
    difficulty=3,
    hints=(
        "Write it in four steps: a mask (`labels != -100`), the KL of each token as in 2.2, the "
        "negative log-likelihood of each label at T = 1, and one masked mean for each.",
        "A masked mean is `(values * mask).sum() / mask.sum()`. Where nothing is valid, it is 0/0: "
        "give the denominator `.clamp(min=1)`, and the graph survives.",
        "-100 cannot be an index: `labels.clamp(min=0)` before `gather`; the mask removes those "
        "tokens afterwards. T² stands with the KL alone; and the teacher's logits are detached.",
    ),
    cases=_loss_cases,
    oracle=_loss_oracle,
    library=(losses.distillation_loss,),
    properties=(
        Property(
            "the student learns",
            _student_learns,
            "The value is right, but no gradient reaches the student's logits. Stay in tensors "
            "from beginning to end (no `.item()`, no `detach` on the student).",
        ),
        Property(
            "no gradient to the teacher",
            _teacher_does_not,
            "The value is right, but a gradient reaches the teacher's logits: `detach` them first.",
        ),
        Property(
            "masked positions do not matter",
            _masked_content_is_nothing,
            "What stands at masked positions changes your loss.",
        ),
        Property(
            "zero where nothing is valid",
            _nothing_valid_is_zero,
            "A batch in which every label is -100 must give 0.",
        ),
        Property(
            "a path where nothing is valid",
            _nothing_valid_keeps_the_path,
            "A batch in which every label is -100 must still let `backward()` through to the "
            "student's logits, with a gradient of 0.",
        ),
    ),
    mutants=(
        Mutant(
            "no T²",
            whole.loss_with(power=0),
            "The factor T² on the soft term is missing, so its gradient shrinks as T grows, and "
            "the teacher is heard less and less.",
            "IntelLabs/distiller#122, keras-io#869 and transformers#12299",
        ),
        Mutant(
            "padding in the soft term",
            whole.loss_with(reduce_soft=whole.unmasked),
            "Your soft term counts every position, padding and prompt as well. Mask it like the "
            "hard one.",
            "optipfair#34, where masking it erased the lead of the fancier method",
        ),
        Mutant(
            "divided by all tokens",
            whole.loss_with(reduce_soft=whole.by_all, reduce_hard=whole.by_all),
            "The sums are masked, but divided by all B·S positions: the more padding, the smaller "
            "your loss. Divide by the number of valid tokens.",
            "Fast-LLM#344",
        ),
        Mutant(
            "divided by the batch",
            whole.loss_with(reduce_soft=whole.by_rows),
            "Your soft term is divided by B alone (`batchmean` does that), so it grows with the "
            "length of the conversations. Divide by the number of valid tokens.",
            "transformers#1181, trl PR#4105 and sparseml PR#592",
        ),
        Mutant(
            "mean over the vocabulary",
            whole.loss_with(soft=mean_kl),
            "Your KL is a mean over the vocabulary and too small by the factor V: sum over the "
            "last axis.",
            "haitongli/knowledge-distillation-pytorch#2 and #48",
        ),
        Mutant(
            "divided twice",
            whole.loss_with(reduce_soft=whole.twice, reduce_hard=whole.twice),
            "You divided by the number of valid tokens twice: once is the mean.",
            "easydistill PR#16",
        ),
        Mutant(
            "temperature in the hard term",
            whole.loss_with(hard_temperature=True),
            "The temperature has leaked into the hard term. The labels are compared with the "
            "student as it speaks, at T = 1.",
            "a temperature that leaked into the loss, trl PR#5731",
        ),
        Mutant(
            "ignore_index never used",
            whole.loss_with(reduce_soft=whole.unmasked, reduce_hard=whole.unmasked),
            "Labels of -100 are counted as if they were token 0, in both terms: they mean *leave "
            "this position out*.",
            "Liger-Kernel PR#974, where ignore_index was accepted and not used",
        ),
        Mutant(
            "its own teacher",
            whole.loss_with(soft=lambda student, teacher, t: kl(student, student, t)),
            "Your soft term is 0: the student's logits stand on both sides of the KL.",
            "labml#66, after a refactor",
        ),
        Mutant(
            "cross-entropy",
            whole.loss_with(soft=cross_entropy),
            "Your soft term is the cross-entropy H(p, q) and not KL(p‖q): too large by the "
            "teacher's entropy, times T². The gradient is right; the value tells you nothing about "
            "how near the student is.",
            "torchtune's ForwardKLLoss, DistiLLM and MiniLLM",
        ),
        Mutant(
            "NaN where nothing is valid",
            whole.loss_with(reduce_soft=whole.unclamped, reduce_hard=whole.unclamped),
            "All values are right, until a batch comes in which no label is valid: the mean of "
            "nothing is NaN, and one NaN ruins every weight. Clamp the denominator to 1.",
            "LMOps#38, a row with nothing to learn",
        ),
        Mutant(
            "no path where nothing is valid",
            whole.leaving_at_once,
            "All values are right, until a batch comes in which no label is valid. It is 0, but "
            "has no path to the logits: `backward()` fails. Leave out the early return, and clamp "
            "the denominator to 1: the sum is 0 by itself, and the graph survives.",
            "a reader",
        ),
        Mutant(
            "T² on both terms",
            whole.loss_with(hard_power=2),
            "T² stands in front of everything. It belongs to the soft term alone, whose gradient "
            "shrinks as 1/T²; the hard term is taken at T = 1 and needs no mending.",
            "a reader",
        ),
        Mutant(
            "T for T²",
            whole.loss_with(power=1),
            "You multiply the soft term by T, once. Its gradient shrinks as 1/T²: one factor is "
            "the softmax's 1/T, the other that p and q come nearer to each other. So T².",
            "a reader",
        ),
        Mutant(
            "α on the wrong term",
            lambda s, t, labels, alpha, T: whole.loss_with()(s, t, labels, 1 - alpha, T),
            "Your α is on the wrong side: here α is the weight of the *teacher's* term, and 1 - α "
            "that of the labels.",
            "a reader",
        ),
        Mutant(
            "reverse KL",
            whole.loss_with(soft=lambda s, t, T: kl(t, s, T)),
            "Your soft term is KL(q‖p), the reverse one: p, the teacher, must weigh the sum. All "
            "else is right.",
            "ms-swift PR#6334, where two projects name the directions in opposite order",
        ),
        Mutant(
            "mean of the conversations' means",
            whole.loss_with(reduce_soft=whole.by_means, reduce_hard=whole.by_means),
            "You took each conversation's mean, and then the mean of those, so a token of a short "
            "one weighs more. Add up all valid tokens of the batch, and divide once.",
            "a reader",
        ),
        Mutant(
            "shifted again",
            whole.shifted_again,
            "You shift the labels. They are aligned with the logits already: the logits at s are "
            "to be held against the label at s here.",
            "a reader",
        ),
        Mutant(
            "first column left out",
            whole.without_first_column,
            "You take `[:, 1:]` of logits and labels, so the first column is lost. They are "
            "aligned already: nothing is to be shifted or left out here.",
            "a reader",
        ),
    ),
)

EXERCISES = (WHOLE_LOSS,)
