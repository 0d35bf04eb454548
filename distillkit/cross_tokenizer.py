"""Distillation between two tokenizers: what can be compared when the ids do not mean the same."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from distillkit.errors import UserError
from distillkit.losses import Divergence, _check_temperature, _through_softmax


@dataclass(frozen=True)
class UniversalLogitDistance(Divergence):
    """How differently teacher and student share out their probability, whatever they give it to.

    Σ_i |p_(i) - q_(i)|, between 0 and 2, where p_(i) is the i-th largest probability and the
    shorter vocabulary is padded with zeros; it is the Wasserstein distance of the two when every
    token costs the same. Gradient q (s - E_q[s]) / T with s = sign(q_(i) - p_(i)) at the token
    whose rank is i: it falls like 1/T, so the loss is scaled by T.

    It compares shapes and not meanings: a student that is as sure as its teacher of the wrong token
    pays nothing. So it goes with the labels' term (alpha below 1). Which token of the teacher
    stands beside which of the student is for the caller to say; the paper pairs the first with the
    first, up to the shorter answer. UserError when the leading shapes differ.

    Source: Boizard et al. 2024, Towards Cross-Tokenizer Distillation (arXiv 2402.12030).

    >>> teacher, student = torch.tensor([0.1, 0.9]).log(), torch.tensor([0.6, 0.3, 0.1]).log()
    >>> round(universal_logit_distance(student, teacher).item(), 4)  # 0.3 + 0.2 + 0.1
    0.6
    """

    name = "universal_logit_distance"
    temperature_power: ClassVar[int] = 1

    def _value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        sorted_p, (sorted_q, _) = _sorted(log_p.exp()).values, _sorted(log_q.exp())
        return _gaps(sorted_p, sorted_q).abs().sum(-1)

    def _gradient(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        q = log_q.exp()
        sorted_q, tokens = _sorted(q)
        signs = _gaps(_sorted(log_p.exp()).values, sorted_q).sign()[..., : q.shape[-1]]
        return _through_softmax(q, torch.empty_like(q).scatter(-1, tokens, signs))

    def _check(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
        if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
            raise UserError(
                f"the student's logits have shape {tuple(student_logits.shape)}, the teacher's "
                f"{tuple(teacher_logits.shape)}: all but the last number must be equal, so pair "
                "the tokens first (the paper cuts both answers to the shorter)"
            )
        _check_temperature(temperature)


universal_logit_distance = UniversalLogitDistance()


def _sorted(probs: Tensor) -> torch.return_types.sort:
    return probs.sort(dim=-1, descending=True)


def _gaps(sorted_p: Tensor, sorted_q: Tensor) -> Tensor:
    """q - p, rank by rank, over the larger of the two vocabularies."""
    missing = sorted_p.shape[-1] - sorted_q.shape[-1]
    return pad(sorted_q, (0, max(missing, 0))) - pad(sorted_p, (0, max(-missing, 0)))
