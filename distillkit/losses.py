"""Losses of distillation: what a student can learn from a teacher's logits, token by token.

`p` is the teacher's distribution over the vocabulary and `q` the student's, both softened by the
temperature T: `p = softmax(teacher_logits / T)`. Labels are already aligned with the logits: the
shift by one token happens once, where the batch is made. Shapes: `B` batch, `S` sequence, `V`
vocabulary; `...` is any leading shape, for example `(B, S)`. Values are in nats.

Half-precision logits are computed in float32; float64 stays float64. No gradient reaches the
teacher. A logit of -inf is a token that cannot occur: in both models it contributes nothing.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit.errors import UserError


class Divergence(ABC):
    """A distance between student and teacher for each token: a small frozen object to be called.

    `temperature_power` is the power of T by which the loss must be multiplied so that its gradient
    keeps its size as T grows: 2 where the gradient falls like 1/T², 1 where it falls like 1/T.
    `name` is what metrics and legends call it.
    """

    name: str
    temperature_power: ClassVar[int] = 2

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return the divergence of each token, (..., V) and (..., V) -> (...), in nats.

        It is bare: not scaled by T^power, not masked, not averaged. NaN logits give NaN.
        Raises UserError (a ValueError) when the shapes differ or the temperature is not above 0.
        """
        self._check(student_logits, teacher_logits, temperature)
        log_p = _log_softmax(teacher_logits.detach(), temperature)
        return self._value(log_p, _log_softmax(student_logits, temperature))

    @torch.no_grad()
    def gradient(
        self, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return the gradient of each token's bare loss in its student logits, (..., V).

        By formula, in float32 (float64 for float64 logits), without a graph. Raises as the call.
        """
        self._check(student_logits, teacher_logits, temperature)
        log_p = _log_softmax(teacher_logits, temperature)
        return self._gradient(log_p, _log_softmax(student_logits, temperature)) / temperature

    def _check(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
        """Refuse what cannot be compared; one that compares across tokenizers refuses less."""
        _check_logits(student_logits, teacher_logits, temperature)

    @abstractmethod
    def _value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The divergence of distributions that are given as logarithms."""

    @abstractmethod
    def _gradient(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Its gradient in student_logits / T."""


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """How many nats a token of the teacher costs more when the student codes it: mass-covering.

    KL(p‖q) = Σ_v p_v (log p_v - log q_v), gradient (q - p) / T. It is a true KL, zero at equality;
    the cross-entropy form exceeds it by the teacher's entropy and has the same gradient. It is
    +inf (with a finite gradient) where the student has -inf and the teacher has mass.

    Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), equation 2 for the gradient.

    >>> teacher, student = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> round(forward_kl(student, teacher).item(), 4)  # 0.9 log 1.8 + 0.1 log 0.2
    0.3681
    """

    name = "forward_kl"

    def _value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _expectation(log_p.exp(), log_p - log_q)

    def _gradient(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return log_q.exp() - log_p.exp()


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """How many nats a token of the student costs more when the teacher codes it: mode-seeking.

    KL(q‖p) = Σ_v q_v (log q_v - log p_v), gradient q (log q - log p - KL) / T. It is +inf, with an
    undefined (NaN) gradient, where the teacher has -inf and the student has mass: give the student
    the same -inf, or use JensenShannon, which is finite there.

    Source: Gu et al. 2024, MiniLLM (arXiv 2306.08543), section 2.

    >>> teacher, student = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> round(reverse_kl(student, teacher).item(), 4)  # 0.5 log(5/9) + 0.5 log 5
    0.5108
    """

    name = "reverse_kl"

    def _value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _expectation(log_q.exp(), log_q - log_p)

    def _gradient(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _through_softmax(log_q.exp(), log_q - log_p)


forward_kl = ForwardKL()
reverse_kl = ReverseKL()


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """The generalised Jensen-Shannon divergence, between forward (beta=0) and reverse KL (beta=1).

    D = β KL(p‖m) + (1-β) KL(q‖m) with m = βp + (1-β)q;
    gradient (1-β) q (log q - log m - KL(q‖m)) / T. Between the ends it is finite whatever is -inf.

    This bare D goes to 0 at both ends; it is D / (β(1-β)) that tends to the two KLs. So the ends
    are branches, as in the field's code: at 0 and 1 exactly you get the KL itself, and close to
    them almost nothing. UserError when beta is outside [0, 1].

    Source: Agarwal et al. 2024, GKD (arXiv 2306.13649), section 2.

    >>> teacher, student = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> round(JensenShannon(0.5)(student, teacher).item(), 4)  # m = (0.7, 0.3)
    0.1017
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise UserError(
                f"beta is {self.beta}: it must lie between 0 (forward KL) and 1 (reverse KL)"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"jensen_shannon(beta={self.beta:g})"

    def _value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.beta in (0, 1):
            return (reverse_kl if self.beta else forward_kl)._value(log_p, log_q)
        log_p, log_q = _floored(log_p), _floored(log_q)
        log_m = _log_mixture(log_p, log_q, self.beta)
        from_teacher = _expectation(log_p.exp(), log_p - log_m)
        from_student = _expectation(log_q.exp(), log_q - log_m)
        return self.beta * from_teacher + (1 - self.beta) * from_student

    def _gradient(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.beta in (0, 1):
            return (reverse_kl if self.beta else forward_kl)._gradient(log_p, log_q)
        log_p, log_q = _floored(log_p), _floored(log_q)
        log_ratio = log_q - _log_mixture(log_p, log_q, self.beta)
        return (1 - self.beta) * _through_softmax(log_q.exp(), log_ratio)


@dataclass(frozen=True)
class SkewKL(Divergence):
    """Forward KL to a student that is helped by a little of the teacher, so it is never infinite.

    KL(p‖m) with m = λp + (1-λ)q and λ = skew, at most -log λ; with r = p/m its gradient is
    -(1-λ) q (r - E_q[r]) / T. skew=0 is forward KL. UserError when skew is outside [0, 1).

    Source: Ko et al. 2024, DistiLLM (arXiv 2402.03898), section 3.

    >>> teacher, student = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> round(SkewKL(0.1)(student, teacher).item(), 4)  # m = (0.54, 0.46)
    0.3071
    """

    skew: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.skew < 1:
            raise UserError(
                f"skew is {self.skew}: it must be at least 0 (forward KL) and below 1, because it "
                "is the teacher's share of the mixture and the student needs the rest"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"skew_kl(skew={self.skew:g})"

    def _value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.skew == 0:
            return forward_kl._value(log_p, log_q)
        log_p, log_q = _floored(log_p), _floored(log_q)
        return _expectation(log_p.exp(), log_p - _log_mixture(log_p, log_q, self.skew))

    def _gradient(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.skew == 0:
            return forward_kl._gradient(log_p, log_q)
        log_p, log_q = _floored(log_p), _floored(log_q)
        ratio = (log_p - _log_mixture(log_p, log_q, self.skew)).exp()
        return (self.skew - 1) * _through_softmax(log_q.exp(), ratio)


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """The largest difference in probability that any set of tokens can have, between 0 and 1.

    ½ Σ_v |p_v - q_v|, gradient ½ q (s - E_q[s]) / T with s = sign(q - p). The sign does not shrink
    as T grows, so the gradient falls like 1/T only and the loss is scaled by T, not by T².

    Source: Wen et al. 2023, f-divergence minimization for sequence-level knowledge distillation
    (arXiv 2307.15190), section 3.

    >>> teacher, student = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> round(total_variation(student, teacher).item(), 4)
    0.4
    """

    name = "total_variation"
    temperature_power: ClassVar[int] = 1

    def _value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2

    def _gradient(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        q = log_q.exp()
        return _through_softmax(q, (q - log_p.exp()).sign() / 2)


@dataclass(frozen=True)
class LogitsMSE(Divergence):
    """The mean squared difference of the logits, in squared logits: no softmax, no temperature.

    (1/V) Σ_v (student_v - teacher_v)², gradient (2/V) (student - teacher). T is ignored, so its
    power of T is 0. Half of it is what T² KL(p‖q) tends to as T grows, when the logits of student
    and teacher have the same mean. A logit that is -inf in both adds 0; in one of them only, the
    loss is infinite.

    Source: Ba and Caruana 2014 (arXiv 1312.6184), section 2; the limit is equation 4 of Hinton,
    Vinyals and Dean 2015 (arXiv 1503.02531).

    >>> logits_mse(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item()  # (1 + 4) / 2
    2.5
    """

    name = "logits_mse"
    temperature_power: ClassVar[int] = 0

    def __call__(
        self, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return the mean squared difference of each token's logits, (..., V) -> (...)."""
        self._check(student_logits, teacher_logits, temperature)
        return self._value(_as_float(teacher_logits.detach()), _as_float(student_logits))

    @torch.no_grad()
    def gradient(
        self, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return its gradient in the student's logits, (..., V)."""
        self._check(student_logits, teacher_logits, temperature)
        return self._gradient(_as_float(teacher_logits), _as_float(student_logits))

    def _value(self, teacher: Tensor, student: Tensor) -> Tensor:
        return _difference(student, teacher).square().mean(-1)

    def _gradient(self, teacher: Tensor, student: Tensor) -> Tensor:
        return _difference(student, teacher) * (2 / student.shape[-1])


total_variation = TotalVariation()
logits_mse = LogitsMSE()


def masked_mean(per_token: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `per_token` over the tokens where `mask` is true.

    Σ mask·x / max(Σ mask, 1): where nothing is valid it is a zero that still has a graph, so that
    `backward()` works. What stands at a masked position does not matter, NaN and inf included, and
    its gradient is 0. (Logits that are NaN must be left out before the softmax, whose backward
    makes NaN of 0 · NaN: `distillation_loss` does that.)

    Args: `per_token` (...); `mask` (...), boolean or integers, of the same shape.
    Raises: UserError when the shapes differ, or the mask is made of fractions.

    >>> masked_mean(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([1, 1, 0])).item()
    1.5
    """
    if mask.shape != per_token.shape:
        raise UserError(
            f"the mask has shape {tuple(mask.shape)}, the values {tuple(per_token.shape)}: they "
            "must be equal, one yes or no for each value"
        )
    if mask.is_floating_point():
        raise UserError(f"the mask is {mask.dtype}: pass mask.bool(), one yes or no for each value")
    chosen = mask != 0
    return _mean(_as_float(per_token).masked_fill(~chosen, 0.0), chosen.sum())


def label_loss(
    student_logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Return the mean negative log-likelihood of the labels, in nats for each valid token.

    (1-ε) · mean -log q[label] + ε · mean over the vocabulary of -log q, at T = 1, with
    ε = label_smoothing. Only valid tokens (label != ignore_index) are computed. With ε > 0 the loss
    is infinite where the student has -inf anywhere in the vocabulary, as in torch.

    Args: `student_logits` (..., V); `labels` (...), token ids aligned with the logits;
    `num_items`, the number of valid tokens by which the sum is divided: that of the whole step
    (`num_items_in_batch` in transformers) under gradient accumulation or with several processes,
    and by default those counted here.
    Raises: UserError for shapes that do not fit, a label outside the vocabulary, label_smoothing
    outside [0, 1].
    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7, for the smoothing.

    >>> logits = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    >>> round(label_loss(logits, torch.tensor([0, -100])).item(), 4)  # -log 0.9
    0.1054
    """
    if not 0 <= label_smoothing <= 1:
        raise UserError(f"label_smoothing is {label_smoothing}: it must lie between 0 and 1")
    valid = _valid_tokens(student_logits, labels, ignore_index)
    rows, targets = _as_float(_rows(student_logits, valid)), labels[valid].long()
    nll = F.cross_entropy(rows, targets, reduction="none", label_smoothing=label_smoothing)
    return _mean(nll, targets.numel() if num_items is None else num_items)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.5,
    temperature: float = 2.0,
    divergence: Divergence = forward_kl,
    ignore_index: int = -100,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Return the loss of the course: what the teacher says and what the labels say, weighted.

    α · T^power · mean D(p_T, q_T) + (1-α) · mean -log q[label], the means over the valid tokens
    (label != ignore_index), power = divergence.temperature_power. The label's term is at T = 1.
    Only valid tokens are computed, so what stands elsewhere (padding, prompts) cannot matter.
    Where nothing is valid it is a zero that still has a graph.

    Args: `student_logits` and `teacher_logits` (..., V); `labels` (...), token ids aligned with
    the logits; `alpha`, the weight of the teacher's term (a term of weight 0 is not computed);
    `num_items`, the number of valid tokens in the whole step, as in `label_loss`.
    Raises: UserError for shapes that do not fit, alpha outside [0, 1], a temperature not above 0,
    a label outside the vocabulary.
    Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2.

    >>> student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> loss = distillation_loss(student, teacher, torch.tensor([0]), temperature=1.0)
    >>> round(loss.item(), 4)  # 0.5 · 0.3681 + 0.5 · 0.6931
    0.5306
    """
    divergence._check(student_logits, teacher_logits, temperature)
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}: it must lie between 0 (labels) and 1 (teacher)")
    valid = _valid_tokens(student_logits, labels, ignore_index)
    student, targets = _rows(student_logits, valid), labels[valid]
    num_items = targets.numel() if num_items is None else num_items
    if alpha == 0:
        return label_loss(student, targets, ignore_index=ignore_index, num_items=num_items)
    soft = _mean(divergence(student, _rows(teacher_logits, valid), temperature), num_items)
    soft = temperature**divergence.temperature_power * soft
    if alpha == 1:
        return soft
    hard = label_loss(student, targets, ignore_index=ignore_index, num_items=num_items)
    return alpha * soft + (1 - alpha) * hard


def _as_float(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = _as_float(logits)
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _floored(log_probs: Tensor) -> Tensor:
    # logaddexp(-inf, -inf) has a NaN gradient; at the lowest finite number it has none that matters
    return log_probs.clamp(min=torch.finfo(log_probs.dtype).min)


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight · p + (1 - weight) · q), without leaving the logarithm."""
    return torch.logaddexp(log_p + math.log(weight), log_q + math.log1p(-weight))


def _expectation(probs: Tensor, values: Tensor) -> Tensor:
    # 0 · inf is 0 here, the limit of x log x; `== 0` and not `> 0`, so that NaN stays NaN
    return (probs * values.masked_fill(probs == 0, 0.0)).sum(-1)


def _through_softmax(q: Tensor, slope: Tensor) -> Tensor:
    """q (slope - E_q[slope]): the gradient in the logits of a loss whose slope in q is given."""
    centred = slope - _expectation(q, slope).unsqueeze(-1)
    return q * centred.masked_fill(q == 0, 0.0)


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).masked_fill(student.isneginf() & teacher.isneginf(), 0.0)


def _mean(per_token: Tensor, num_items: Tensor | int) -> Tensor:
    if isinstance(num_items, Tensor):
        return per_token.sum() / num_items.to(per_token.device).clamp(min=1)
    return per_token.sum() / max(num_items, 1)


def _rows(logits: Tensor, valid: tuple[Tensor, ...]) -> Tensor:
    """The valid tokens as (N, V); no copy when every token is valid."""
    if valid[0].numel() == math.prod(logits.shape[:-1]):
        return logits.reshape(-1, logits.shape[-1])
    return logits[valid]


def _valid_tokens(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, ...]:
    if labels.shape != logits.shape[:-1]:
        raise UserError(
            f"the labels have shape {tuple(labels.shape)}, the logits {tuple(logits.shape)}: "
            "there must be one label for each token, aligned with the logits (shift both together)"
        )
    valid = (labels != ignore_index).nonzero(as_tuple=True)
    if valid[0].numel():
        lowest, highest = (int(end) for end in labels[valid].aminmax())
        if lowest < 0 or highest >= logits.shape[-1]:
            raise UserError(
                f"the labels reach from {lowest} to {highest}, but there are {logits.shape[-1]} "
                f"logits a token: mark what is to be left out with ignore_index={ignore_index}, "
                "and check that the labels come from this model's tokenizer"
            )
    return valid


def _check_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    student_width, teacher_width = student_logits.shape[-1], teacher_logits.shape[-1]
    if student_width != teacher_width:
        raise UserError(
            f"the teacher has {teacher_width} logits a token, the student {student_width}: if "
            "they share a tokenizer, cut both to the ids that they share, "
            f"logits[..., :{min(student_width, teacher_width)}]; if not, give the student the "
            "teacher's tokenizer, because id by id the two do not mean the same, or compare "
            "them with cross_tokenizer.universal_logit_distance"
        )
    if student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"the student's logits have shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}: they must be equal, run both on the same batch"
        )
    _check_temperature(temperature)


def _check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UserError(
            f"temperature is {temperature}: it must be a finite number above 0 "
            "(1 leaves the distributions as they are, more softens them)"
        )
