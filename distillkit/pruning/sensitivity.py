"""Where a model can be pruned: its loss when one part alone is pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from distillkit.calibration import Encoded, Inputs, linear_inputs
from distillkit.evaluation import nll
from distillkit.pruning.masks import prunable
from distillkit.pruning.methods import Magnitude, Method
from distillkit.pruning.patterns import Pattern

__all__ = ["Sensitivity", "by_kind", "by_layer", "by_linear", "sensitivity"]

Parts = dict[str, list[str]]


@dataclass(frozen=True)
class Sensitivity:
    """The model with one part pruned: NLL in nats per assistant token, and how much more that is.

    weights: how many weights the part has; `cut` of them, as a share, are zero.
    """

    part: str
    pattern: str
    cut: float
    weights: int
    nll: float
    rise: float


def by_linear(model: PreTrainedModel) -> Parts:
    """Each linear layer is a part."""
    return {name: [name] for name in prunable(model)}


def by_kind(model: PreTrainedModel) -> Parts:
    """All linear layers of one kind are a part: q_proj, …, down_proj."""
    return _grouped(model, lambda name: name.rsplit(".", 1)[-1])


def by_layer(model: PreTrainedModel) -> Parts:
    """The linear layers of one layer of the stack are a part: "0", "1", …"""
    return _grouped(model, lambda name: next(each for each in name.split(".") if each.isdigit()))


def sensitivity(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    patterns: Sequence[Pattern],
    *,
    method: Method | None = None,
    calibration: Sequence[Encoded] = (),
    parts: Callable[[PreTrainedModel], Parts] = by_linear,
) -> list[Sensitivity]:
    """Prune one part at a time, each time from the whole model, and measure the NLL.

    The model is left as it was. What the layers read is measured once, on the whole model.

    Args:
        encoded: conversations to be judged on, others than those of `calibration`.
        patterns: how much to prune, for example Unstructured(0.3), Unstructured(0.6).
        method: by default `Magnitude()`, which needs no calibration.
        parts: `by_linear`, `by_kind` or `by_layer`, or a function of your own.

    Returns:
        A row for each part and pattern, in this order.

    Raises:
        UserError: as `prune`, and where `encoded` has nothing to score.
    """
    layers, method = prunable(model), method or Magnitude()
    for pattern in patterns:
        for linear in layers.values():
            pattern.check(linear.in_features)
    whole = nll(model, encoded).per_token
    read: dict[str, Inputs] = {}
    if method.reads_inputs:
        read = linear_inputs(model, calibration, products=method.reads_products)
    rows = []
    for part, names in parts(model).items():
        weights = sum(layers[name].weight.numel() for name in names)
        before = {name: layers[name].weight.detach().clone() for name in names}
        for pattern in patterns:
            try:
                cut = 0
                for name in names:
                    pruned, keep = method(before[name], read.get(name), pattern)
                    layers[name].weight.data.copy_(pruned)
                    cut += int((~keep).sum())
                now = nll(model, encoded).per_token
            finally:
                _restore(model, before)
            rows.append(Sensitivity(part, str(pattern), cut / weights, weights, now, now - whole))
    return rows


def _grouped(model: PreTrainedModel, key: Callable[[str], str]) -> Parts:
    groups: Parts = {}
    for name in prunable(model):
        groups.setdefault(key(name), []).append(name)
    return groups


def _restore(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        model.get_submodule(name).weight.data.copy_(weight)  # type: ignore[operator]
