"""Exercise of chapter 08, pruning: neurons of a gated feed-forward layer, in three matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.neurons import SHAPES, layers, of_weights, score

# 8.4 · fewer neurons ------------------------------------------------------------------------------

Triple = tuple[Tensor, Tensor, Tensor]


def _neuron_cases(draw: Draw) -> list[Case]:
    cases = []
    for matrices, (t, d, f, keep) in zip(layers(draw), SHAPES, strict=True):
        name = f"F={f}, D={d}, T={t}, {keep} neurons stay"
        cases.append(Case(name, (*(each.to(draw.dtype) for each in matrices), keep)))
    return cases


def _neuron_oracle(
    gate_FD: list[list[float]],
    up_FD: list[list[float]],
    down_DF: list[list[float]],
    inputs_TD: list[list[float]],
    keep: int,
) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    scores = []
    for f, (gate, up) in enumerate(zip(gate_FD, up_FD, strict=True)):
        squares = 0.0
        for x in inputs_TD:
            g, u = _dot(gate, x), _dot(up, x)
            squares += (g / (1 + math.exp(-g)) * u) ** 2
        column = sum(row[f] ** 2 for row in down_DF)
        scores.append(math.sqrt(squares) * math.sqrt(column))
    best = sorted(range(len(scores)), key=scores.__getitem__)[-keep:]
    kept = sorted(best)
    down = [[row[f] for f in kept] for row in down_DF]
    return [gate_FD[f] for f in kept], [up_FD[f] for f in kept], down


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _cut(
    by: Function = score(),  # noqa: B008
    *,
    order: str = "old",
    sign: int = 1,
    gone: bool = False,
) -> Function:
    """The layer cut by a score. order: of the neurons that stay; sign: -1 keeps the smallest.

    gone: `keep` of them are cut.
    """

    def cut(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
        keep = len(gate) - keep if gone else keep
        best = (sign * by(gate, up, down, inputs)).topk(keep).indices
        kept = best if order == "score" else best.sort().values
        mixed = best if order == "mixed" else kept
        return gate[kept], up[kept], down[:, mixed]

    return cut


def _rows_of_down(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
    kept = score()(gate, up, down, inputs).topk(keep).indices.sort().values
    return gate[kept], up[kept], down[kept]


def _down_alone(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
    return gate, up, _cut()(gate, up, down, inputs, keep)[2]


def _zeroed(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
    stay = torch.zeros(len(gate), dtype=gate.dtype)
    stay[score()(gate, up, down, inputs).topk(keep).indices] = 1.0
    return gate * stay[:, None], up * stay[:, None], down * stay


def _neurons_as_rows(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
    one, two, three = _cut()(gate, up, down, inputs, keep)
    return one, two, three.T


def _exchanged(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
    one, two, three = _cut()(gate, up, down, inputs, keep)
    return two, one, three


def _each_its_own(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
    own = [each.topk(keep).indices.sort().values for each in (gate.norm(dim=1), up.norm(dim=1))]
    return gate[own[0]], up[own[1]], _cut()(gate, up, down, inputs, keep)[2]


NEURONS = Exercise(
    number="8.4",
    title="Fewer neurons, three matrices",
    kind="write",
    minutes=15,
    difficulty=3,
    hints=(
        "`hidden_TF = F.silu(inputs_TD @ gate_FD.T) * (inputs_TD @ up_FD.T)` is what the neurons "
        "say. Neuron f speaks through column f of `down_DF`.",
        "`scores_F = hidden_TF.norm(dim=0) * down_DF.norm(dim=0)`. Choose once, for all three "
        "matrices.",
        "`kept = scores_F.topk(keep).indices.sort().values` puts them back into their old order. "
        "A neuron is a *row* of gate and of up, and a *column* of down.",
    ),
    cases=_neuron_cases,
    oracle=_neuron_oracle,
    mutants=(
        Mutant(
            "rows of down",
            _rows_of_down,
            "Gate and up are right, but of down you took rows. Its rows are outputs of the layer; "
            "the neurons are its columns: `down_DF[:, kept]`.",
            "Torch-Pruning#57, whose shapes no longer matched",
        ),
        Mutant(
            "down alone",
            _down_alone,
            "You cut down and left gate and up whole, so the three no longer fit together. The "
            "same neurons go out of all three.",
            "Torch-Pruning#57, whose shapes no longer matched",
        ),
        Mutant(
            "each its own",
            _each_its_own,
            "Each matrix chose its own rows. It runs, the shapes fit, and gate f stands beside the "
            "up of another neuron. Choose once, and use that choice three times.",
            "a reader",
        ),
        Mutant(
            "zeros for what goes",
            _zeroed,
            "The right neurons, set to 0. They are still there, and cost what they did: asked for "
            "are smaller matrices, without those rows and columns.",
            "a reader, who multiplied by a mask",
        ),
        Mutant(
            "as many cut",
            _cut(gone=True),
            "You cut `keep` neurons away. So many *stay*.",
            "a reader",
        ),
        Mutant(
            "down as rows",
            _neurons_as_rows,
            "The right neurons, but your third matrix is (keep, D). Turn it back: down is (D, F), "
            "and becomes (D, keep).",
            "a reader, who indexed `down.T`",
        ),
        Mutant(
            "gate and up exchanged",
            _exchanged,
            "The right neurons, but gate and up come back in each other's place.",
            "a reader",
        ),
        Mutant(
            "by score",
            _cut(order="score"),
            "The right neurons, in the order of their scores. The layer computes the same, but "
            "asked for is the old order, so that `keep=F` gives back the same file.",
            "a reader, who forgot `.sort()`",
        ),
        Mutant(
            "two orders",
            _cut(order="mixed"),
            "The right neurons, but down has them in the order of their scores and gate and up in "
            "the old one: neuron f speaks through the column of another.",
            "a reader, who sorted one of two copies",
        ),
        Mutant(
            "keeps the smallest",
            _cut(sign=-1),
            "You keep the neurons that matter least. The highest scores stay.",
            "a reader",
        ),
        Mutant(
            "weights alone",
            _cut(of_weights),
            "Your score asks the weights alone. Which neurons speak is seen on inputs: use the "
            "norm of what each one says.",
            "a reader",
        ),
        Mutant(
            "hidden alone",
            _cut(score(part="hidden")),
            "You ask how loud a neuron is, and not who hears it: multiply by the norm of its "
            "column in down.",
            "a reader",
        ),
        Mutant(
            "down alone scored",
            _cut(score(part="down")),
            "Your score is the norm of down's columns. A neuron with a strong column that never "
            "fires does nothing: multiply by the norm of what it says.",
            "a reader",
        ),
        Mutant(
            "no SiLU",
            _cut(score(gated="none")),
            "You left the SiLU out: the gate closes on negative values, and your score does not "
            "see that.",
            "a reader",
        ),
        Mutant(
            "GELU",
            _cut(score(gated="gelu")),
            "Your gate closes harder than SiLU, as GELU and ReLU do: at -3, SiLU still gives "
            "-0.14, and here a neuron speaks with that. SiLU is g · sigmoid(g): `F.silu`.",
            "a reader, who came from a model with GELU",
        ),
        Mutant(
            "sigmoid",
            _cut(score(gated="sigmoid")),
            "Your gate is sigmoid(g) alone. SiLU is g · sigmoid(g): `F.silu`.",
            "a reader",
        ),
        Mutant(
            "SiLU on up",
            _cut(score(gated="up")),
            "You put up through the SiLU. The *gate* goes through it, and up is multiplied as it "
            "is.",
            "a reader",
        ),
        Mutant(
            "no root",
            _cut(score(size="square")),
            "You sum the squares of what a neuron says and forget the root, so how loud it is "
            "counts twice as much as its column. ‖h‖ · ‖down‖ or ‖h‖² · ‖down‖² give one order, "
            "‖h‖² · ‖down‖ another.",
            "a reader, who wrote `(h**2).sum(0)`",
        ),
        Mutant(
            "sizes summed",
            _cut(score(size="sum")),
            "You summed |h| over the tokens. The norm is the root of the summed squares: one shout "
            "counts for more than a steady hum of the same sum.",
            "a reader",
        ),
        Mutant(
            "mean",
            _cut(score(size="mean")),
            "You took the mean of what a neuron says, where plus and minus cancel. Take the norm.",
            "a reader",
        ),
    ),
)

EXERCISES = (NEURONS,)
