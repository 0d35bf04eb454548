"""Exercise of chapter 05, a classifier: the loop of the chapter to mend."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_05 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant
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
        (4, 3, 5, 6, 4, 2.5, 0.3),
        (3, 4, 6, 5, 3, 4.0, 0.9),
        (5, 2, 7, 8, 5, 1.5, 0.6),
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


def _kl_div(q: Tensor, p: Tensor) -> Tensor:
    """The right one, of every class."""
    return F.kl_div(F.log_softmax(q, -1), F.softmax(p, -1), reduction="none")


def _of_probabilities(q: Tensor, p: Tensor) -> Tensor:
    return F.kl_div(F.softmax(q, -1), F.softmax(p, -1), reduction="none")


def _two_logarithms(q: Tensor, p: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(q, -1), F.log_softmax(p, -1), reduction="none")


def _training(
    *,
    masked: tuple[bool, bool] = (True, True),
    soft: Function = _kl_div,
    reduced: Function = lambda parts: parts.sum() / len(parts),
) -> Function:
    """The training mended in part. masked: student and teacher get the mask; soft and reduced:
    the (B, C) numbers of the soft loss, and the one made of them.
    """

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
            taught = reduced(soft(q / t, p / t))
            loss = alpha * t**2 * taught + (1 - alpha) * F.cross_entropy(q, labels)
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
            _training(soft=_of_probabilities),
            "Mask and reduction are mended. One fault is left: `F.kl_div` takes the *logarithm* of "
            "the student's probabilities as its first argument. What you minimise is no KL.",
            _LOGS,
        ),
        Mutant(
            "mean over classes",
            _training(reduced=torch.mean),
            "Mask and logarithm are mended. One fault is left: `.mean()` divides by B·C. "
            'Sum over the classes: `reduction="batchmean"`.',
            _MEAN,
        ),
        Mutant(
            "only the mask mended",
            _training(soft=_of_probabilities, reduced=torch.mean),
            "Padding is masked, good. Two faults are left, both in `kl_div`: its first argument, "
            "and its reduction.",
            f"{_LOGS}; {_MEAN}",
        ),
        Mutant(
            "only the logarithm mended",
            _training(masked=_NEITHER, reduced=torch.mean),
            "The logarithm is there, good. Two faults are left: the reduction, and padding that is "
            "read like words.",
            f"{_MASK}; {_MEAN}",
        ),
        Mutant(
            "only the reduction mended",
            _training(masked=_NEITHER, soft=_of_probabilities),
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
        Mutant(
            "a student without mask",
            _training(masked=(False, True)),
            "The teacher gets the mask, the student does not: it learns from the padding as well. "
            "Both need it.",
            _MASK,
        ),
        Mutant(
            "a sum over the texts",
            _training(reduced=torch.sum),
            "Mask and logarithm are mended, and the classes are summed. But so are the texts: the "
            'soft term is B times too large. `reduction="batchmean"` divides by B.',
            "a reader, who wrote `.sum()` for `.mean()`",
        ),
        Mutant(
            "teacher and student exchanged",
            _training(soft=lambda q, p: _kl_div(p, q)),
            "Mask and reduction are mended, and `kl_div` gets a logarithm: the teacher's. The "
            "first argument is the *student's* logarithm, the second the teacher's probabilities; "
            "yours is KL(q‖p).",
            "paiml/aprender PR#2153",
        ),
        Mutant(
            "two logarithms",
            _training(soft=_two_logarithms),
            "You gave `kl_div` two logarithms. Its second argument is the teacher's "
            "*probabilities*, unless you say `log_target=True`: the logarithm of a negative number "
            "is NaN.",
            "a reader",
        ),
    ),
)

EXERCISES = (MEND_LOOP,)
