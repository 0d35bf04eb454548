"""How a token is drawn from a model's distribution: temperature, top-p, and a seed for each reply.

Every reply has a stream of random numbers of its own, named by the seed and the reply's key, and
takes one number a token. So what is drawn depends neither on the other rows of a batch nor on the
order in which they are served, and a run that is continued draws what it would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from distillkit.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Draw from softmax(logits / temperature), cut to its likeliest tokens of mass `top_p`.

    This temperature belongs to the text that is written. That of a distillation loss is another
    number, and neither enters where the other does.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise UserError(
                f"the sampling temperature is {self.temperature}: give a number above 0, or leave "
                "sampling away to take the likeliest token"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p is {self.top_p}: give a share above 0, at most 1")

    def stream(self, key: Hashable) -> Random:
        """The random numbers of one reply."""
        return Random(f"{self.seed}/{key}")

    def draw(self, logits_NV: Tensor, streams: Sequence[Random]) -> list[int]:
        """One token for each of the N rows, each with the next number of its own stream.

        Raises UserError where the logits are no numbers to draw from (NaN, +inf, or nothing but
        −inf), or there is not one stream for each row.

        >>> rows = torch.tensor([[0.0, 2.0, 1.0]])
        >>> Sampling(top_p=0.5).draw(rows, [Random(0)])  # the likeliest token alone has more
        [1]
        """
        if len(streams) != len(logits_NV):
            raise UserError(
                f"there are {len(streams)} streams of random numbers for {len(logits_NV)} rows: "
                "give each row its own, sampling.stream(key)"
            )
        softened = (logits_NV.float() / self.temperature).softmax(-1)
        if softened.isnan().any():
            raise UserError(
                "the model's logits are NaN or infinite, so no token can be drawn: its training "
                "diverged (go on from an earlier checkpoint with a lower learning rate), or the "
                f"sampling temperature of {self.temperature} is too low"
            )
        probs, ids = softened.sort(dim=-1, descending=True, stable=True)
        before = probs.double().cumsum(-1) - probs
        probs = probs.masked_fill(before >= self.top_p, 0.0)
        mass = probs.double().cumsum(-1)
        numbers = torch.tensor([[stream.random()] for stream in streams], dtype=torch.float64)
        drawn = torch.searchsorted(mass, numbers.to(mass.device) * mass[:, -1:], right=True)
        last = (probs > 0).sum(-1, keepdim=True) - 1  # rounding must not lead behind it
        return ids.gather(1, drawn.minimum(last)).squeeze(1).tolist()
