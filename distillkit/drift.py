"""Does a student drift from its teacher as a conversation goes on?

The same question is asked on two kinds of rows: conversations that somebody else has had, and what
the student has said itself (`on_policy.WholeVisits`). Where late turns are harder, both grow; where
the student's own history does harm, the second lies above the first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillkit.errors import UserError
from distillkit.evaluation import Encoded, scored_batches
from distillkit.losses import Divergence, forward_kl


@dataclass(frozen=True)
class Drift:
    """For each group of turns that has a token: its middle, the mean there, and how many tokens.

    `mean` is over the tokens of all turns.
    """

    turns: list[float]
    values: list[float]
    tokens: list[int]
    mean: float


def kl_by_turn(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Sequence[Encoded],
    opens: int,
    *,
    divergence: Divergence = forward_kl,
    edges: Sequence[int] = (3, 6, 9, 13, 30),
) -> Drift:
    """The mean divergence of the labelled tokens, by the number of turns begun before each.

    `opens` is the id of the token that opens a turn, `<|user|>` say; turn n is what comes after the
    n-th of them. `edges` are the last turns of the groups; later ones fall into the last group.
    Raises UserError when no row holds `opens`, or no token has a label.
    """
    begun = [(torch.tensor(row["input_ids"]) == opens).cumsum(0) for row in rows]
    if not any(int(row[-1]) for row in begun):
        raise UserError(
            f"found no token {opens} in {len(rows)} conversations: which one opens a turn?"
        )
    found: list[list[float]] = [[] for _ in edges]
    pairs = zip(scored_batches(student, rows), scored_batches(teacher, rows), strict=True)
    for ours, theirs in pairs:
        values: Tensor = divergence(ours.logits, theirs.logits.to(ours.logits.device))
        places = zip(ours.rows.tolist(), ours.columns.tolist(), values.tolist(), strict=True)
        for row, column, value in places:
            group = bisect_left(edges, int(begun[row][column]))
            found[min(group, len(edges) - 1)].append(value)
    firsts = [1, *(edge + 1 for edge in edges)]
    kept = [
        ((first + last) / 2, values)
        for first, last, values in zip(firsts, edges, found, strict=False)
        if values
    ]
    total = sum(map(sum, found))
    return Drift(
        turns=[middle for middle, _ in kept],
        values=[sum(values) / len(values) for _, values in kept],
        tokens=[len(values) for _, values in kept],
        mean=total / sum(map(len, found)),
    )
