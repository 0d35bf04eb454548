"""Does a student drift from its teacher as a conversation goes on?

The same question is asked on two kinds of rows: conversations that somebody else has had, and what
the student has said itself (`on_policy.WholeVisits`). Where late turns are harder, both grow; where
the student's own history does harm, the second lies above the first. One mean hides how much of it
a few visitors carry: `sums_by_turn` keeps the rows apart, for an interval over visitors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillkit.errors import UserError
from distillkit.evaluation import Encoded, scored_batches
from distillkit.losses import Divergence, forward_kl

EDGES = (3, 6, 9, 13, 30)
"""The last turns of the groups, unless others are given; later turns fall into the last group."""


@dataclass(frozen=True)
class TurnSums:
    """Of each row and group of turns, (rows, groups): sums over the labelled tokens.

    values: of the divergence; turns: of the number of the turn; tokens: how many there are.
    """

    values: np.ndarray
    turns: np.ndarray
    tokens: np.ndarray


def sums_by_turn(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Sequence[Encoded],
    opens: int,
    *,
    divergence: Divergence = forward_kl,
    edges: Sequence[int] = EDGES,
) -> TurnSums:
    """The divergence of the labelled tokens, summed for each row by the turns begun before each.

    `opens` is the id of the token that opens a turn, `<|user|>` say; turn n is what comes after the
    n-th of them. Raises UserError when no row holds `opens`, or no token has a label.
    """
    begun = [(torch.tensor(row["input_ids"]) == opens).cumsum(0).tolist() for row in rows]
    if not any(row[-1] for row in begun):
        raise UserError(
            f"found no token {opens} in {len(rows)} conversations: which one opens a turn?"
        )
    sums = np.zeros((3, len(rows), len(edges)))
    pairs = zip(scored_batches(student, rows), scored_batches(teacher, rows), strict=True)
    for ours, theirs in pairs:
        values: Tensor = divergence(ours.logits, theirs.logits.to(ours.logits.device))
        places = zip(ours.rows.tolist(), ours.columns.tolist(), values.tolist(), strict=True)
        for row, column, value in places:
            turn = begun[row][column]
            group = min(bisect_left(edges, turn), len(edges) - 1)
            sums[:, row, group] += value, turn, 1
    return TurnSums(*sums)
