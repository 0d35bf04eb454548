"""Cut a model's width: fewer numbers a token, fewer attention heads, a narrower feed-forward.

What stays are the parts with the largest weights: the sum of squares of all that writes to a number
of the hidden state or reads from it, or of all weights of a head or of a neuron; or those with the
largest scores, where scores are given (`pruning` measures some). Weights that are kept are not
changed. Heads keep their width, because rotary positions are bound to it; grouped
queries stay with their keys and values, so whole groups go.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Scores:
    """How much each part matters: the larger, the later it goes. None: by the size of weights.

    heads: of each layer (H,), a score of each query head; those of a group are added up. neurons:
    of each layer (F,). width (D,): of each number of the hidden state.
    """

    heads: Sequence[Tensor] | None = None
    neurons: Sequence[Tensor] | None = None
    width: Tensor | None = None

    def of_layers(self, layers: Sequence[int]) -> Scores:
        """The scores of a model that has only these layers of the one that was measured."""
        heads, neurons = (
            None if each is None else [each[layer] for layer in layers]
            for each in (self.heads, self.neurons)
        )
        return Scores(heads, neurons, self.width)


def narrowed(
    model: PreTrainedModel,
    *,
    width: int | None = None,
    heads: int | None = None,
    feed_forward: int | None = None,
    scores: Scores | None = None,
) -> tuple[PreTrainedModel, Kept]:
    """A narrower copy of a Llama-style model, and what of it was kept; `None` keeps all.

    Every layer gets the same number of heads and neurons, so that an ordinary configuration
    describes it and any tool loads it.

    Raises UserError when a number is larger than the model's or below 1, when `heads` would break a
    group, when the scores are those of another model or no numbers, or when the model has weights
    of another kind than Llama, Mistral and Qwen have.
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
    layers = range(config.num_hidden_layers)
    by_group = [
        strengths["key", layer].unflatten(0, (-1, head_width)).sum(1)
        + strengths["query", layer].unflatten(0, (-1, group * head_width)).sum(1)
        for layer in layers
    ]
    by_neuron = [strengths["neuron", layer] for layer in layers]
    by_width = strengths["width", None]
    if scores is not None:
        by_group, by_neuron, by_width = _scored(scores, group, by_group, by_neuron, by_width)
    groups = [strongest(each, new_heads // group) for each in by_group]
    kept = Kept(
        strongest(by_width, new_width),
        [[g * group + i for g in layer for i in range(group)] for layer in groups],
        [strongest(each, new_neurons) for each in by_neuron],
    )
    config.hidden_size, config.intermediate_size = new_width, new_neurons
    config.num_attention_heads, config.num_key_value_heads = new_heads, new_heads // group
    config.head_dim = head_width
    indices: dict[Any, list[int]] = {
        ("width", None): kept.width,
        **{("neuron", n): layer for n, layer in enumerate(kept.neurons)},
        **{("query", n): _spread(layer, head_width) for n, layer in enumerate(kept.heads)},
        **{("key", n): _spread(layer, head_width) for n, layer in enumerate(groups)},
    }
    cut = {name: _cut(name, value, indices) for name, value in weights.items()}
    return rebuilt(model, config, cut), kept


def rebuilt(model: PreTrainedModel, config: Any, weights: dict[str, Tensor]) -> PreTrainedModel:
    """A model of the same kind by another configuration, with these weights: same device and dtype.

    All its weights learn. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        built: Any = type(model)(config)
    new: Any = torch.nn.Module.to(built, model.device, model.dtype)
    new.load_state_dict(weights)
    new.generation_config = copy.deepcopy(model.generation_config)
    return new.train(model.training)


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


def _scored(
    scores: Scores,
    group: int,
    by_group: list[Tensor],
    by_neuron: list[Tensor],
    by_width: Tensor,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The scores in the place of the sizes of weights, where there are any."""
    if scores.heads is not None:
        _check_scores("heads", scores.heads, len(by_group), group * len(by_group[0]))
        by_group = [each.unflatten(0, (-1, group)).sum(1) for each in scores.heads]
    if scores.neurons is not None:
        _check_scores("neurons", scores.neurons, len(by_neuron), len(by_neuron[0]))
        by_neuron = list(scores.neurons)
    if scores.width is not None:
        _check_scores("width", [scores.width], 1, len(by_width))
        by_width = scores.width
    return by_group, by_neuron, by_width


def _check_scores(name: str, scores: Sequence[Tensor], layers: int, count: int) -> None:
    shapes = [tuple(each.shape) for each in scores]
    if shapes != [(count,)] * layers:
        raise UserError(
            f"scores.{name} has the shapes {shapes}: the model asks for {layers} times ({count},)"
        )


def strongest(strength: Tensor, count: int) -> list[int]:
    """The places of the largest, ascending; of equal ones the first. UserError where one is NaN."""
    if strength.isnan().any():
        raise UserError("a weight or a score is NaN: what matters least cannot be told")
    order = torch.sort(strength, descending=True, stable=True).indices
    return sorted(order[:count].tolist())


def _spread(heads: list[int], width: int) -> list[int]:
    return [head * width + i for head in heads for i in range(width)]


def _cut(name: str, value: Tensor, indices: dict[Any, list[int]]) -> Tensor:
    for dimension, side in enumerate(_sides(name)):
        if side is not None:
            value = value.index_select(dimension, torch.tensor(indices[side], device=value.device))
    return value.clone()
