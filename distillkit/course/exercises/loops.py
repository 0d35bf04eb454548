"""Pieces of the oracles: slow loops over Python floats, to be read as the specification.

A *row* is the list of V logits of one token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Row = Sequence[float]


def log_softmax(row: Row, temperature: float = 1.0) -> list[float]:
    """log softmax(row / T), with the greatest logit taken out so that nothing overflows."""
    scaled = [logit / temperature for logit in row]
    whole = log_sum(scaled)
    return [logit - whole for logit in scaled]


def log_sum(row: Row) -> float:
    """log Σ exp(row)."""
    highest = max(row)
    total = 0.0
    for logit in row:
        total += math.exp(logit - highest)
    return highest + math.log(total)


def softmax(row: Row, temperature: float = 1.0) -> list[float]:
    """softmax(row / T)."""
    return [math.exp(log_probability) for log_probability in log_softmax(row, temperature)]


def kl(log_a: Row, log_b: Row) -> float:
    """KL(a‖b) in nats, of two rows of log-probabilities."""
    total = 0.0
    for log_x, log_y in zip(log_a, log_b, strict=True):
        if math.exp(log_x) > 0.0:
            total += math.exp(log_x) * (log_x - log_y)
    return total


def per_token(function: Callable[..., Any], *tables: Any) -> list[list[Any]]:
    """A function of rows at each of the (B, S) tokens, as B lists of S values."""
    values = []
    for lines in zip(*tables, strict=True):
        values.append([function(*rows) for rows in zip(*lines, strict=True)])
    return values


def mixture(log_a: Row, log_b: Row, share_of_a: float) -> list[float]:
    """log(share·a + (1 - share)·b), of two rows of log-probabilities."""
    mixed = []
    for log_x, log_y in zip(log_a, log_b, strict=True):
        highest = max(log_x, log_y)
        weighted = share_of_a * math.exp(log_x - highest)
        weighted += (1 - share_of_a) * math.exp(log_y - highest)
        mixed.append(highest + math.log(weighted))
    return mixed
