"""Exercises of chapter 04, the student: one step out of several micro-batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function, valid

# 4.2 · the denominator of a step ------------------------------------------------------------------


def _arguments(draw: Draw, n: int, b: int, s: int) -> tuple[Tensor, Tensor]:
    """Losses of tokens, and labels: each micro-batch has labels, and another number of them."""
    labels = torch.stack([draw.labels(draw.mask(b, s), 9) for _ in range(n)])
    for place in range(n):
        labels[place, :, s - place :] = IGNORED
    return draw.logits(n, b, s).abs(), labels


def _split_cases(draw: Draw) -> list[Case]:
    shapes = ((3, 2, 6), (2, 4, 5), (4, 3, 7), (1, 3, 4))
    return [Case(f"N={n}, B={b}, S={s}", _arguments(draw, n, b, s)) for n, b, s in shapes]


def _split_oracle(losses_NBS: list[Any], labels_NBS: list[Any]) -> list[float]:
    count = 0
    for labels_BS in labels_NBS:
        for row in labels_BS:
            for label in row:
                count += label != IGNORED
    shares = []
    for losses_BS, labels_BS in zip(losses_NBS, labels_NBS, strict=True):
        total = 0.0
        for b in range(len(labels_BS)):
            for s in range(len(labels_BS[b])):
                if labels_BS[b][s] != IGNORED:
                    total += losses_BS[b][s]
        shares.append(total / count if count else 0.0)
    return shares


def _shares(divide: Function) -> Function:
    """A wrong division: from the sums (N,) and the mask (N, B, S)."""

    def shares(losses: Tensor, labels: Tensor) -> Tensor:
        mask = valid(labels)
        return divide((losses * mask).sum((1, 2)), mask)

    return shares


def _own_mean(sums: Tensor, mask: Tensor) -> Tensor:
    return sums / mask.sum((1, 2)).clamp(min=1)


def _unmasked(losses: Tensor, labels: Tensor) -> Tensor:
    return losses.sum((1, 2)) / losses.numel()


def _aligned_again(losses: Tensor, labels: Tensor) -> Tensor:
    mask = valid(labels[..., 1:])
    return (losses[..., :-1] * mask).sum((1, 2)) / mask.sum().clamp(min=1)


def _without_first_column(losses: Tensor, labels: Tensor) -> Tensor:
    mask = valid(labels[..., 1:])
    return (losses[..., 1:] * mask).sum((1, 2)) / mask.sum().clamp(min=1)


def _gradient(shares: Function, draw: Draw) -> bool:
    losses, labels = _arguments(draw, 3, 2, 6)
    losses.requires_grad_()
    for share in shares(losses, labels):
        share.backward(retain_graph=True)
    mask = valid(labels).to(losses.dtype)
    return losses.grad is not None and torch.allclose(losses.grad, mask / mask.sum())


def _nothing_to_learn(shares: Function, draw: Draw) -> bool:
    losses, labels = _arguments(draw, 2, 2, 6)
    return bool((torch.as_tensor(shares(losses, labels.fill_(IGNORED))) == 0).all())


STEP = Exercise(
    number="4.2",
    title="One loss, however the step is split",
    kind="write",
    minutes=10,
    difficulty=2,
    hints=(
        "The loss of the step is one mean over all its valid tokens. So there is one denominator "
        "for all micro-batches: how many labels of the whole step are not -100?",
        "A share keeps its own numerator: the sum of the losses of its own valid tokens. Add up "
        "over two of the three dimensions, and divide all N sums by the one count.",
        "Two things may go wrong at the end: where the whole step has no label the count is 0, so "
        "see `clamp`; and `.item()` would cut the gradient off.",
    ),
    cases=_split_cases,
    oracle=_split_oracle,
    properties=(
        Property(
            "gradient",
            _gradient,
            "The values are right, but `backward()` on your shares does not give each valid token "
            "the gradient 1 / count. Stay in tensors: no `.item()`, no `.detach()`.",
        ),
        Property(
            "nothing to learn",
            _nothing_to_learn,
            "A step without any label must give zeros. Clamp the denominator.",
        ),
    ),
    mutants=(
        Mutant(
            "mean of means",
            _shares(lambda sums, mask: _own_mean(sums, mask) / len(sums)),
            "You took each micro-batch's own mean, and then the mean of those. So a token in a "
            "short micro-batch weighs more than one in a long one, and the loss depends on the "
            "split.",
            "trl#4719, ms-swift#10076, and the transformers Trainer until 2024",
        ),
        Mutant(
            "sum of means",
            _shares(_own_mean),
            "You divided each micro-batch by its own tokens. Their gradients add up, so with N "
            "micro-batches the loss is about N times too large.",
            "transformers#37766, where the loss grew with the accumulation",
        ),
        Mutant(
            "divided by N as well",
            _shares(lambda sums, mask: sums / mask.sum().clamp(min=1) / len(mask)),
            "The number of tokens of the whole step is right; then you divided by N once more. The "
            "shares add up to the mean already.",
            "transformers PR#35210 and easydistill PR#16, two denominators in one loss",
        ),
        Mutant(
            "divided by all positions",
            _shares(lambda sums, mask: sums / mask.numel()),
            "The sums are right, but divided by all N·B·S positions: the more padding, the smaller "
            "your loss. Count the labels.",
            "Fast-LLM#344",
        ),
        Mutant(
            "divided by conversations",
            _shares(lambda sums, mask: sums / (len(mask) * mask.shape[1])),
            "You divided by the number of conversations, N·B, so the loss grows with their length. "
            "Count the labels.",
            "transformers#1181 and trl PR#4105",
        ),
        Mutant(
            "padding counted",
            _unmasked,
            "Your sums count every position, and so does the denominator. Positions whose label is "
            "-100 belong in neither.",
            "optipfair#34 and MambaInLlama#11",
        ),
        Mutant(
            "NaN where nothing is valid",
            _shares(lambda sums, mask: sums / mask.sum()),
            "All values are right, until a step comes in which no label is valid: 0 / 0 is NaN, "
            "and one NaN ruins every weight. Clamp the denominator to 1.",
            "LMOps#38, a row with nothing to learn",
        ),
        Mutant(
            "first column left out",
            _without_first_column,
            "You take `[..., 1:]` of both, so the first column is lost. Losses and labels are "
            "aligned already: nothing is to be shifted or left out here.",
            "a reader",
        ),
        Mutant(
            "shifted again",
            _aligned_again,
            "You shift labels that are aligned already: the loss at position s belongs to the "
            "label at s here.",
            "a reader",
        ),
    ),
)

EXERCISES = (STEP,)
