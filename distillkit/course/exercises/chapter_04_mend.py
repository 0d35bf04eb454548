"""Exercises of chapter 04, the student: a training to mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_04 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function, kl

# 4.1 · mend it ------------------------------------------------------------------------------------

DROPPED = 0.3


class Bigram(nn.Module):
    """The smallest language model: the next token's logits are a row of a table, (V, V).

    In training mode it drops a share of them, always the same ones after it has been built.
    """

    def __init__(self, table: Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.dropout = dropout
        self._generator = torch.Generator().manual_seed(4)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) tokens -> (B, S, V) logits."""
        logits = self.table[tokens]
        if not self.training or not self.dropout:
            return logits
        kept = torch.rand(logits.shape, generator=self._generator) >= self.dropout
        return logits * kept / (1 - self.dropout)


def _builder(draw: Draw, vocabulary: int) -> Callable[[], tuple[Bigram, Bigram]]:
    student, teacher = draw.logits(2, vocabulary, vocabulary)
    return lambda: (Bigram(student), Bigram(teacher, DROPPED))


def _train_cases(draw: Draw) -> list[Case]:
    cases = []
    for n, b, s, v, t in ((4, 3, 5, 6, 2.0), (3, 2, 7, 5, 1.0), (5, 4, 3, 7, 4.0)):
        build, tokens = _builder(draw, v), draw.integers(n, b, s, below=v)
        cases.append(Case(f"{n} steps, B={b}, S={s}, V={v}, T={t}", (build, tokens, t, 0.9)))
    return cases


def _train_oracle(
    build: Callable[[], tuple[Any, Any]], tokens_NBS: list[Any], T: float, rate: float
) -> list[float]:
    student, teacher = (model.table.tolist() for model in build())
    losses = []
    for tokens_BS in tokens_NBS:
        tokens = [token for row in tokens_BS for token in row]
        slope = [[0.0] * len(row) for row in student]
        total = 0.0
        for token in tokens:
            log_p = loops.log_softmax(teacher[token], T)
            log_q = loops.log_softmax(student[token], T)
            total += T**2 * loops.kl(log_p, log_q) / len(tokens)
            p, q = loops.softmax(teacher[token], T), loops.softmax(student[token], T)
            for v in range(len(p)):
                slope[token][v] += T * (q[v] - p[v]) / len(tokens)
        for token, row in enumerate(slope):
            for v, each in enumerate(row):
                student[token][v] -= rate * each
        losses.append(total)
    return losses


def _training(
    *,
    calm: bool = True,
    frozen: bool = True,
    clean: bool = True,
    own: bool = False,
    lost: bool = False,
) -> Function:
    """The training mended in part.

    calm: the teacher in eval mode; clean: gradients reset; lost: reset before they are used.
    """

    def train(build: Any, tokens_NBS: Tensor, T: float, rate: float) -> list[float]:
        student, teacher = build()
        teacher.train(not calm).requires_grad_(not frozen)
        optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=rate)
        losses = []
        for tokens in tokens_NBS:
            logits = student(tokens)
            loss = T**2 * kl(logits, logits if own else teacher(tokens), T).mean()
            if clean:
                optimizer.zero_grad()
            loss.backward()
            if lost:
                optimizer.zero_grad()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


def _teacher_without_gradient(train: Function, draw: Draw) -> bool:
    build, built = _builder(draw, 5), []

    def remembered() -> tuple[Bigram, Bigram]:
        built.append(build())
        return built[-1]

    train(remembered, draw.integers(2, 2, 3, below=5), 2.0, 0.5)
    return all(teacher.table.grad is None for _, teacher in built)


_MODE = "vrvlive/knowlege-distillation#2, and second on Karpathy's list of common mistakes (2018)"
_FROZEN = "lightly-train PR#434, which froze the teacher; it had counted as trainable"
_PILED = "third on Karpathy's list of common mistakes (2018)"

MEND_TRAINING = Exercise(
    number="4.1",
    title="A training with three faults",
    kind="mend",
    minutes=15,
    difficulty=3,
    hints=(
        "Ask of the teacher: does it say the same when it is asked twice? Is it the same after the "
        "step? And of the second step: which gradients are in it?",
        "`teacher.eval()` switches dropout off. The optimizer gets the student's parameters alone, "
        "and the teacher's logits are computed under `torch.no_grad()`.",
        "PyTorch *adds* to gradients: `optimizer.zero_grad()` before each `backward()`.",
    ),
    cases=_train_cases,
    oracle=_train_oracle,
    given=broken.train,
    properties=(
        Property(
            "teacher without gradient",
            _teacher_without_gradient,
            "The losses are right, but gradients are computed for the teacher and thrown away: "
            "with a large teacher, most of the memory and time. Ask it under `torch.no_grad()`.",
        ),
    ),
    mutants=(
        Mutant(
            "training mode",
            _training(calm=False),
            "One fault is left: the teacher is in training mode, so dropout takes a share of its "
            "answer away, another one each time. It is there to teach: `teacher.eval()`.",
            _MODE,
        ),
        Mutant(
            "teacher trained",
            _training(frozen=False),
            "One fault is left: the optimizer moves the teacher as well, towards the student. Give "
            "it the student's parameters alone.",
            _FROZEN,
        ),
        Mutant(
            "gradients pile up",
            _training(clean=False),
            "One fault is left: each step adds its gradients to those of all earlier steps. Call "
            "`optimizer.zero_grad()` before `backward()`.",
            _PILED,
        ),
        Mutant(
            "only the mode mended",
            _training(frozen=False, clean=False),
            "The teacher's mode is mended. Two faults are left: the optimizer moves the teacher as "
            "well, and gradients pile up from step to step.",
            f"{_FROZEN}; {_PILED}",
        ),
        Mutant(
            "only the teacher frozen",
            _training(calm=False, clean=False),
            "The teacher stays as it is, good. Two faults are left: it is in training mode, and "
            "gradients pile up from step to step.",
            f"{_MODE}; {_PILED}",
        ),
        Mutant(
            "only the gradients reset",
            _training(calm=False, frozen=False),
            "Gradients are reset, good. Two faults are left, both about the teacher: its mode, and "
            "who may change it.",
            f"{_MODE}; {_FROZEN}",
        ),
        Mutant(
            "its own teacher",
            _training(own=True),
            "Your loss is 0 from the first step on: the student's logits stand on both sides of "
            "the KL.",
            "labml#66, after a refactor",
        ),
        Mutant(
            "gradients reset before the step",
            _training(lost=True),
            "The teacher is mended. But the student never moves: `zero_grad()` stands between "
            "`backward()` and `step()`, so each gradient is gone before it is used. Reset *before* "
            "`backward()`.",
            "a reader",
        ),
        Mutant(
            "only reset, and before the step",
            _training(lost=True, calm=False),
            "Nothing moves: `zero_grad()` stands between `backward()` and `step()`, so each "
            "gradient is gone before it is used. Reset before `backward()`; and the teacher is "
            "still in training mode.",
            "a reader",
        ),
    ),
)

EXERCISES = (MEND_TRAINING,)
