"""Exercise of chapter 08, pruning: which weights Wanda keeps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.ranking import highest, ranked, signs
from distillkit.pruning import methods

# 8.1 · Wanda's mask -------------------------------------------------------------------------------

Arguments = tuple[Tensor, Tensor, Tensor, float]


def _arguments(draw: Draw, b: int, s: int, o: int, i: int, sparsity: float) -> Arguments:
    """Inputs of which half are quiet and have one loud token; weights by their score, over a norm.

    So the norm's order is neither that of the mean size nor that of the largest.
    """
    mask = draw.mask(b, s)
    sizes = 2.0 ** draw.logits(i, scale=1.0, dtype=torch.float64)
    inputs = draw.logits(b, s, i, scale=1.0, dtype=torch.float64) * sizes
    inputs[:, :, ::2] *= 0.3
    inputs[0, -1, ::2] *= 12.0  # the first row is valid to its end
    inputs[~mask] *= 4.0  # what stands at padding is no small thing
    norms = inputs[mask].norm(dim=0)
    weight = ranked(draw, o, i) * signs(draw, o, i) / norms
    return weight.to(draw.dtype), inputs.to(draw.dtype), mask.long(), sparsity


def _wanda_cases(draw: Draw) -> list[Case]:
    cases = []
    shapes = ((3, 5, 6, 16, 0.5), (2, 7, 8, 12, 0.25), (4, 4, 4, 8, 0.75), (2, 5, 6, 10, 0.9))
    for b, s, o, i, sparsity in shapes:  # (1 - 0.9) * 10 is a crumb less than 1
        name = f"O={o}, I={i}, B={b}, S={s}, sparsity {sparsity}"
        cases.append(Case(name, _arguments(draw, b, s, o, i, sparsity)))
    weight, *others = _arguments(draw, 3, 6, 8, 16, 0.625)
    stored = weight.T.contiguous().T
    return [*cases, Case("O=8, I=16, sparsity 0.625, W a transposed view", (stored, *others))]


def _wanda_oracle(
    weight_OI: list[list[float]],
    inputs_BSI: list[list[list[float]]],
    mask_BS: list[list[int]],
    sparsity: float,
) -> list[list[bool]]:
    features = range(len(weight_OI[0]))
    squares = [0.0 for _ in features]
    for line, real in zip(inputs_BSI, mask_BS, strict=True):
        for token, counts in zip(line, real, strict=True):
            for i in features:
                squares[i] += token[i] ** 2 if counts else 0.0
    kept = []
    for row in weight_OI:
        scores = [abs(row[i]) * math.sqrt(squares[i]) for i in features]
        cut = sorted(features, key=scores.__getitem__)[: round(sparsity * len(row))]
        kept.append([i not in cut for i in features])
    return kept


def _scores(
    *, size: str = "norm", padded: bool = False, signed: bool = False, alone: str = ""
) -> Function:
    """The score with one part replaced. size: of a feature, "lines" for norms of each sequence,
    summed; alone: "weight" or "input".
    """

    def scores(weight: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        tokens = inputs.flatten(0, 1) if padded else inputs[mask.bool()]
        found = {
            "norm": tokens.norm(dim=0),
            "square": tokens.square().sum(0),
            "mean": tokens.abs().mean(0),
            "largest": tokens.abs().amax(0),
            "lines": (inputs * mask[..., None]).norm(dim=1).sum(0),
        }[size]
        found = torch.ones_like(found) if alone == "weight" else found
        magnitude = torch.ones_like(weight) if alone == "input" else weight.abs()
        return (weight if signed else magnitude) * found

    return scores


def _masked(
    scores: Function = _scores(),  # noqa: B008
    *,
    over: str = "row",
    smallest: bool = False,
    exchanged: bool = False,
    threshold: bool = False,
    whole: Function = round,
) -> Function:
    """The mask of scores. over: what is compared. exchanged: so many are kept. threshold: cuts
    whatever is not above the k-th score. whole: makes a whole number of how many.
    """

    def mask(weight: Tensor, inputs: Tensor, real: Tensor, sparsity: float) -> Tensor:
        found = scores(weight, inputs, real)
        found = -found if smallest else found
        share = sparsity if exchanged else 1 - sparsity
        if threshold:
            cut = round(sparsity * found.shape[-1])
            return found > found.kthvalue(cut, dim=-1, keepdim=True).values
        if over == "layer":
            flat = found.flatten()
            return highest(flat, round(share * len(flat))).view_as(found)
        axis = -1 if over == "row" else 0
        return highest(found, whole(share * found.shape[axis]), axis)

    return mask


def _so_many_in_a_tie(mask: Function, draw: Draw) -> bool:
    _, inputs, real, sparsity = _arguments(draw, 3, 5, 6, 16, 0.5)
    inputs[:, :, 3:13] = 0.0  # features that are never there
    kept = torch.as_tensor(mask(torch.ones(6, 16, dtype=inputs.dtype), inputs, real, sparsity))
    return bool((kept.bool().sum(-1) == 8).all())


WANDA = Exercise(
    number="8.1",
    title="Wanda's mask",
    kind="write",
    minutes=12,
    difficulty=2,
    hints=(
        "Which tokens are real? `inputs_BSI[mask_BS.bool()]` is (N, I). One number for each "
        "feature is left: its norm over the N tokens.",
        "`scores = weight_OI.abs() * norms`: the norms broadcast over the rows. Every row keeps "
        "its own best, the same number in each.",
        "`scores.topk(keep, dim=-1).indices` has exactly `keep` columns a row, ties or not. Put "
        "True there: `torch.zeros_like(scores, dtype=torch.bool).scatter(-1, indices, True)`.",
    ),
    cases=_wanda_cases,
    oracle=_wanda_oracle,
    library=(methods.wanda_mask,),
    properties=(
        Property(
            "the same number in every row",
            _so_many_in_a_tie,
            "The mask is right where no two scores are equal. Where some are, as with features "
            "that are always 0, a row must keep exactly (1 - sparsity) · I weights all the same: "
            "a threshold cannot promise that, `topk` can.",
        ),
    ),
    mutants=(
        Mutant(
            "compared over the layer",
            _masked(over="layer"),
            "The scores are right, but you compare them over the whole matrix. Wanda compares "
            "within each output row, so every output loses the same share of its inputs.",
            "a reader, who took the threshold of magnitude pruning over",
        ),
        Mutant(
            "compared over the columns",
            _masked(over="column"),
            "You compare the weights of one *input* with each other. They share one norm, so the "
            "activations have no say. Compare along the last axis, within each output.",
            "a reader, who mixed up `dim=0` and `dim=-1`",
        ),
        Mutant(
            "magnitude alone",
            _masked(_scores(alone="weight")),
            "This is magnitude pruning, row by row. A small weight on a loud input does more than "
            "a large one on a quiet input: multiply by the norm.",
            "a reader",
        ),
        Mutant(
            "activations alone",
            _masked(_scores(alone="input")),
            "Your mask is the same in every row: it asks the activations alone. The score has the "
            "weight's magnitude in it, too.",
            "wanda#1, which asks for it",
        ),
        Mutant(
            "padding counted",
            _masked(_scores(padded=True)),
            "Your norms count padding. What stands there is no input of the assistant: leave out "
            "the tokens whose mask is 0.",
            "optipfair#34, where padding was counted",
        ),
        Mutant(
            "no root",
            _masked(_scores(size="square")),
            "You multiply by the sum of squares and forget its root, so loud features count too "
            "much. |W| · ‖x‖ or W² · ‖x‖² give one order, |W| · ‖x‖² another.",
            "a reader",
        ),
        Mutant(
            "mean size",
            _masked(_scores(size="mean")),
            "You took the mean of |x|. The norm squares first: a feature that is loud once counts "
            "more than one that hums, since the error in the output is a square.",
            "a reader",
        ),
        Mutant(
            "largest",
            _masked(_scores(size="largest")),
            "You took the largest |x|, as SmoothQuant does. Wanda takes the norm over all real "
            "tokens.",
            "a reader",
        ),
        Mutant(
            "norms of sequences",
            _masked(_scores(size="lines")),
            "You take the norm over each sequence and sum these norms. It is one norm, over the "
            "real tokens of all sequences together.",
            "a reader, who wrote `norm(dim=1).sum(0)`",
        ),
        Mutant(
            "signed",
            _masked(_scores(signed=True)),
            "You compare the weights with their signs, so negative ones go first, however large. "
            "Take `weight_OI.abs()`.",
            "Sparse-Marlin PR#4, where negative values were pruned",
        ),
        Mutant(
            "keeps the smallest",
            _masked(smallest=True),
            "You keep the weights with the *lowest* scores. The highest stay.",
            "a reader",
        ),
        Mutant(
            "the mask of what goes",
            lambda *arguments: ~_masked()(*arguments),
            "Your mask is the right one turned round: True stands for a weight that *stays*.",
            "a reader, who returned the mask of what to cut",
        ),
        Mutant(
            "sparsity kept",
            _masked(exchanged=True),
            "You keep the share that should be cut. Sparsity is the share of zeros; at 0.5 nobody "
            "notices.",
            "a reader",
        ),
        Mutant(
            "a crumb too few",
            _masked(whole=int),
            "Right, unless `(1 - sparsity) * I` is a crumb below a whole number: (1 - 0.9) * 10 is "
            "0.9999999999999998, and `int()` makes 0 of it. `round()` makes 1.",
            "a reader, who wrote `int((1 - sparsity) * I)`",
        ),
        Mutant(
            "weights for a mask",
            lambda weight, *others: weight * _masked()(weight, *others),
            "You cut the weights, and rightly. Asked for is the mask alone: True where a weight "
            "stays.",
            "a reader, who returned `W * mask`",
        ),
        Mutant(
            "a threshold",
            _masked(threshold=True),
            "Right, unless scores are equal: all that tie with your threshold go the same way, and "
            "a row keeps too few, or too many. Take exactly so many, with `topk`.",
            "a reader, who wrote `scores > threshold`",
        ),
    ),
)

EXERCISES = (WANDA,)
