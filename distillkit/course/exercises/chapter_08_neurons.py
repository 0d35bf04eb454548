"""Exercise of chapter 08, pruning: neurons of a gated feed-forward layer, in three matrices."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.ranking import ranked

# 8.4 · fewer neurons ------------------------------------------------------------------------------

Triple = tuple[Tensor, Tensor, Tensor]


def _neuron_cases(draw: Draw) -> list[Case]:
    cases = []
    for t, d, f, keep in ((9, 12, 8, 3), (7, 6, 10, 4), (11, 5, 9, 4)):
        matrices = _layer(draw, t, d, f)
        while not _telling(matrices, keep):
            matrices = _layer(draw, t, d, f)
        name = f"F={f}, D={d}, T={t}, {keep} neurons stay"
        cases.append(Case(name, (*(each.to(draw.dtype) for each in matrices), keep)))
    return cases


def _layer(draw: Draw, t: int, d: int, f: int) -> list[Tensor]:
    """Gate, up, down and inputs, in float64; no two neurons' scores are near each other."""
    gate, up = (draw.logits(f, d, scale=0.8, dtype=torch.float64) for _ in range(2))
    up = up * 2.0 ** draw.logits(f, 1, scale=1.0, dtype=torch.float64)
    inputs = draw.logits(t, d, scale=0.8, dtype=torch.float64)
    inputs[0] *= 3.0  # one loud token: a norm is no mean
    down = F.normalize(draw.logits(d, f, dtype=torch.float64), dim=0)
    hidden = F.silu(inputs @ gate.T) * (inputs @ up.T)
    return [gate, up, down * ranked(draw, 1, f) / hidden.norm(dim=0), inputs]


def _telling(matrices: list[Tensor], keep: int) -> bool:
    """Whether every score, right or wrong, chooses other neurons."""
    parts = ("both", "hidden", "down")
    scores = [_of_weights, _score(gated="none"), _score(gated="up"), _score(size="mean")]
    scores += [_score(part=part) for part in parts]
    kept = {tuple(score(*matrices).topk(keep).indices.sort().values.tolist()) for score in scores}
    return len(kept) == len(scores)


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


def _score(part: str = "both", gated: str = "gate", size: str = "norm") -> Function:
    """The neurons' scores. part: the hidden values, the columns, or both. gated: what is put
    through SiLU; size: how large the values of a neuron are.
    """

    def score(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor) -> Tensor:
        g, u = inputs @ gate.T, inputs @ up.T
        hidden = {"gate": F.silu(g) * u, "up": g * F.silu(u), "none": g * u}[gated]
        values = {"norm": hidden.norm(dim=0), "mean": hidden.mean(0).abs()}[size]
        columns = down.norm(dim=0)
        return {"both": values * columns, "hidden": values, "down": columns}[part]

    return score


def _of_weights(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor) -> Tensor:
    return gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)


def _cut(score: Function = _score(), *, order: str = "old", sign: int = 1) -> Function:  # noqa: B008
    """The layer cut by a score. order: of the neurons that stay; sign: -1 keeps the smallest."""

    def cut(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
        best = (sign * score(gate, up, down, inputs)).topk(keep).indices
        kept = best if order == "score" else best.sort().values
        mixed = best if order == "mixed" else kept
        return gate[kept], up[kept], down[:, mixed]

    return cut


def _rows_of_down(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
    kept = _score()(gate, up, down, inputs).topk(keep).indices.sort().values
    return gate[kept], up[kept], down[kept]


def _down_alone(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor, keep: int) -> Triple:
    return gate, up, _cut()(gate, up, down, inputs, keep)[2]


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
            _cut(_of_weights),
            "Your score asks the weights alone. Which neurons speak is seen on inputs: use the "
            "norm of what each one says.",
            "a reader",
        ),
        Mutant(
            "hidden alone",
            _cut(_score(part="hidden")),
            "You ask how loud a neuron is, and not who hears it: multiply by the norm of its "
            "column in down.",
            "a reader",
        ),
        Mutant(
            "down alone scored",
            _cut(_score(part="down")),
            "Your score is the norm of down's columns. A neuron with a strong column that never "
            "fires does nothing: multiply by the norm of what it says.",
            "a reader",
        ),
        Mutant(
            "no SiLU",
            _cut(_score(gated="none")),
            "You left the SiLU out: the gate closes on negative values, and your score does not "
            "see that.",
            "a reader",
        ),
        Mutant(
            "SiLU on up",
            _cut(_score(gated="up")),
            "You put up through the SiLU. The *gate* goes through it, and up is multiplied as it "
            "is.",
            "a reader",
        ),
        Mutant(
            "mean",
            _cut(_score(size="mean")),
            "You took the mean of what a neuron says, where plus and minus cancel. Take the norm.",
            "a reader",
        ),
    ),
)

EXERCISES = (NEURONS,)
