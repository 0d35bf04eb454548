"""Prune a model's linear layers in place, and keep the zeros when it learns again.

The embeddings and the head are left whole: in small models they are one and the same matrix, whose
every row is a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from distillkit.calibration import Encoded, Inputs, layer_by_layer, linears
from distillkit.errors import UserError
from distillkit.models import layer_stack
from distillkit.narrowing import check_llama_style
from distillkit.pruning.methods import Method
from distillkit.pruning.patterns import Pattern, Unstructured

__all__ = ["KeepZeros", "Masks", "prunable", "prune", "prune_globally", "zeros_of"]


@dataclass(frozen=True)
class Masks:
    """Which weights of which linear layers are kept: by name, True (R, C) where a weight stays."""

    keep: dict[str, Tensor]

    @property
    def sparsity(self) -> float:
        """The share of all these weights that is cut."""
        weights = sum(mask.numel() for mask in self.keep.values())
        return sum(int((~mask).sum()) for mask in self.keep.values()) / weights

    @property
    def by_layer(self) -> dict[str, float]:
        """The share that is cut, of each linear layer."""
        return {name: float((~mask).double().mean()) for name, mask in self.keep.items()}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set to zero, in place, what is cut. In a loop of your own: after each optimizer step."""
        for name, mask in self.keep.items():
            weight: Any = model.get_submodule(name).weight
            weight.masked_fill_(~mask.to(weight.device), 0.0)


def prunable(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of the layer stack, by name: what can be pruned without structure.

    Raises UserError when the model is of another kind than Llama, Mistral and Qwen, or when one of
    these weights is NaN or infinite.
    """
    check_llama_style(model)
    prefix, stack = layer_stack(model)
    found = {f"{prefix}.{name}": linear for name, linear in linears(stack).items()}
    for name, linear in found.items():
        if not linear.weight.isfinite().all():
            raise UserError(f"{name} holds NaN or infinity: load or train the model again")
    return found


def prune(
    model: PreTrainedModel,
    method: Method,
    pattern: Pattern,
    encoded: Sequence[Encoded] = (),
    *,
    batch_tokens: int = 4096,
) -> Masks:
    """Prune every linear layer of the layer stack in place, and say what was cut.

    Args:
        method: `Magnitude()`, `Wanda()`, `SparseGPT()`, or one of your own.
        pattern: `Unstructured(0.5)`, `NofM(2, 4)`.
        encoded: conversations to calibrate on, as `chat.encode_rows` gives them. Each layer reads
            what the pruned layers below it give.
        batch_tokens: as for `layer_by_layer`.

    Raises:
        UserError: as `prunable`; the pattern does not fit a layer; or the method measures inputs
            and there is no conversation. Nothing has been changed then.
    """
    layers = prunable(model)
    for linear in layers.values():
        pattern.check(linear.in_features)
    keep: dict[str, Tensor] = {}

    def cut(name: str, linear: nn.Linear, inputs: Inputs | None) -> None:
        weight, keep[name] = method(linear.weight.detach(), inputs, pattern)
        linear.weight.data.copy_(weight)

    if method.reads_inputs:
        products = method.reads_products
        layer_by_layer(model, encoded, cut, products=products, batch_tokens=batch_tokens)
    else:
        for name, linear in layers.items():
            cut(name, linear, None)
    return Masks(keep)


def prune_globally(model: PreTrainedModel, sparsity: float) -> Masks:
    """Zero the smallest |W| of all linear layers together, in place: one threshold for the model.

    Layers with small weights lose more than others. Raises UserError as `prune` does.
    """
    layers = prunable(model)
    sizes = torch.cat([linear.weight.detach().abs().flatten().cpu() for linear in layers.values()])
    flat = Unstructured(sparsity).keep(sizes[None])[0]
    parts = flat.split([linear.weight.numel() for linear in layers.values()])
    masks = Masks(
        {
            name: part.view_as(linear.weight)
            for (name, linear), part in zip(layers.items(), parts, strict=True)
        }
    )
    masks.apply(model)
    return masks


def zeros_of(model: PreTrainedModel) -> Masks:
    """The masks that a model's own zeros make: those of a model that was pruned before."""
    return Masks({name: linear.weight.detach() != 0 for name, linear in prunable(model).items()})


class KeepZeros(TrainerCallback):
    """Sets what was pruned back to zero after each optimizer step, in any trainer of transformers.

    Without it the first step fills the zeros: their gradients are no zeros.

    Args:
        masks: what `prune` returned. By default the zeros that the model has when training begins;
            when training is resumed, these are the checkpoint's.
    """

    def __init__(self, masks: Masks | None = None) -> None:
        self.masks = masks

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Take the masks of the model, if there are none, and apply them."""
        if self.masks is None:
            self.masks = zeros_of(named["model"])
        self.masks.apply(named["model"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Apply the masks: the optimizer has written into the weights."""
        assert self.masks is not None
        self.masks.apply(named["model"])
