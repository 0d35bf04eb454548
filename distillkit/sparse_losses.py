"""Losses from a few of the teacher's tokens: what a teacher that is kept on disk can afford.

A teacher's distribution over V tokens is kept as K of them, chosen in one of two ways: its `K` best
tokens, and the probability of all others together (`BestTokens`), or `N` tokens drawn from it
(`SampledTokens`). `p`, `q`, `T` and the shapes are those of `losses`: a teacher's token ids are
(..., K) beside the student's logits (..., V). The student's softmax is over all V tokens, so each
of its logits gets a gradient.

The temperature is part of what is kept: p_T cannot be had from a few values of p_1, because
the tokens that were not kept would have to be known.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.losses import Divergence, _check_temperature, _floored, _log_softmax, forward_kl


@dataclass(frozen=True)
class BestTokens:
    """The teacher's K best tokens and how likely they are; the others are one bucket, the rest.

    `token_ids` (..., K), none of them twice; `log_probs` (..., K), log p_T; `log_rest` (...), the
    logarithm of what all other tokens have together; `temperature`, the T at which it was taken.
    A place that is not used (a ragged K) repeats a token id and has the log-probability -inf.
    """

    token_ids: Tensor
    log_probs: Tensor
    log_rest: Tensor
    temperature: float = 1.0

    @classmethod
    def of(cls, teacher_logits: Tensor, k: int, temperature: float = 1.0) -> BestTokens:
        """The best `k` of (..., V) logits; all of them when k is V or more.

        >>> best = BestTokens.of(torch.tensor([0.2, 0.7, 0.1]).log(), k=1)
        >>> best.token_ids.tolist(), round(best.log_rest.exp().item(), 4)
        ([1], 0.3)
        """
        _check_temperature(temperature)
        log_p = _log_softmax(teacher_logits.detach(), temperature)
        token_ids = _best(log_p, _whole(k))
        buckets = _buckets(log_p, token_ids)
        return cls(token_ids, buckets[..., :-1], buckets[..., -1], temperature)

    @classmethod
    def from_log_probs(
        cls, token_ids: Tensor, log_probs: Tensor, temperature: float = 1.0
    ) -> BestTokens:
        """Where a server tells the best tokens alone: the rest is what they leave of 1.

        As exact as the `log_probs`: a rest that cannot be told from their rounding is 0. Raises
        UserError where these are no logarithms of parts of 1, or a token is told twice.
        """
        rest = 1.0 - log_probs.to(torch.float64).exp().sum(-1)
        rounding = token_ids.shape[-1] * torch.finfo(log_probs.dtype).eps
        _check_told(token_ids, log_probs, rest, rounding)
        log_rest = rest.masked_fill(rest < rounding, 0.0).log().to(log_probs.dtype)
        return cls(token_ids, log_probs, log_rest, temperature)


@dataclass(frozen=True)
class SampledTokens:
    """N tokens drawn from the teacher, and what each of them weighs.

    `token_ids` (..., N), repetitions allowed; `log_probs` (..., N), log p_T of each; `weights`
    (..., N): 1/N for tokens drawn from p_T, count/N where equal draws were put together, or
    p_T/(N·r) for draws from another distribution r. `temperature`, the T of p_T.
    """

    token_ids: Tensor
    log_probs: Tensor
    weights: Tensor
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        teacher_logits: Tensor,
        draws: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> SampledTokens:
        """Draw `draws` tokens of each of (..., V) distributions, each with the weight 1/draws.

        Raises UserError where the logits are no numbers to draw from.
        """
        _check_temperature(temperature)
        log_p = _log_softmax(teacher_logits.detach(), temperature)
        if log_p.isnan().any():
            raise UserError(
                "the teacher's logits are NaN, +inf, or nothing but -inf somewhere, so no token "
                "can be drawn: look for the text at which it happens, or run it in float32"
            )
        rows = log_p.exp().reshape(-1, log_p.shape[-1])
        draws = _whole(draws)
        drawn = torch.multinomial(rows, draws, replacement=True, generator=generator)
        token_ids = drawn.reshape(*log_p.shape[:-1], draws)
        weights = torch.full(token_ids.shape, 1 / draws, dtype=log_p.dtype, device=log_p.device)
        return cls(token_ids, log_p.gather(-1, token_ids), weights, temperature)


Sparse = TypeVar("Sparse", BestTokens, SampledTokens)


class SparseDivergence(ABC, Generic[Sparse]):
    """A divergence whose teacher is a few tokens: used as a `Divergence`, called as one."""

    name: str
    temperature_power: ClassVar[int] = 2

    def __call__(self, student_logits: Tensor, teacher: Sparse, temperature: float = 1.0) -> Tensor:
        """Return the divergence of each token, (..., V) and K tokens -> (...), in nats.

        Bare, as that of `Divergence`. Raises UserError (a ValueError) when the shapes do not fit,
        an id is not in the student's vocabulary, or the teacher's tokens were taken at another
        temperature.
        """
        _check_sparse(student_logits, teacher, temperature)
        return self._value(teacher, _log_softmax(student_logits, temperature))

    @torch.no_grad()
    def gradient(self, student_logits: Tensor, teacher: Sparse, temperature: float = 1.0) -> Tensor:
        """Return the gradient of each token's bare loss in its student logits, (..., V)."""
        _check_sparse(student_logits, teacher, temperature)
        return self._gradient(teacher, _log_softmax(student_logits, temperature)) / temperature

    @abstractmethod
    def _value(self, teacher: Sparse, log_q: Tensor) -> Tensor:
        """The divergence from a student that is given as logarithms."""

    @abstractmethod
    def _gradient(self, teacher: Sparse, log_q: Tensor) -> Tensor:
        """Its gradient in student_logits / T."""


