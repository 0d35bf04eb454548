"""The loss of the course with one part replaced: the wrong answers to 2.3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises.drawing import IGNORED
from distillkit.course.exercises.losses_by_hand import Function, kl, nll


def loss_with(
    *,
    soft: Function = kl,
    hard: Function = nll,
    power: int = 2,
    hard_power: int = 0,
    hard_temperature: bool = False,
    reduce_soft: Function = lambda x, m: (x * m).sum() / m.sum().clamp(min=1),
    reduce_hard: Function = lambda x, m: (x * m).sum() / m.sum().clamp(min=1),
    detach: bool = True,
) -> Function:
    """The loss with one part replaced."""

    def loss(student: Any, teacher: Any, labels: Any, alpha: float, temperature: float) -> Any:
        mask = labels != IGNORED
        teacher = teacher.detach() if detach else teacher
        softened = student / temperature if hard_temperature else student
        soft_term = reduce_soft(soft(student, teacher, temperature), mask)
        hard_term = reduce_hard(hard(softened, labels), mask)
        hard_term = temperature**hard_power * hard_term
        return alpha * temperature**power * soft_term + (1 - alpha) * hard_term

    return loss


def by_all(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.numel()


def by_rows(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.shape[0]


def twice(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1) ** 2


def leaving_at_once(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float
) -> Tensor:
    if (labels == IGNORED).all():
        return torch.tensor(0.0)
    loss: Tensor = loss_with()(student, teacher, labels, alpha, temperature)
    return loss


def unclamped(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask].mean()


def unmasked(values: Tensor, mask: Tensor) -> Tensor:
    return values.mean()


def by_means(values: Tensor, mask: Tensor) -> Tensor:
    return ((values * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def without_first_column(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float
) -> Tensor:
    parts = (each[:, 1:] for each in (student, teacher, labels))
    loss: Tensor = loss_with()(*parts, alpha, temperature)
    return loss


def shifted_again(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float
) -> Tensor:
    early, late = student[:, :-1], labels[:, 1:]
    loss: Tensor = loss_with()(early, teacher[:, :-1], late, alpha, temperature)
    return loss
