"""Layers for the exercise of fewer neurons, in which every score, right or wrong, keeps others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.ranking import ranked

SHAPES = ((9, 12, 8, 3), (7, 6, 10, 4), (11, 5, 9, 4))
"""Tokens, width, neurons, and how many of these stay."""

GATED: dict[str, Function] = {
    "gate": lambda g, u: F.silu(g) * u,
    "up": lambda g, u: g * F.silu(u),
    "none": lambda g, u: g * u,
    "sigmoid": lambda g, u: g.sigmoid() * u,
    "gelu": lambda g, u: F.gelu(g) * u,
    "tanh": lambda g, u: F.gelu(g, approximate="tanh") * u,
    "relu": lambda g, u: g.relu() * u,
    "mish": lambda g, u: F.mish(g) * u,
}
SIZES: dict[str, Function] = {
    "norm": lambda hidden: hidden.norm(dim=0),
    "mean": lambda hidden: hidden.mean(0).abs(),
    "sum": lambda hidden: hidden.abs().sum(0),
    "square": lambda hidden: hidden.square().sum(0),
}


def score(part: str = "both", gated: str = "gate", size: str = "norm") -> Function:
    """The neurons' scores. part: the hidden values, the columns, or both. gated: what is put
    through SiLU; size: how large the values of a neuron are.
    """

    def of_neurons(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor) -> Tensor:
        g, u = inputs @ gate.T, inputs @ up.T
        hidden = GATED[gated](g, u)
        values = SIZES[size](hidden)
        columns = down.norm(dim=0)
        return {"both": values * columns, "hidden": values, "down": columns}[part]

    return of_neurons


def of_weights(gate: Tensor, up: Tensor, down: Tensor, inputs: Tensor) -> Tensor:
    return gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)


def layers(draw: Draw) -> list[list[Tensor]]:
    """Gate, up, down and inputs of each of `SHAPES`, in float64."""
    drawn = [_telling(draw, *shape) for shape in SHAPES]
    while not _apart(drawn):
        drawn = [_telling(draw, *shape) for shape in SHAPES]
    return drawn


def _layer(draw: Draw, t: int, d: int, f: int, keep: int) -> list[Tensor]:
    """Gate, up, down and inputs, in float64; no two neurons' scores are near each other.

    Of those that stay, the last has a gate near -3, where SiLU lets something through and GELU
    and ReLU next to nothing. The first that goes has one near 0, where Mish is larger than SiLU.
    """
    gate, up = (draw.logits(f, d, scale=0.8, dtype=torch.float64) for _ in range(2))
    up = up * 2.0 ** draw.logits(f, 1, scale=1.0, dtype=torch.float64)
    inputs = draw.logits(t, d, scale=0.8, dtype=torch.float64)
    inputs[0] *= 3.0  # one loud token: a norm is no mean
    inputs[:, 0] = 1.0
    ranks = ranked(draw, 1, f)
    order = ranks[0].argsort(descending=True)
    gate[order[keep - 1 : keep + 1]] *= 0.05
    gate[order[keep - 1], 0], gate[order[keep], 0] = -3.0, 0.0
    down = F.normalize(draw.logits(d, f, dtype=torch.float64), dim=0)
    hidden = F.silu(inputs @ gate.T) * (inputs @ up.T)
    return [gate, up, down * ranks / hidden.norm(dim=0), inputs]


def _telling(draw: Draw, t: int, d: int, f: int, keep: int) -> list[Tensor]:
    """A layer in which every wrong score chooses other neurons than the right one."""
    while True:
        matrices = _layer(draw, t, d, f, keep)
        wrong = {_chosen(by, matrices, keep) for by in (*_named(), *_unnamed())}
        if _chosen(score(), matrices, keep) not in wrong:
            return matrices


def _apart(layers: list[list[Tensor]]) -> bool:
    """Whether no two scores that have a name choose the same neurons in all layers."""
    pairs = list(zip(layers, SHAPES, strict=True))
    chosen = {tuple(_chosen(by, m, shape[-1]) for m, shape in pairs) for by in _named()}
    return len(chosen) == len(_named())


def _named() -> list[Function]:
    scores = [score(gated=gated) for gated in ("none", "up", "sigmoid", "gelu")]
    scores += [score(size=size) for size in ("mean", "sum", "square")]
    return [of_weights, *scores, *(score(part=part) for part in ("hidden", "down"))]


def _unnamed() -> list[Function]:
    return [score(gated=gated) for gated in ("mish", "tanh", "relu")]


def _chosen(by: Function, matrices: list[Tensor], keep: int) -> tuple[int, ...]:
    return tuple(by(*matrices).topk(keep).indices.sort().values.tolist())