@dataclass(frozen=True)
class BestTokensKL(SparseDivergence[BestTokens]):
    """Forward KL between K + 1 buckets: each of the teacher's best tokens, and all the others.

    Σ_{v in K} p_v (log p_v - log q_v) + r_p (log r_p - log r_q), where r is the rest's share. It is
    a true KL, zero at equality, at most that over the whole vocabulary, and equal to it at K = V.
    Gradient (q - p) / T at a kept token, and q (1 - r_p/r_q) / T at any other: the rest learns how
    much it may have, and shares it out as the student does. Without the rest (the K tokens made to
    sum to 1) the student is told that the others are impossible.

    Source: the chain rule of the KL (Cover and Thomas 2006, theorem 2.5.3), of which it is the
    first term; the missing second is what the teacher knows inside the rest.

    >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.1, 0.4]).log()
    >>> best = BestTokens.of(teacher, k=1)
    >>> round(best_tokens_kl(student, best).item(), 4)  # 0.7 log(7/5) + 0.3 log(3/5)
    0.0823
    """

    name = "best_tokens_kl"

    def _value(self, teacher: BestTokens, log_q: Tensor) -> Tensor:
        log_p = torch.cat([teacher.log_probs, teacher.log_rest.unsqueeze(-1)], -1).to(log_q.dtype)
        return forward_kl._value(log_p.detach(), _buckets(log_q, teacher.token_ids))

    def _gradient(self, teacher: BestTokens, log_q: Tensor) -> Tensor:
        log_rest_q = _buckets(log_q, teacher.token_ids)[..., -1:]
        # what a student would be at rest with: p where it is known, its own shares of the rest
        target = (log_q - log_rest_q + teacher.log_rest.unsqueeze(-1).to(log_q.dtype)).exp()
        target = target.masked_fill(log_q.isneginf(), 0.0).scatter(-1, teacher.token_ids, 0.0)
        probs = teacher.log_probs.exp().to(log_q.dtype)
        return log_q.exp() - target.scatter_add(-1, teacher.token_ids, probs)


@dataclass(frozen=True)
class SampledKL(SparseDivergence[SampledTokens]):
    """Forward KL, estimated without bias from tokens that were drawn from the teacher.

    Σ_i w_i (log p_i - log q_i) over the drawn tokens, gradient (Σ_i w_i q - p̂) / T, where p̂ is
    the sum of the weights at each token. Its expectation over draws is KL(p‖q), and that of its
    gradient (q - p) / T, however few the draws are. One draw alone may be negative, and its
    gradient is not zero at equality: the noise falls like 1/√N.

    Source: Anshumann et al. 2025, Sparse Logit Sampling (ACL 2025, arXiv 2503.16870).

    >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.1, 0.4]).log()
    >>> ids, weights = torch.tensor([0, 1]), torch.tensor([3 / 4, 1 / 4])  # drawn: 0, 0, 1, 0
    >>> drawn = SampledTokens(ids, teacher[ids], weights)
    >>> round(sampled_kl(student, drawn).item(), 4)  # 3/4 log(7/5) + 1/4 log 2
    0.4256
    """

    name = "sampled_kl"

    def _value(self, teacher: SampledTokens, log_q: Tensor) -> Tensor:
        log_ratio = teacher.log_probs.detach().to(log_q.dtype) - log_q.gather(-1, teacher.token_ids)
        weights = teacher.weights.detach().to(log_q.dtype)
        return (weights * log_ratio.masked_fill(weights == 0, 0.0)).sum(-1)

    def _gradient(self, teacher: SampledTokens, log_q: Tensor) -> Tensor:
        weights = teacher.weights.to(log_q.dtype)
        pull = weights.sum(-1, keepdim=True) * log_q.exp()
        return pull.scatter_add(-1, teacher.token_ids, -weights)


