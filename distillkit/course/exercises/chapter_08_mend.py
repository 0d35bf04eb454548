"""Exercise of chapter 08, pruning: recovery by distillation, to mend."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_08 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 8.7 · mend it ------------------------------------------------------------------------------------

Build = Callable[[], "Tied"]
Masks = tuple[Tensor, Tensor]
MOMENTUM = 0.9


class Tied(nn.Module):
    """The smallest model whose head is its table: a mean of embeddings, a matrix, the table again.

    `embed`, `middle` and `head` are its layers; `head.weight` *is* `embed.weight`.
    """

    def __init__(self, table: Tensor, middle: Tensor) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(table.clone(), freeze=False)
        self.middle = nn.Linear(len(middle), len(middle), bias=False)
        self.middle.weight = nn.Parameter(middle.clone())
        self.head = nn.Linear(len(middle), len(table), bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, S) ids -> (B, V) logits."""
        logits: Tensor = self.head(self.middle(self.embed(input_ids).mean(1)))
        return logits


def _builder(table: Tensor, middle: Tensor) -> Build:
    return lambda: Tied(table, middle)


def _recover_cases(draw: Draw) -> list[Case]:
    cases = []
    for n, b, s, v, d, alpha in ((3, 3, 4, 7, 4, 0.5), (4, 2, 5, 6, 5, 0.8), (3, 4, 3, 9, 3, 0.3)):
        build = _builder(draw.logits(v, d, scale=0.8), draw.logits(d, d, scale=0.8))
        masks = [draw.logits(*shape) > 0.3 for shape in ((v, d), (d, d))]
        for mask in masks:
            mask[0, 0], mask[-1, -1], mask[0, 1] = True, False, False
        masks[1][1:, 0] = False  # more of the middle than of the table is cut
        ids = draw.integers(n, b, s, below=v)
        labels = draw.integers(n, b, below=v)
        name = f"{n} steps, B={b}, V={v}, D={d}, α={alpha}"
        numbers = tuple(mask.to(draw.dtype) for mask in masks)
        cases.append(Case(name, (build, numbers, ids, labels, alpha, 0.2)))
    return cases


def _recover_oracle(
    build: Build,
    masks: Masks,
    ids_NBS: list[list[list[int]]],
    labels_NB: list[list[int]],
    alpha: float,
    rate: float,
) -> list[float]:
    model = build()
    stay = [mask.tolist() for mask in masks]
    whole = [model.embed.weight.tolist(), model.middle.weight.tolist()]
    cut = [_times(matrix, mask) for matrix, mask in zip(whole, stay, strict=True)]
    speed = [[[0.0] * len(row) for row in matrix] for matrix in cut]
    losses = []
    for ids_BS, labels_B in zip(ids_NBS, labels_NB, strict=True):
        loss, slopes = _loss_and_slopes(cut, whole, ids_BS, labels_B, alpha)
        losses.append(loss)
        for matrix, mask, slope, moving in zip(cut, stay, slopes, speed, strict=True):
            for i, row in enumerate(matrix):
                for j in range(len(row)):
                    moving[i][j] = MOMENTUM * moving[i][j] + slope[i][j]
                    row[j] = (row[j] - rate * moving[i][j]) * mask[i][j]
    weights = [w for matrix in cut for row in matrix for w in row]
    return [*losses, sum(w != 0 for w in weights)]


def _loss_and_slopes(
    cut: list[list[list[float]]],
    whole: list[list[list[float]]],
    ids_BS: list[list[int]],
    labels_B: list[int],
    alpha: float,
) -> tuple[float, list[list[list[float]]]]:
    """The loss of a batch, and its slopes in the table and in the middle, by the chain rule."""
    table, middle = cut
    slopes = [[[0.0] * len(row) for row in matrix] for matrix in cut]
    width, count = range(len(middle)), len(labels_B)
    loss = 0.0
    for ids, label in zip(ids_BS, labels_B, strict=True):
        x, h, z = _forward(table, middle, ids)
        log_q, log_p = loops.log_softmax(z), loops.log_softmax(_forward(whole[0], whole[1], ids)[2])
        loss += (alpha * loops.kl(log_p, log_q) - (1 - alpha) * log_q[label]) / count
        q, p = loops.softmax(z), [math.exp(log) for log in log_p]
        dz = [
            (alpha * (q[v] - p[v]) + (1 - alpha) * (q[v] - (v == label))) / count
            for v in range(len(z))
        ]
        dh = [sum(dz[v] * table[v][i] for v in range(len(z))) for i in width]
        for v in range(len(z)):
            for i in width:
                slopes[0][v][i] += dz[v] * h[i]
        for i in width:
            for j in width:
                slopes[1][i][j] += dh[i] * x[j]
                for token in ids:
                    slopes[0][token][j] += middle[i][j] * dh[i] / len(ids)
    return loss, slopes


def _forward(
    table: list[list[float]], middle: list[list[float]], ids: list[int]
) -> tuple[list[float], list[float], list[float]]:
    """The mean of the embeddings, what the middle makes of it, and the logits."""
    x = [sum(table[token][j] for token in ids) / len(ids) for j in range(len(middle))]
    h = [sum(a * b for a, b in zip(row, x, strict=True)) for row in middle]
    return x, h, [sum(a * b for a, b in zip(row, h, strict=True)) for row in table]


def _times(matrix: list[list[float]], mask: list[list[float]]) -> list[list[float]]:
    pairs = zip(matrix, mask, strict=True)
    return [[w * m for w, m in zip(row, line, strict=True)] for row, line in pairs]


def _recovery(
    *, teacher: str = "whole", again: str = "after", count: str = "once", only: int = 2
) -> Function:
    """The recovery mended in part.

    teacher: "whole", the "same" object, or a copy "cut" with the student. again: when the masks
    come back: after the step, before the forward pass, or "never". count: tied weights "once" or
    "twice", or the "zeros". only: so many masks come back.
    """

    def recover(
        build: Build, masks: Masks, ids: Tensor, labels: Tensor, alpha: float, rate: float
    ) -> list[float]:
        student = build()
        other = student if teacher == "same" else build()
        pairs = list(zip(_matrices(student), masks, strict=True))
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
            optimizer.step()
            _apply(pairs[:only] if again == "after" else [])
            losses.append(loss.item())
        counted = student.state_dict() if count == "twice" else dict(student.named_parameters())
        left = torch.cat([each.detach().flatten() for each in counted.values()]) != 0
        return [*losses, int((~left if count == "zeros" else left).sum())]

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
    oracle=_recover_oracle,
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
            _recovery(only=1),
            "You put the table's mask on again and forgot that of the middle: its zeros are gone "
            "after a step.",
            "a reader",
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
