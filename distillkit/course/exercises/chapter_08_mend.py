"""Exercise of chapter 08, pruning: recovery by distillation, to mend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit.course.exercises.broken import chapter_08 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.recovery import (
    MOMENTUM,
    Build,
    Masks,
    Tied,
    recovered_in_loops,
)

# 8.7 · mend it ------------------------------------------------------------------------------------


def _builder(table: Tensor, middle: Tensor) -> Build:
    return lambda: Tied(table, middle)


def _recover_cases(draw: Draw) -> list[Case]:
    """The last feature is dead from the beginning: 0, without a slope, and not all of it masked.

    So neither the ones of the masks nor the number of all weights is that of the weights left.
    """
    cases = []
    for n, b, s, v, d, alpha in ((3, 3, 4, 7, 4, 0.5), (4, 2, 5, 6, 5, 0.8), (3, 4, 3, 9, 4, 0.3)):
        table, middle = draw.logits(v, d, scale=0.8), draw.logits(d, d, scale=0.8)
        table[:, -1], middle[:, -1], middle[-1] = 0.0, 0.0, 0.0
        build = _builder(table, middle)
        masks = [draw.logits(*shape) > 0.3 for shape in ((v, d), (d, d))]
        for mask in masks:
            mask[0, 0], mask[-1, -1], mask[0, 1], mask[0, -1] = True, False, False, True
        masks[1][1:, 0] = False  # more of the middle than of the table is cut
        ids = draw.integers(n, b, s, below=v)
        labels = draw.integers(n, b, below=v)
        name = f"{n} steps, B={b}, V={v}, D={d}, α={alpha}"
        numbers = tuple(mask.to(draw.dtype) for mask in masks)
        cases.append(Case(name, (build, numbers, ids, labels, alpha, 0.2)))
    return cases


def _recovery(
    *, teacher: str = "whole", again: str = "after", count: str = "once", only: str = "both"
) -> Function:
    """The recovery mended in part.

    teacher: "whole", the "same" object, or a copy "cut" with the student. again: when the masks
    come back: after the step, before the forward pass, "between" slopes and step, at the "end", or
    "never". count: tied weights "once" or "twice", the "zeros", "all" weights, or the "masks".
    only: the mask that comes back, "both", "table" or "middle".
    """

    def recover(
        build: Build, masks: Masks, ids: Tensor, labels: Tensor, alpha: float, rate: float
    ) -> list[float]:
        student = build()
        other = student if teacher == "same" else build()
        pairs = list(zip(_matrices(student), masks, strict=True))
        some = {"both": pairs, "table": pairs[:1], "middle": pairs[1:]}[only]
        _apply(pairs)
        _apply(list(zip(_matrices(other), masks, strict=True)) if teacher == "cut" else [])
        optimizer = torch.optim.SGD(student.parameters(), lr=rate, momentum=MOMENTUM)
        losses = []
        for batch, wanted in zip(ids, labels, strict=True):
            _apply(pairs if again == "before" else [])
            log_q, log_p = student(batch).log_softmax(-1), other(batch).detach().log_softmax(-1)
            soft = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            loss = alpha * soft + (1 - alpha) * F.nll_loss(log_q, wanted)
            optimizer.zero_grad()
            loss.backward()
            _apply(pairs if again == "between" else [])
            optimizer.step()
            _apply(some if again == "after" else [])
            losses.append(loss.item())
        _apply(pairs if again == "end" else [])
        counted = student.state_dict() if count == "twice" else dict(student.named_parameters())
        left = torch.cat([each.detach().flatten() for each in counted.values()]) != 0
        numbers = {
            "zeros": int((~left).sum()),
            "all": left.numel(),
            "masks": int(sum(mask.sum() for mask in masks)),
        }
        return [*losses, numbers.get(count, int(left.sum()))]

    return recover


def _matrices(model: Tied) -> list[Tensor]:
    return [model.embed.weight, model.middle.weight]


def _apply(pairs: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for weight, mask in pairs:
            weight.mul_(mask)


_SAME = "labml#66, where the student became its own teacher"
_LOST = "PyTorch-Deep-Compression#2 and jacobgil/pytorch-pruning#41"
_TWICE = "llama2.c#378, where 42 million weights counted as 58"

MEND_RECOVERY = Exercise(
    number="8.7",
    title="A recovery with three faults",
    kind="mend",
    minutes=15,
    difficulty=3,
    hints=(
        "Print three things: the soft part of the loss in the first step (should a cut student "
        "agree with its teacher to the last digit?), one of the weights that were cut, after the "
        "last step, and the number of weights before anything is cut.",
        "One fault each in who the teacher is, in what the optimizer does to weights that are 0, "
        "and in the weights that are counted: `state_dict()` names the table twice.",
        "`teacher = build()`, before anything is cut; the masks once more after `optimizer.step()`;"
        " and `student.parameters()`, which has each weight once.",
    ),
    cases=_recover_cases,
    oracle=recovered_in_loops,
    given=broken.recover,
    mutants=(
        Mutant(
            "its own teacher",
            _recovery(teacher="same"),
            "The zeros stay, and are counted rightly. One fault is left: `teacher = student` is "
            "one model by two names, so the teacher is cut as well, and the soft term is always 0.",
            _SAME,
        ),
        Mutant(
            "masks lost",
            _recovery(again="never"),
            "Teacher and count are mended. One fault is left: the optimizer moves the weights that "
            "were cut. Put the masks on again after each step.",
            _LOST,
        ),
        Mutant(
            "counted twice",
            _recovery(count="twice"),
            "Teacher and masks are mended. One fault is left: `state_dict()` has the table twice, "
            "as `embed.weight` and as `head.weight`. It is one tensor.",
            _TWICE,
        ),
        Mutant(
            "only the teacher mended",
            _recovery(again="never", count="twice"),
            "The teacher is a model of its own, good. Two faults are left: what happens to the "
            "zeros in a step, and what is counted in the end.",
            f"{_LOST}; {_TWICE}",
        ),
        Mutant(
            "only the masks mended",
            _recovery(teacher="same", count="twice"),
            "The zeros stay, good. Two faults are left: who the teacher is, and what is counted in "
            "the end.",
            f"{_SAME}; {_TWICE}",
        ),
        Mutant(
            "only the count mended",
            _recovery(teacher="same", again="never"),
            "Each weight is counted once, good. Two faults are left: who the teacher is, and what "
            "happens to the zeros in a step.",
            f"{_SAME}; {_LOST}",
        ),
        Mutant(
            "a teacher that is cut",
            _recovery(teacher="cut"),
            "The teacher is an object of its own, but you made it after the cut: it has the "
            "student's zeros. Make it, or copy it, before.",
            "a reader, who wrote `copy.deepcopy(student)` below the masks",
        ),
        Mutant(
            "masks before the step",
            _recovery(again="before"),
            "Teacher, losses and count are right, but the masks come back at the beginning of each "
            "round: after the last step they are missing, and that model is saved.",
            "filter-pruning-geometric-median#47, where momentum revives weights",
        ),
        Mutant(
            "the table alone",
            _recovery(only="table"),
            "You put the table's mask on again and forgot that of the middle: its zeros are gone "
            "after a step.",
            "a reader",
        ),
        Mutant(
            "the middle alone",
            _recovery(only="middle"),
            "You put the middle's mask on again and forgot that of the table: its zeros are gone "
            "after a step.",
            "a reader",
        ),
        Mutant(
            "masks at the end alone",
            _recovery(again="end"),
            "Your model ends with its zeros, but in between they were trained: from the second "
            "step on, the losses are those of a model that is not cut. Masks come back after "
            "*each* step.",
            "a reader, who put the line below the loop",
        ),
        Mutant(
            "masks between slopes and step",
            _recovery(again="between"),
            "Your masks come back before `optimizer.step()`, which then moves the zeros away "
            "again. They come after it.",
            "a reader, who put the line above the step",
        ),
        Mutant(
            "all weights counted",
            _recovery(count="all"),
            "All is mended, and your last number counts every weight, also those that are 0. Asked "
            "for are those that are *not* 0.",
            "a reader, who wrote `p.numel()`",
        ),
        Mutant(
            "masks counted",
            _recovery(count="masks"),
            "You count the ones of the masks. A weight can be 0 where its mask is 1, and a mask "
            "does not say what training made of the rest: count the weights of the model itself.",
            "a reader, who wrote `sum(m.sum() for m in masks)`",
        ),
        Mutant(
            "zeros counted",
            _recovery(count="zeros"),
            "All is mended, and your last number counts the zeros. Asked for are the weights that "
            "are *left*.",
            "a reader",
        ),
    ),
)

EXERCISES = (MEND_RECOVERY,)