best_tokens_kl = BestTokensKL()
sampled_kl = SampledKL()


@dataclass(frozen=True)
class TopKKL(Divergence):
    """`best_tokens_kl` of a teacher that is there with all its logits: what a cache would give.

    The teacher's k best tokens at temperature T, and the rest in one bucket. k >= V is forward KL.
    UserError when k is not a whole number of at least 1.

    Source: as `BestTokensKL`.

    >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.5, 0.1, 0.4]).log()
    >>> round(TopKKL(1)(student, teacher).item(), 4)
    0.0823
    """

    k: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _whole(self.k))

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"top_k_kl(k={self.k})"

    def _value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return best_tokens_kl._value(self._kept(log_p), log_q)

    def _gradient(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return best_tokens_kl._gradient(self._kept(log_p), log_q)

    def _kept(self, log_p: Tensor) -> BestTokens:
        buckets = _buckets(log_p, token_ids := _best(log_p, self.k))
        return BestTokens(token_ids, buckets[..., :-1], buckets[..., -1])


def _best(log_p: Tensor, k: int) -> Tensor:
    return log_p.topk(min(k, log_p.shape[-1]), dim=-1).indices


def _buckets(log_x: Tensor, token_ids: Tensor) -> Tensor:
    """(..., V) -> (..., K + 1): the logarithms of the kept tokens, and of the rest together."""
    nothing = torch.finfo(log_x.dtype).min
    others = _floored(log_x).scatter(-1, token_ids, nothing)
    rest = others.logsumexp(-1, keepdim=True)  # which has no gradient over nothing but -inf
    rest = rest.masked_fill(others.amax(-1, keepdim=True) == nothing, -torch.inf)
    return torch.cat([log_x.gather(-1, token_ids), rest], -1)


def _whole(count: Any) -> int:
    if not (count >= 1 and math.isfinite(count) and count == int(count)):
        raise UserError(f"{count} tokens of the teacher: give a whole number of at least 1")
    return int(count)


def _check_told(token_ids: Tensor, log_probs: Tensor, rest: Tensor, rounding: float) -> None:
    """Refuse what a server cannot mean; it may round its numbers (to a thousandth, at most)."""
    if not token_ids.numel():
        return
    slack = max(rounding, 1e-3)
    if not log_probs.max() <= slack:  # or NaN
        raise UserError(
            f"the greatest of log_probs is {log_probs.max():.4g}: expected natural logarithms of "
            "probabilities, none of them above 0; of probabilities themselves, pass log()"
        )
    if rest.min() < -slack:
        raise UserError(
            f"the probabilities of the best tokens sum to {1 - rest.min():.4g} somewhere: expected "
            "at most 1; pass the logarithms of a softmax over the whole vocabulary"
        )
    free = -1 - torch.arange(token_ids.shape[-1], device=token_ids.device)
    used = token_ids.where(log_probs > -torch.inf, free).sort(-1).values
    if (twice := used[..., 1:] == used[..., :-1]).any():
        raise UserError(
            f"token id {int(used[..., 1:][twice][0])} stands among the best tokens twice: tell "
            "each once, with the probability of both"
        )


def _check_sparse(
    student_logits: Tensor, teacher: BestTokens | SampledTokens, temperature: float
) -> None:
    _check_temperature(temperature)
    if temperature != teacher.temperature:
        raise UserError(
            f"the teacher's tokens were taken at temperature {teacher.temperature}, the loss is "
            f"asked for {temperature}: take them anew, or train at theirs"
        )
    ids = teacher.token_ids
    if ids.shape[:-1] != student_logits.shape[:-1] or ids.shape != teacher.log_probs.shape:
        raise UserError(
            f"the teacher's token ids have shape {tuple(ids.shape)}, its log-probabilities "
            f"{tuple(teacher.log_probs.shape)}, the student's logits {tuple(student_logits.shape)}"
            ": ids and log-probabilities must be equal, and like the logits in all but the last"
        )
    weights = getattr(teacher, "weights", None)
    rest = getattr(teacher, "log_rest", None)
    for name, part, wanted in (("weights", weights, ids.shape), ("log_rest", rest, ids.shape[:-1])):
        if part is not None and part.shape != wanted:
            raise UserError(
                f"the teacher's {name} have shape {tuple(part.shape)}, expected {tuple(wanted)} "
                f"beside token ids of {tuple(ids.shape)}"
            )
    width = student_logits.shape[-1]
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < width:
        raise UserError(
            f"the teacher's token ids reach from {int(ids.min())} to {int(ids.max())}, but the "
            f"student has {width} logits: both must have the same tokenizer"
        )
