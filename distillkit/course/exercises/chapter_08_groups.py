"""Exercise of chapter 08, pruning: N of every M weights."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.ranking import highest, ranked, signs
from distillkit.pruning.patterns import NofM

# 8.2 · two of every four --------------------------------------------------------------------------


def _weight(draw: Draw, o: int, i: int) -> Tensor:
    return (ranked(draw, o, i) * signs(draw, o, i)).to(draw.dtype)


def _group_cases(draw: Draw) -> list[Case]:
    cases = [
        Case(f"{n}:{m}, O={o}, I={i}", (_weight(draw, o, i), n, m))
        for n, m, o, i in ((2, 4, 4, 12), (1, 4, 8, 12), (6, 8, 8, 24))
    ]
    stored = _weight(draw, 8, 16).T.contiguous().T
    return [*cases, Case("2:4, O=8, I=16, W a transposed view", (stored, 2, 4))]


def _group_oracle(weight_OI: list[list[float]], n: int, m: int) -> list[list[bool]]:
    kept = []
    for row in weight_OI:
        line = []
        for start in range(0, len(row), m):
            sizes = [abs(w) for w in row[start : start + m]]
            for size in sizes:
                larger = sum(other > size for other in sizes)
                line.append(larger < n)
        kept.append(line)
    return kept


def _grouped(
    *,
    along: str = "inputs",
    signed: bool = False,
    smallest: bool = False,
    exchanged: bool = False,
    threshold: bool = False,
) -> Function:
    """The mask with one part replaced.

    along: what makes a group; "stride" for every (I/m)-th column, "blocks" for whole groups that
    stay or go. exchanged: n are cut. threshold: all that reach the n-th stay.
    """

    def mask(weight: Tensor, n: int, m: int) -> Tensor:
        scores = weight if signed else weight.abs()
        scores = -scores if smallest else scores
        n = m - n if exchanged else n
        groups = scores.unflatten(-1, (-1, m))
        if along == "outputs":
            return _grouped(exchanged=False)(weight.T, n, m).T
        if along == "stride":
            return highest(scores.unflatten(-1, (m, -1)), n, 1).flatten(1)
        if along == "row":
            return highest(scores, scores.shape[-1] * n // m)
        if along == "layer":
            flat = scores.flatten()
            return highest(flat, len(flat) * n // m).view_as(scores)
        if along == "blocks":
            sums = groups.sum(-1)
            best = highest(sums, max(sums.shape[-1] * n // m, 1))
            return best.repeat_interleave(m, -1)
        if threshold:
            return (groups >= groups.topk(n).values[..., -1:]).flatten(1)
        return highest(groups, n).flatten(1)

    return mask


def _so_many_in_a_tie(mask: Function, draw: Draw) -> bool:
    weight = torch.ones(4, 12, dtype=draw.dtype)
    weight[1, 4:8] = 0.0
    kept = torch.as_tensor(mask(weight, 2, 4)).bool().reshape(4, 3, 4)
    return bool((kept.sum(-1) == 2).all())


TWO_OF_FOUR = Exercise(
    number="8.2",
    title="Two of every four",
    kind="write",
    minutes=10,
    difficulty=2,
    hints=(
        "A group is m weights that stand beside each other in one row. "
        "`weight_OI.abs().unflatten(-1, (-1, m))` is (O, I/m, m), a group on the last axis.",
        "`topk(n, dim=-1).indices` of that says who stays. `scatter` True there, and "
        "`flatten(1)` back to (O, I).",
    ),
    cases=_group_cases,
    oracle=_group_oracle,
    library=(NofM.keep,),
    properties=(
        Property(
            "n in every group",
            _so_many_in_a_tie,
            "The mask is right where no two weights are equal. Where they are, as in a group of "
            "zeros, a group still keeps exactly n: the format has n places, and no more.",
        ),
    ),
    mutants=(
        Mutant(
            "always 2:4",
            lambda weight, n, m: _grouped()(weight, 2, 4),
            "Your groups are 2:4, whatever is asked for. Take `n` and `m` from the arguments: "
            "other pairs are tried, too.",
            "a reader, who wrote 2 and 4",
        ),
        Mutant(
            "weights for a mask",
            lambda weight, n, m: weight * _grouped()(weight, n, m),
            "You cut the weights, and rightly. Asked for is the mask alone: True where a weight "
            "stays.",
            "a reader, who returned `W * mask`",
        ),
        Mutant(
            "along the outputs",
            _grouped(along="outputs"),
            "Your groups go down the columns. The hardware multiplies a row of W with the input, "
            "so m weights of one *output*, beside each other, make a group.",
            "tensorflow/model-optimization PR#743, where the axis of the groups had to be stated",
        ),
        Mutant(
            "strided groups",
            _grouped(along="stride"),
            "Your groups take every (I/m)-th column: `unflatten(-1, (m, -1))`. Neighbours belong "
            "together: `unflatten(-1, (-1, m))`.",
            "a reader",
        ),
        Mutant(
            "n cut",
            _grouped(exchanged=True),
            "You cut n of every m. N:M says how many *stay*; at 2:4 the two are the same.",
            "SparseLLM#10, which asks whether 3:4 was meant for 1:4",
        ),
        Mutant(
            "keeps the smallest",
            _grouped(smallest=True),
            "You keep the n *smallest* of each group. The largest stay.",
            "a reader",
        ),
        Mutant(
            "the mask of what goes",
            _grouped(smallest=True, exchanged=True),
            "Your mask is the right one turned round: True stands for a weight that *stays*.",
            "a reader, who returned the mask of what to cut",
        ),
        Mutant(
            "signed",
            _grouped(signed=True),
            "You compare the weights with their signs, so the most negative ones are cut first. "
            "Compare magnitudes.",
            "Sparse-Marlin PR#4, where negative values were pruned",
        ),
        Mutant(
            "by the row",
            _grouped(along="row"),
            "The share of zeros is right in every row, but not in every group: some hold more than "
            "n weights, and the format has no place for them.",
            "a reader, who took 50 % for 2:4",
        ),
        Mutant(
            "over the layer",
            _grouped(along="layer"),
            "The share of zeros is right over the whole matrix, and nowhere else. Every group of m "
            "keeps n.",
            "a reader, who took 50 % for 2:4",
        ),
        Mutant(
            "whole groups",
            _grouped(along="blocks"),
            "Whole groups stay or go with you: block sparsity. In N:M every group keeps n of its "
            "own weights.",
            "a reader",
        ),
        Mutant(
            "a threshold",
            _grouped(threshold=True),
            "Right, unless weights are equal: then all that reach the n-th stay, and the group has "
            "too many. Take exactly n, with `topk`.",
            "structured_transposable_masks#1, whose masks kept too many",
        ),
    ),
)

EXERCISES = (TWO_OF_FOUR,)
