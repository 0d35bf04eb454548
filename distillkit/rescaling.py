"""Move scale from weights to what they read, or back: the model's function stays the same.

A linear layer that reads s·x with W/s gives what one that reads x with W gives. Real LLMs have a
few features that are far larger than the others, and small models have none: `with_outliers` puts
them in without changing a single answer. SmoothQuant and AWQ go the other way (`bonds`, `rescale`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillkit.errors import UserError
from distillkit.models import layer_stack
from distillkit.narrowing import check_llama_style

__all__ = ["Bond", "bonds", "rescale", "with_outliers"]

WRITERS = ("input_layernorm", "v_proj", "post_attention_layernorm", "up_proj")


@dataclass(frozen=True)
class Bond:
    """A module whose output, feature by feature, is all that some linear layers read.

    writer: its weight (F,) or (F, D) has a row for each of its F features; a bias (F,) likewise.
    readers: their weights have F columns, or `copies` · F: queries that share a head of `width`
    values read the same features, each in columns of its own.
    """

    kind: str  # one of WRITERS
    layer: int
    writer: nn.Module
    readers: tuple[nn.Linear, ...]
    width: int = 1
    copies: int = 1

    @property
    def features(self) -> int:
        return len(self.writer.weight)  # type: ignore[arg-type]

    def columns(self, per_feature_F: Tensor) -> Tensor:
        """A number of each feature (F,) as one of each of the readers' columns (copies · F,)."""
        heads = per_feature_F.unflatten(0, (-1, self.width))
        return heads.repeat_interleave(self.copies, dim=0).flatten()


def bonds(model: PreTrainedModel) -> list[Bond]:
    """The four bonds of each layer of a Llama-style model, from the first layer to the last.

    The attention's norm → queries, keys and values; values → output projection (attention mixes
    positions, not features); the feed-forward's norm → gate and up; up → down (the gate multiplies
    each feature). The last norm is left out: its reader, the head, is often the embeddings as well.

    Raises UserError when the model is of another kind, or has norms that do not multiply by their
    weight (Gemma's multiply by 1 + weight).
    """
    check_llama_style(model)
    found = []
    stack: Any = layer_stack(model)[1]
    for index, layer in enumerate(stack):
        attention, mlp = layer.self_attn, layer.mlp
        queries, values = attention.o_proj.weight.shape[1], attention.v_proj.weight.shape[0]
        table = (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj), 1, 1),
            (attention.v_proj, (attention.o_proj,), attention.head_dim, queries // values),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), 1, 1),
            (mlp.up_proj, (mlp.down_proj,), 1, 1),
        )
        for kind, row in zip(WRITERS, table, strict=True):
            found.append(Bond(kind, index, *row))
    for bond in found:
        _check_norm(bond.writer)
    return found


@torch.no_grad()
def rescale(bond: Bond, scale_F: Tensor) -> None:
    """Multiply each feature of a bond by its scale, and divide the weights that read it by it.

    In place. With powers of two not a bit of the model's output changes. Raises UserError where a
    scale is not a positive number, or their number is not that of the features.
    """
    if scale_F.shape != (bond.features,) or not (scale_F.isfinite() & (scale_F > 0)).all():
        raise UserError(
            f"found scales of shape {tuple(scale_F.shape)} from {scale_F.min()} to "
            f"{scale_F.max()}: expected {bond.features} positive numbers, one a feature"
        )
    for name, parameter in bond.writer.named_parameters(recurse=False):
        assert name in ("weight", "bias")
        scale = scale_F.to(parameter)
        parameter.mul_(scale if parameter.dim() == 1 else scale[:, None])
    for reader in bond.readers:
        reader.weight.div_(bond.columns(scale_F).to(reader.weight))


def with_outliers(
    model: PreTrainedModel,
    *,
    scale: float = 32.0,
    features: int = 3,
    kinds: Sequence[str] = WRITERS,
    seed: int = 0,
) -> PreTrainedModel:
    """A copy that answers the same, and in which some features are `scale` times as large.

    The linear layers read `scale`·x there, with weights divided by `scale`. `seed` draws the
    features: for the norms the same ones in every layer, as in real LLMs, whose outliers stay in
    the same few dimensions (Dettmers et al. 2022, "LLM.int8()", section 4); elsewhere new ones in
    each layer. A power of two changes not a bit of the logits.

    Args:
        features: how many at each writer.
        kinds: at which writers (see `bonds`).

    Raises:
        UserError: as `bonds`; or a scale, a number of features or a kind that there is not.
    """
    if unknown := set(kinds) - set(WRITERS):
        raise UserError(f"no writer is named {sorted(unknown)[0]!r}: choose of {WRITERS}")
    changed = copy.deepcopy(model)
    chance = torch.Generator().manual_seed(seed)
    in_all_layers = torch.randperm(model.config.hidden_size, generator=chance)
    for bond in bonds(changed):
        if bond.kind not in kinds:
            continue
        if not 0 <= features <= bond.features:
            raise UserError(f"features is {features}: {bond.kind} has {bond.features}")
        order = torch.randperm(bond.features, generator=chance)
        chosen = in_all_layers if "norm" in bond.kind else order
        scales = torch.ones(bond.features)
        scales[chosen[:features]] = scale
        rescale(bond, scales)
    return changed


def _check_norm(writer: nn.Module) -> None:
    """Refuse a norm that is not x/‖x‖ times its weight: it could not be rescaled by it."""
    if isinstance(writer, nn.Linear):
        return
    weight: Tensor = writer.weight  # type: ignore[assignment]
    ones = torch.ones_like(weight)
    with torch.no_grad():
        if not torch.allclose(writer(ones), weight, rtol=1e-2):
            raise UserError(
                f"{type(writer).__name__} does not multiply by its weight: expected the norms of "
                "Llama, Mistral or Qwen"
            )
