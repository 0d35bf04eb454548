"""A Llama-style decoder as plain arrays: what every export format is written from.

One room decides what is covered. An architecture that an export does not carry is refused in a
sentence, before anything is written: a file that loads and computes something else is the worst
outcome of an export.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from distillkit.errors import UserError

__all__ = ["Decoder", "Layer", "Linear", "decoder_of"]

KINDS = ("llama", "mistral", "qwen2", "qwen3")
_STEADY_ROPE = ("default", "linear", "llama3")  # frequencies that do not depend on the length


@dataclass(frozen=True)
class Linear:
    """y = x·weightᵀ + bias, weight (out, in)."""

    weight: np.ndarray
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class Layer:
    """One block: norm, attention, norm, feed-forward (SwiGLU). Qwen3 norms queries and keys too."""

    attention_norm: np.ndarray
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    feed_forward_norm: np.ndarray
    gate: Linear
    up: Linear
    down: Linear
    query_norm: np.ndarray | None = None
    key_norm: np.ndarray | None = None


@dataclass(frozen=True)
class Decoder:
    """All weights in float32, and the few numbers that say how they are used.

    table (V, D); head (V, D), or None where the table is the head. frequencies (d/2,): radians a
    position, of each pair of a head of width d.
    """

    kind: str
    table: np.ndarray
    layers: tuple[Layer, ...]
    norm: np.ndarray
    head: np.ndarray | None
    heads: int
    kv_heads: int
    head_width: int
    epsilon: float
    frequencies: np.ndarray
    rope_scale: float
    rope_type: str
    rope_theta: float
    positions: int


def decoder_of(model: Any) -> Decoder:
    """Read a model of transformers: Llama, Mistral, Qwen2 or Qwen3, with a head for every token.

    Raises UserError for other architectures, for a sliding window shorter than the model's
    positions, for rope scaling that depends on the length, and where a linear layer is no
    `nn.Linear` any more: such a layer was quantized or adapted, and its weight alone is not it.
    """
    _check_covered(model)
    body, config = model.model, model.config
    table, head = body.embed_tokens.weight, model.lm_head.weight
    tied = table is head or table.data_ptr() == head.data_ptr()
    rope = body.rotary_emb
    settings = config.rope_parameters or {}
    return Decoder(
        kind=config.model_type,
        table=_array(table),
        layers=tuple(_layer(layer) for layer in body.layers),
        norm=_array(body.norm.weight),
        head=None if tied else _array(head),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=_head_width(config),
        epsilon=float(config.rms_norm_eps),
        frequencies=_array(rope.inv_freq),
        rope_scale=float(rope.attention_scaling),
        rope_type=settings.get("rope_type", "default"),
        rope_theta=float(settings.get("rope_theta", 10_000.0)),
        positions=config.max_position_embeddings,
    )


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _check_covered(model: Any) -> None:
    name, config = type(model).__name__, getattr(model, "config", None)
    kind = getattr(config, "model_type", name)
    if kind not in KINDS or not name.endswith("ForCausalLM"):
        raise UserError(
            f"{name} is not covered: an export carries decoders of the kinds {', '.join(KINDS)} "
            "with a language model's head"
        )
    for problem in _problems(model, config):
        raise UserError(f"{name} cannot be exported: {problem}")


def _problems(model: Any, config: Any) -> Iterator[str]:
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        yield (
            f"it attends within a sliding window of {window:,} tokens, which an export does not "
            "carry; set max_position_embeddings to that window, or take another model"
        )
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in _STEADY_ROPE:
        yield (
            f"its rope scaling is {rope!r}, which changes with the length; expected one of "
            f"{', '.join(_STEADY_ROPE)}"
        )
    width = 2 * len(model.model.rotary_emb.inv_freq)
    if width != _head_width(config):
        yield f"it rotates {width} of the {_head_width(config)} numbers of a head; expected all"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act}; expected silu"
    for path, part in model.model.layers.named_modules():
        if path.endswith("_proj") and type(part) is not nn.Linear:
            yield (
                f"layer {path} is a {type(part).__name__}, expected an nn.Linear: export before "
                "quantizing or adapting, or merge first"
            )


def _layer(layer: Any) -> Layer:
    attention, feed_forward = layer.self_attn, layer.mlp
    return Layer(
        attention_norm=_array(layer.input_layernorm.weight),
        query=_linear(attention.q_proj),
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        output=_linear(attention.o_proj),
        feed_forward_norm=_array(layer.post_attention_layernorm.weight),
        gate=_linear(feed_forward.gate_proj),
        up=_linear(feed_forward.up_proj),
        down=_linear(feed_forward.down_proj),
        query_norm=_array(attention.q_norm.weight) if hasattr(attention, "q_norm") else None,
        key_norm=_array(attention.k_norm.weight) if hasattr(attention, "k_norm") else None,
    )


def _linear(part: nn.Linear) -> Linear:
    return Linear(_array(part.weight), None if part.bias is None else _array(part.bias))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
