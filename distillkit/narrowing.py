"""Cut a model's width: fewer numbers a token, fewer attention heads, a narrower feed-forward.

What stays are the parts with the largest weights: the sum of squares of all that writes to a number
of the hidden state or reads from it, or of all weights of a head or of a neuron. Weights that are
kept are not changed. Heads keep their width, because rotary positions are bound to it; grouped
queries stay with their keys and values, so whole groups go.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillkit.errors import UserError

# What the rows and the columns of a weight belong to; None: they are kept whole.
_SIDES: dict[str, tuple[str | None, ...]] = {
    "embed_tokens": (None, "width"),
    "lm_head": (None, "width"),
    "q_proj": ("query", "width"),
    "k_proj": ("key", "width"),
    "v_proj": ("key", "width"),
    "o_proj": ("width", "query"),
    "gate_proj": ("neuron", "width"),
    "up_proj": ("neuron", "width"),
    "down_proj": ("width", "neuron"),
    "input_layernorm": ("width",),
    "post_attention_layernorm": ("width",),
    "norm": ("width",),
    "q_norm": (None,),
    "k_norm": (None,),
}


@dataclass(frozen=True)
class Kept:
    """Which of the teacher's numbers, heads and neurons a student has, in ascending order."""

    width: list[int]
    heads: list[list[int]]  # of each layer: query heads
    neurons: list[list[int]]  # of each layer


def narrowed(
    model: PreTrainedModel,
    *,
    width: int | None = None,
    heads: int | None = None,
    feed_forward: int | None = None,
) -> tuple[PreTrainedModel, Kept]:
    """A narrower copy of a Llama-style model, and what of it was kept; `None` keeps all.

    Raises UserError when a number is larger than the model's or below 1, when `heads` would break a
    group, or when the model has weights of another kind than Llama, Mistral and Qwen have.
    """
    config = copy.deepcopy(model.config)
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    check_llama_style(model)  # before its configuration is read
    group = config.num_attention_heads // config.num_key_value_heads
    head_width = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    new_width = _checked("width", width, config.hidden_size)
    new_heads = _checked("heads", heads, config.num_attention_heads)
    new_neurons = _checked("feed_forward", feed_forward, config.intermediate_size)
    if new_heads % group:
        raise UserError(f"heads is {new_heads}: {group} queries share a key, give a multiple")
    strengths = _strengths(weights)
    groups = [
        _strongest(
            strengths["key", layer].unflatten(0, (-1, head_width)).sum(1)
            + strengths["query", layer].unflatten(0, (-1, group * head_width)).sum(1),
            new_heads // group,
        )
        for layer in range(config.num_hidden_layers)
    ]
    kept = Kept(
        _strongest(strengths["width", None], new_width),
        [[g * group + i for g in layer for i in range(group)] for layer in groups],
        [
            _strongest(strengths["neuron", layer], new_neurons)
            for layer in range(config.num_hidden_layers)
        ],
    )
    config.hidden_size, config.intermediate_size = new_width, new_neurons
    config.num_attention_heads, config.num_key_value_heads = new_heads, new_heads // group
    config.head_dim = head_width
    with torch.random.fork_rng(devices=[]):
        built: Any = type(model)(config)
    student: Any = torch.nn.Module.to(built, model.device, model.dtype)
    indices: dict[Any, list[int]] = {
        ("width", None): kept.width,
        **{("neuron", n): layer for n, layer in enumerate(kept.neurons)},
        **{("query", n): _spread(layer, head_width) for n, layer in enumerate(kept.heads)},
        **{("key", n): _spread(layer, head_width) for n, layer in enumerate(groups)},
    }
    student.load_state_dict({name: _cut(name, value, indices) for name, value in weights.items()})
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.train(model.training), kept


def check_llama_style(model: PreTrainedModel) -> None:
    """Raise UserError when a model has weights of another kind than Llama, Mistral and Qwen have.

    Experts, convolutions (GPT-2) and encoders are of another kind.
    """
    for name in model.state_dict():
        try:
            _sides(name)
        except UserError as error:
            raise UserError(f"{type(model).__name__}: {error}") from error


def _checked(name: str, wanted: int | None, has: int) -> int:
    if wanted is not None and not 1 <= wanted <= has:
        raise UserError(f"{name} is {wanted}: expected 1 to the {has} that the model has")
    return has if wanted is None else wanted


def _sides(name: str) -> list[tuple[str, int | None] | None]:
    """For each dimension of a weight what it belongs to: (kind, layer)."""
    parts = name.split(".")
    module = parts[-2]
    if module not in _SIDES:
        raise UserError(f"cannot cut {name}: expected the weights of a Llama-style model")
    layer = next((int(part) for part in parts if part.isdigit()), None)
    sides = _SIDES[module][:1] if parts[-1] == "bias" else _SIDES[module]
    return [side and (side, None if side == "width" else layer) for side in sides]  # type: ignore[misc]


def _strengths(weights: dict[str, Tensor]) -> dict[tuple[str, int | None], Tensor]:
    """The sum of squares of what belongs to each index."""
    found: dict[tuple[str, int | None], Tensor] = {}
    for name, value in weights.items():
        for dimension, side in enumerate(_sides(name)):
            if side is None or value.dim() < 2:
                continue
            rest = [other for other in range(value.dim()) if other != dimension]
            squares = value.double().square().sum(dim=rest)
            found[side] = found.get(side, torch.zeros_like(squares)) + squares
    return found


def _strongest(strength: Tensor, count: int) -> list[int]:
    """The places of the largest, ascending; of equal ones the first."""
    order = torch.sort(strength, descending=True, stable=True).indices
    return sorted(order[:count].tolist())


def _spread(heads: list[int], width: int) -> list[int]:
    return [head * width + i for head in heads for i in range(width)]


def _cut(name: str, value: Tensor, indices: dict[Any, list[int]]) -> Tensor:
    for dimension, side in enumerate(_sides(name)):
        if side is not None:
            value = value.index_select(dimension, torch.tensor(indices[side], device=value.device))
    return value.clone()
