"""Scores for the exercises of pruning: in a row no two of them are near each other."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.drawing import Draw


def ranked(draw: Draw, rows: int, columns: int) -> Tensor:
    """(rows, columns) scores, in float64: neighbours in rank are 10 % apart, and rows by levels.

    So who is among the best of a row does not hang on the last digit.
    """
    order = draw.logits(rows, columns, dtype=torch.float64).argsort(-1).double()
    level = 1.3 ** draw.logits(rows, dtype=torch.float64).argsort().double()
    return 1.1**order * level.unsqueeze(-1)


def signs(draw: Draw, *shape: int) -> Tensor:
    """1 or -1, in float64."""
    return 2.0 * draw.integers(*shape, below=2).double() - 1.0


def highest(scores: Tensor, keep: int, axis: int = -1) -> Tensor:
    """The mask of the `keep` highest scores along an axis, exactly so many."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    return kept.scatter(axis, scores.topk(keep, dim=axis).indices, True)
