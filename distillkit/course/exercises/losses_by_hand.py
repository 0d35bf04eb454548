"""The losses in tensors, as a learner may write them: what the wrong answers are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from distillkit.course.exercises.drawing import IGNORED

Function = Callable[..., Any]


def log_probs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p and log q, softened."""
    return F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)


def between(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) of each token, from logarithms."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p‖q) of each token."""
    return between(*log_probs(student, teacher, temperature))


def cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """H(p, q) of each token."""
    log_p, log_q = log_probs(student, teacher, temperature)
    return -(log_p.exp() * log_q).sum(-1)


def mean_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p‖q) as a mean over the vocabulary: wrong, and often published."""
    return kl(student, teacher, temperature) / student.shape[-1]


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """-log q[label] of each token; where the label is ignored, that of token 0."""
    return -logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def valid(labels: Tensor) -> Tensor:
    """The mask of the labels that count."""
    return labels != IGNORED
