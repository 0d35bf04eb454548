"""Exercises of chapter 05, a classifier: the loop of the chapter to mend, and its zero."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_05 as broken
from distillkit.course.exercises.definition import OFFERED, Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 5.3 · mend it ------------------------------------------------------------------------------------


class Bag(nn.Module):
    """The smallest classifier: the mean of a row of logits for each token of a text, (V, C)."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """(B, S) ids -> an object that has `logits`, (B, C), as in transformers."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = mask.to(self.table.dtype).unsqueeze(-1)
        return SimpleNamespace(logits=(weights * self.table[input_ids]).sum(1) / weights.sum(1))


def _builder(student: Tensor, teacher: Tensor) -> Callable[[], tuple[Bag, Bag]]:
    return lambda: (Bag(student), Bag(teacher).eval().requires_grad_(False))


def _train_cases(draw: Draw) -> list[Case]:
    cases = []
    for n, b, s, v, c, t, alpha in (
        (4, 3, 5, 6, 4, 2.0, 0.5),
        (3, 4, 6, 5, 3, 4.0, 0.9),
        (5, 2, 7, 8, 5, 1.5, 0.3),
    ):
        ids = draw.integers(n, b, s, below=v, least=1)
        ids[:, 0, s // 2 :] = 0  # padding
        ids[1:, -1, -1] = 0
        labels = draw.integers(n, b, below=c)
        build = _builder(draw.logits(v, c), draw.logits(v, c))
        name = f"{n} steps, B={b}, S={s}, C={c}, α={alpha}, T={t}"
        cases.append(Case(name, (build, ids, labels, alpha, t, 0.5)))
    return cases


def _train_oracle(
    build: Callable[[], tuple[Any, Any]],
    ids_NBS: list[Any],
    labels_NB: list[Any],
    alpha: float,
    T: float,
    rate: float,
) -> list[float]:
    student, teacher = (model.table.tolist() for model in build())
    losses = []
    for ids_BS, labels_B in zip(ids_NBS, labels_NB, strict=True):
        total, slopes = 0.0, [[0.0] * len(row) for row in student]
        for ids, label in zip(ids_BS, labels_B, strict=True):
            words = [token for token in ids if token != 0]
            q, p = (_mean(table, words) for table in (student, teacher))
            total += alpha * T**2 * loops.kl(loops.log_softmax(p, T), loops.log_softmax(q, T))
            total -= (1 - alpha) * loops.log_softmax(q)[label]
            soft_q, soft_p, hard_q = loops.softmax(q, T), loops.softmax(p, T), loops.softmax(q)
            for c in range(len(q)):
                slope = alpha * T * (soft_q[c] - soft_p[c]) + (1 - alpha) * (
                    hard_q[c] - (c == label)
                )
                for word in words:
                    slopes[word][c] += slope / len(words) / len(labels_B)
        losses.append(total / len(labels_B))
        for row, changes in zip(student, slopes, strict=True):
            for c, change in enumerate(changes):
                row[c] -= rate * change
    return losses


def _mean(table: list[list[float]], words: list[int]) -> list[float]:
    classes = range(len(table[0]))
    return [sum(table[word][c] for word in words) / len(words) for c in classes]


def _training(
    *, masked: tuple[bool, bool] = (True, True), logs: bool = True, summed: bool = True
) -> Function:
    """The training mended in part. masked: student and teacher get the mask; logs: log_softmax."""

    def train(
        build: Any, ids_NBS: Tensor, labels_NB: Tensor, alpha: float, t: float, rate: float
    ) -> list[float]:
        student, teacher = build()
        optimizer = torch.optim.SGD(student.parameters(), lr=rate)
        losses = []
        for ids, labels in zip(ids_NBS, labels_NB, strict=True):
            mask = (ids != 0).long()
            q, p = (
                model(ids, mask if has else None).logits
                for model, has in zip((student, teacher), masked, strict=True)
            )
            softened = F.log_softmax(q / t, -1) if logs else F.softmax(q / t, -1)
            soft = F.kl_div(softened, F.softmax(p / t, -1), reduction="sum")
            soft = soft / (len(labels) if summed else q.numel())
            loss = alpha * t**2 * soft + (1 - alpha) * F.cross_entropy(q, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


_NEITHER = (False, False)
_MASK = "jingyaogong/minimind-v#76, where padding was masked in the loss and not in the model"
_LOGS = "microsoft/ProDA#20 and matchmaker#18, the student's probabilities given to kl_div"
_MEAN = "haitongli/knowledge-distillation-pytorch#2 and HikariTJU/LD#74"

MEND_LOOP = Exercise(
    number="5.3",
    title="A classifier's loop with three faults",
    kind="mend",
    minutes=15,
    difficulty=3,
    hints=(
        "Put the teacher's logits in the student's place: which value should the soft term have? "
        "And pad the texts by ten more zeros: what should change?",
        "`F.kl_div` wants *log*-probabilities first, and probabilities second. And "
        "`.mean()` goes over all B·C entries.",
        "`attention_mask=ids_BS != 0` goes to student and teacher alike; the input is "
        '`F.log_softmax(q / T, dim=-1)`, and the reduction `"batchmean"`.',
    ),
    cases=_train_cases,
    oracle=_train_oracle,
    given=broken.train,
    mutants=(
        Mutant(
            "no mask",
            _training(masked=_NEITHER),
            "The divergence is mended. One fault is left: neither model gets a mask, so padding is "
            "read like words. Give both `attention_mask=ids_BS != 0`.",
            _MASK,
        ),
        Mutant(
            "probabilities",
            _training(logs=False),
            "Mask and reduction are mended. One fault is left: `F.kl_div` takes the *logarithm* of "
            "the student's probabilities as its first argument. What you minimise is no KL.",
            _LOGS,
        ),
        Mutant(
            "mean over classes",
            _training(summed=False),
            "Mask and logarithm are mended. One fault is left: `.mean()` divides by B·C. "
            'Sum over the classes: `reduction="batchmean"`.',
            _MEAN,
        ),
        Mutant(
            "only the mask mended",
            _training(logs=False, summed=False),
            "Padding is masked, good. Two faults are left, both in `kl_div`: its first argument, "
            "and its reduction.",
            f"{_LOGS}; {_MEAN}",
        ),
        Mutant(
            "only the logarithm mended",
            _training(masked=_NEITHER, summed=False),
            "The logarithm is there, good. Two faults are left: the reduction, and padding that is "
            "read like words.",
            f"{_MASK}; {_MEAN}",
        ),
        Mutant(
            "only the reduction mended",
            _training(masked=_NEITHER, logs=False),
            "The reduction is right, good. Two faults are left: the first argument of `kl_div`, "
            "and padding that is read like words.",
            f"{_MASK}; {_LOGS}",
        ),
        Mutant(
            "a teacher without mask",
            _training(masked=(True, False)),
            "The student gets the mask, the teacher does not: it reads the padding, and teaches "
            "what it makes of it. Both need it.",
            _MASK,
        ),
    ),
)

# 5.4 · what a loss is at its best -----------------------------------------------------------------

LOSSES = ("KL", "cross-entropy", "kl_div of probabilities", "its mean")
_P = (0.5, 0.25, 0.25)


def at_equality() -> list[str]:
    """The four losses where the student is the teacher, the least first."""
    logits = torch.tensor(_P, dtype=torch.float64).log().unsqueeze(0)
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    wrong = F.kl_div(p, p, reduction="batchmean").item()
    values = {
        "KL": loops.kl(log_p[0].tolist(), log_p[0].tolist()),
        "cross-entropy": -(p * log_p).sum().item(),
        "kl_div of probabilities": wrong,
        "its mean": wrong / len(_P),
    }
    return sorted(LOSSES, key=values.__getitem__)


ZERO = Exercise(
    number="5.4",
    title="What does a perfect student cost?",
    kind="predict",
    minutes=5,
    difficulty=2,
    hints=(
        "Only one of the four is 0 there. `kl_div(input, target)` is the sum of "
        "`target * (log(target) - input)`: put probabilities in for `input`, and look at its sign.",
        "It is minus the entropy, about -1.04, minus the sum of p², 0.375. Its mean is a third.",
    ),
    choices=LOSSES,
    oracle=at_equality,
    mutants=(
        Mutant(
            "a KL is the least",
            ["KL", "its mean", "kl_div of probabilities", "cross-entropy"],
            "No KL is below 0, but `kl_div` of probabilities is not a KL: at this place it is "
            "-1.41, and a loop that minimises it goes lower still.",
            "Knowledge-Distillation-Zoo#12, where somebody wonders about a negative loss",
        ),
        Mutant(
            "the mean is smaller",
            ["its mean", "kl_div of probabilities", "KL", "cross-entropy"],
            "A mean is nearer to 0 than its sum; below 0 that makes it the larger of the two.",
            OFFERED,
        ),
        Mutant(
            "a cross-entropy is below",
            ["kl_div of probabilities", "its mean", "cross-entropy", "KL"],
            "A cross-entropy is the KL *plus* the teacher's entropy, which is above 0 unless the "
            "teacher is certain.",
            "torchtune's ForwardKLLoss, a cross-entropy by that name",
        ),
        Mutant(
            "the greatest first",
            ["cross-entropy", "KL", "its mean", "kl_div of probabilities"],
            "These are in order, the greatest first. The least comes first.",
            OFFERED,
        ),
        Mutant(
            "by distance from zero",
            ["KL", "its mean", "cross-entropy", "kl_div of probabilities"],
            "That is their order without their signs. Two of them are below 0, and an optimizer "
            "goes where it is lowest.",
            "Knowledge-Distillation-Zoo#12, whose sign was the only symptom",
        ),
    ),
)

EXERCISES = (MEND_LOOP, ZERO)
