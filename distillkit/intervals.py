"""How sure a measured mean is: bootstrap intervals over training seeds and over goals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from distillkit.errors import UserError


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, samples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, over training seeds and over goals.

    values: (seeds,) with one number a seed, or (seeds, goals) where all seeds met the same goals.
    Each sample draws seeds with replacement, then goals with replacement, the same for all drawn
    seeds, for a hard goal is hard for every seed. Deterministic. With few seeds (five, say) such
    an interval is somewhat too narrow, as any bootstrap of five numbers is.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise UserError(
            f"found values of shape {np.shape(values)}: expected finite numbers of shape (seeds,) "
            "or (seeds, goals), at least one"
        )
    return _middle(_means(table, samples, seed), level)


def _means(table: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The mean of each sample, (samples,): the same seeds and goals for tables of one shape."""
    random = np.random.default_rng(seed)
    of_seed, of_goal = (
        random.multinomial(size, np.full(size, 1 / size), size=samples).astype(float)
        for size in table.shape
    )
    means: np.ndarray = np.einsum("ns,sg,ng->n", of_seed, table, of_goal, optimize=True)
    return means / table.size


def _middle(found: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference_interval(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, samples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of mean(a - b) where both met the same seeds and goals.

    What a seed or a goal does to both cancels, so a difference can be certain while the two
    intervals overlap.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise UserError(
            f"found shapes {first.shape} and {second.shape}: expected the same seeds and goals"
        )
    return bootstrap_interval(first - second, level=level, samples=samples, seed=seed)


def paired_ratio_interval(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, samples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of mean(a) / mean(b) where both met the same seeds and goals.

    b is above zero, as a KL is. The quotient of the means, not the mean of the quotients: a visitor
    with hardly any b would have all of the weight. UserError where that is not so.
    """
    first, second = (np.atleast_2d(np.asarray(each, dtype=np.float64)) for each in (a, b))
    if first.shape != second.shape or not (second >= 0).all() or not second.any():
        raise UserError(
            f"found shapes {np.shape(a)} and {np.shape(b)}: expected the same seeds and goals, and "
            "a second one that is never below zero, and not zero everywhere"
        )
    return _middle(_means(first, samples, seed) / _means(second, samples, seed), level)
