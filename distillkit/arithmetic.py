"""What a language model needs, computed from its shape: parameters, bytes, operations, time, money.

Nothing here is measured and nothing is loaded: it is the arithmetic that chapter 01 holds against
the truth (`models.build_shape` builds the same shapes, `timing` measures). Bytes are bytes, a GB is
10⁹ of them, times are seconds, and an operation is one multiplication or one addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distillkit.errors import UserError

__all__ = [
    "DEVICES",
    "GPT3_PARAMETERS",
    "READING_WPM",
    "SHAPES",
    "SPEAKING_WPM",
    "Device",
    "Shape",
    "active_parameters",
    "cost_per_million_tokens",
    "decode_bytes",
    "kv_cache_bytes",
    "logit_bytes",
    "operations",
    "pace",
    "parameters",
    "parameters_by_part",
    "shape_of",
    "step_seconds",
    "training_bytes",
    "weight_bytes",
]


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama-style decoder, as its config.json states it.

    `heads` ask and `kv_heads` are asked: in grouped-query attention several heads share the keys
    and values of one (Ainslie et al. 2023). `tied`: the output head is the embedding table.
    `qkv_bias`: queries, keys and values have a bias, as in Qwen2.5. Raises UserError for a shape
    that cannot be built.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    tied: bool = False
    qkv_bias: bool = False
    head_width: int = 0  # 0: width / heads

    def __post_init__(self) -> None:
        sizes = ("vocabulary", "width", "layers", "heads", "kv_heads", "feed_forward")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: expected at least 1")
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} heads cannot share {self.kv_heads} key-value heads evenly: "
                "expected a divisor"
            )
        if not self.head_width:
            if self.width % self.heads:
                raise UserError(
                    f"width {self.width} does not split into {self.heads} heads: "
                    "pass head_width as well"
                )
            object.__setattr__(self, "head_width", self.width // self.heads)


# From the config.json of each model on the hub; tests compare the counts with the published ones.
SHAPES = {
    "SmolLM2-135M": Shape(49_152, 576, 30, 9, 3, 1536, tied=True),
    "SmolLM2-360M": Shape(49_152, 960, 32, 15, 5, 2560, tied=True),
    "Qwen2.5-0.5B": Shape(151_936, 896, 24, 14, 2, 4864, tied=True, qkv_bias=True),
    "Qwen2.5-7B": Shape(152_064, 3584, 28, 28, 4, 18_944, qkv_bias=True),
    "Llama-3.1-8B": Shape(128_256, 4096, 32, 32, 8, 14_336),
    "Llama-3.1-70B": Shape(128_256, 8192, 80, 64, 8, 28_672),
}

GPT3_PARAMETERS = 175e9  # Brown et al. 2020, table 2.1, whose weights were never published


@dataclass(frozen=True)
class Device:
    """Memory that a program can hope for at most, in bytes, and its bandwidth in bytes a second."""

    memory: float
    bandwidth: float | None  # None: too different from one to the next to state


# Raspberry Pi 5: 32 bits of LPDDR4X at 4267 MT/s (product brief); T4: data sheet, and the 15,360
# MiB that nvidia-smi reports on Colab. A phone's and a laptop's memory are round common sizes.
DEVICES = {
    "phone, 8 GB": Device(8e9, None),
    "Raspberry Pi 5, 8 GB": Device(8e9, 32 / 8 * 4267e6),
    "laptop, 16 GB": Device(16e9, None),
    "T4 (Colab)": Device(15_360 * 2**20, 320e9),
}


def shape_of(config: Any) -> Shape:
    """The shape that a Llama or Qwen2 configuration of transformers describes.

    Raises UserError for other architectures, whose parts are others.
    """
    if config.model_type not in ("llama", "qwen2"):
        raise UserError(
            f"found a {config.model_type} model: expected one of Llama's or Qwen2's kind"
        )
    return Shape(
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        feed_forward=config.intermediate_size,
        tied=config.tie_word_embeddings,
        qkv_bias=config.model_type == "qwen2",
        head_width=getattr(config, "head_dim", None) or 0,
    )


# Memory --------------------------------------------------------------------------------------


def parameters_by_part(shape: Shape) -> dict[str, int]:
    """How many parameters each part has: the table of embeddings, attention, feed-forward, …

    Every layer has four matrices of attention (queries, keys, values, output) and three of its
    gated feed-forward part (Touvron et al. 2023, section 2.2), and two norms of one vector each;
    one norm more stands before the head.

    >>> parameters_by_part(SHAPES["SmolLM2-135M"])["embeddings"]
    28311552
    """
    asked, shared = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    attention = 2 * shape.width * asked + 2 * shape.width * shared
    attention += shape.qkv_bias * (asked + 2 * shared)
    table = shape.vocabulary * shape.width
    return {
        "embeddings": table,
        "attention": shape.layers * attention,
        "feed-forward": shape.layers * 3 * shape.width * shape.feed_forward,
        "norms": (2 * shape.layers + 1) * shape.width,
        "head": 0 if shape.tied else table,
    }


def parameters(shape: Shape) -> int:
    """How many numbers training has to find, a shared table counted once.

    >>> parameters(SHAPES["SmolLM2-135M"])
    134515008
    """
    return sum(parameters_by_part(shape).values())


def active_parameters(shape: Shape) -> int:
    """Parameters that every token reads: all but the embeddings, of which it reads one row.

    Where the table is the output head as well, it is read whole after all.

    >>> active_parameters(SHAPES["SmolLM2-135M"]) == parameters(SHAPES["SmolLM2-135M"])
    True
    """
    table = 0 if shape.tied else shape.vocabulary * shape.width
    return parameters(shape) - table


def weight_bytes(count: float, bits: float = 16) -> float:
    """Bytes of so many parameters. bits: 32, 16, 8, or 4.5 for four bits with their scales.

    >>> weight_bytes(7e9, bits=16) / 1e9
    14.0
    """
    return _positive("count", count) * _positive("bits", bits) / 8


def kv_cache_bytes(shape: Shape, tokens: int, *, batch: int = 1, bits: float = 16) -> float:
    """Bytes of the keys and values of `batch` conversations of `tokens` tokens each.

    2 (a key and a value) · layers · kv_heads · head_width numbers a token. Without grouped-query
    attention kv_heads would be heads. Source: Pope et al. 2022, section 3.3; Ainslie et al. 2023.

    >>> kv_cache_bytes(SHAPES["Llama-3.1-8B"], 1)
    131072.0
    """
    numbers = 2 * shape.layers * shape.kv_heads * shape.head_width
    return numbers * _positive("tokens", tokens) * _positive("batch", batch) * bits / 8


def logit_bytes(shape: Shape, tokens: int, *, bits: float = 32) -> float:
    """Bytes of the logits of so many tokens: one number for every word that could come next.

    >>> logit_bytes(SHAPES["Llama-3.1-8B"], 2048) / 1e9
    1.050673152
    """
    return float(shape.vocabulary * _positive("tokens", tokens) * bits / 8)


def training_bytes(count: float) -> dict[str, float]:
    """Bytes that training so many parameters with Adam holds in float32, without activations.

    Weight, gradient and two moments, four bytes each. Mixed precision needs as much: it keeps
    weights and gradients in 16 bits and adds a copy of the weights in 32. Source: Rajbhandari et
    al. 2020 (ZeRO), section 3.1.

    >>> sum(training_bytes(1).values())
    16.0
    """
    each = weight_bytes(count, bits=32)
    return {"weights": each, "gradient": each, "moments": 2 * each}


# Time ----------------------------------------------------------------------------------------


def decode_bytes(
    shape: Shape, context: int = 1, *, batch: int = 1, bits: float = 16, cache_bits: float = 16
) -> float:
    """Bytes read to write one token in each of `batch` conversations of `context` tokens.

    The weights once for all of them, and each one's own cache.

    >>> decode_bytes(SHAPES["Llama-3.1-8B"], 2048) / 1e9
    15.2782848
    """
    cache = kv_cache_bytes(shape, context, batch=batch, bits=cache_bits)
    return weight_bytes(active_parameters(shape), bits) + cache


def operations(
    shape: Shape, tokens: int, context: float = 1, *, predicted: int | None = None
) -> float:
    """Multiplications and additions to process `tokens` tokens that look back on `context` each.

    Two for every parameter of a matrix (Kaplan et al. 2020, section 2.1), and in attention four for
    every number of the queries and every token looked at. predicted: for how many tokens the head
    is computed; all of them, unless said otherwise (reading a prompt needs the last one alone).

    >>> operations(SHAPES["SmolLM2-135M"], 1) / parameters(SHAPES["SmolLM2-135M"])  # about 2
    1.9999...
    """
    parts = parameters_by_part(shape)
    head = 2 * shape.vocabulary * shape.width
    attention = 4 * shape.layers * shape.heads * shape.head_width * _positive("context", context)
    body = 2 * (parts["attention"] + parts["feed-forward"]) + attention
    count = _positive("tokens", tokens)
    return float(count * body + (count if predicted is None else predicted) * head)


def step_seconds(
    read: float, operated: float, *, bandwidth: float, speed: float, overhead: float = 0.0
) -> float:
    """Least seconds of a step: the longer of reading and computing, and what is spent besides.

    read: bytes; operated: operations; bandwidth: bytes a second; speed: operations a second;
    overhead: seconds. Source: Williams et al. 2009, the roofline model.

    >>> step_seconds(16e9, 16e9, bandwidth=320e9, speed=8e12)  # 8 B weights in 16 bits, a T4
    0.05
    """
    reading = read / _positive("bandwidth", bandwidth)
    return max(reading, operated / _positive("speed", speed)) + overhead


READING_WPM = 238  # silent reading of English non-fiction, mean of 190 studies: Brysbaert 2019
SPEAKING_WPM = 183  # reading aloud, mean of 77 studies: the same


def pace(words_per_minute: float, tokens_per_word: float) -> float:
    """Seconds that a token may take so that text comes as fast as somebody reads or speaks it.

    >>> pace(240, 1.25)
    0.2
    """
    per_minute = _positive("words_per_minute", words_per_minute)
    return 60 / (per_minute * _positive("tokens_per_word", tokens_per_word))


def cost_per_million_tokens(price_per_hour: float, tokens_per_second: float) -> float:
    """What a million tokens cost on a machine that is always busy, in the currency of the price.

    >>> round(cost_per_million_tokens(0.36, 100), 6)
    1.0
    """
    seconds = 1e6 / _positive("tokens_per_second", tokens_per_second)
    return _positive("price_per_hour", price_per_hour) / 3600 * seconds


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise UserError(f"{name} is {value}: expected a number above 0")
    return value
