"""What a machine can do, and what a model's steps take on it: to hold predictions against.

`benchmark` times conversations, as a visitor meets them. This room times the parts: memory, a
product of matrices, reading a prompt, writing one token. Every time is a median with its spread
over repeats, after a warm-up.

On one thread of a CPU the time is the thread's own: while another program has the processor, the
clock stands. On an idle machine that is the time by the wall; on a busy one, what the work took.
With several threads, on a GPU, and on Windows, whose clock of threads is coarse, it is the wall's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from distillkit.arithmetic import Shape, shape_of
from distillkit.benchmark import using_threads
from distillkit.decoding import evaluating, new_cache
from distillkit.errors import UserError
from distillkit.models import build_shape

__all__ = [
    "Spread",
    "cache_bytes",
    "copy_bandwidth",
    "decode_time",
    "matmul_speed",
    "prefill_time",
    "products_time",
    "saved_bytes",
    "spread",
    "thin_twin",
    "train_one_step",
]


@dataclass(frozen=True)
class Spread:
    """The median of repeats, and the quartiles between which half of them lie."""

    median: float
    low: float
    high: float
    repeats: int

    def scaled(self, factor: float) -> Spread:
        """The same in other units."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.repeats)

    def __format__(self, form: str) -> str:
        return f"{self.median:{form}} [{self.low:{form}}, {self.high:{form}}]"


def spread(values: list[float]) -> Spread:
    """Median and quartiles. Raises UserError where there is nothing to take them of."""
    if not values:
        raise UserError("found no values: expected at least one")
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Spread(float(median), float(low), float(high), len(values))


# The machine ---------------------------------------------------------------------------------


def copy_bandwidth(
    numbers: int = 64_000_000, *, repeats: int = 9, device: str = "cpu", threads: int = 1
) -> Spread:
    """Bytes a second between memory and processor, by copying an array of float32.

    A copy reads every number and writes every number; both are counted, as in McCalpin's STREAM
    (1995). The array must be much larger than the processor's caches, or it is they that are
    measured.
    """
    source = torch.ones(_at_least("numbers", numbers, 1), device=device)
    target = torch.empty_like(source)
    seconds = _times(lambda: target.copy_(source), repeats, device, threads)
    return spread([2 * 4 * numbers / each for each in seconds])


def matmul_speed(
    size: int = 1024,
    *,
    repeats: int = 9,
    device: str = "cpu",
    threads: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Spread:
    """Operations a second in a product of two square matrices: 2·size³ of them."""
    matrix = torch.ones(_at_least("size", size, 1), size, device=device, dtype=dtype)
    seconds = _times(lambda: matrix @ matrix, repeats, device, threads)
    return spread([2 * size**3 / each for each in seconds])


# A model's steps -----------------------------------------------------------------------------


def prefill_time(
    model: PreTrainedModel, tokens: int, *, batch: int = 1, repeats: int = 3, threads: int = 1
) -> Spread:
    """Seconds to read `tokens` tokens at once and predict the next one."""
    ids = _random_ids(model, batch, _at_least("tokens", tokens, 1))
    with _ready(model):
        return spread(
            _times(lambda: _step(model, ids, new_cache(model)), repeats, ids.device.type, threads)
        )


def decode_time(
    model: PreTrainedModel, context: int, *, batch: int = 1, steps: int = 16, threads: int = 1
) -> Spread:
    """Seconds to write one token in each of `batch` conversations that have read `context`.

    The context grows by a token a step, as it does when a model speaks.
    """
    ids = _random_ids(model, batch, _at_least("context", context, 1))
    with _ready(model):
        cache = new_cache(model)
        _step(model, ids, cache)
        seconds = _times(lambda: _step(model, ids[:, :1], cache), steps, ids.device.type, threads)
    return spread(seconds)


def products_time(
    model: PreTrainedModel, *, batch: int = 1, repeats: int = 9, threads: int = 1
) -> Spread:
    """Seconds of a step's products with weights alone: every matrix of the model, once, in order.

    What is left of a step's time is attention, norms, and the work of the framework between them.
    """
    matrices = [part.weight for part in model.modules() if isinstance(part, torch.nn.Linear)]
    inputs = [matrix.new_ones(_at_least("batch", batch, 1), matrix.shape[1]) for matrix in matrices]

    def work() -> None:
        for entry, matrix in zip(inputs, matrices, strict=True):
            torch.nn.functional.linear(entry, matrix)

    with _ready(model):
        return spread(_times(work, repeats, model.device.type, threads))


def thin_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model with as many layers and heads as this one and next to no weights, on its device.

    What a step of the twin takes is what a step costs before there is anything to read.
    """
    shape = shape_of(model.config)
    thin = replace(shape, vocabulary=64, width=2 * shape.heads, head_width=2, feed_forward=32)
    twin: Any = build_shape(thin)
    return twin.to(model.device, model.dtype)


def cache_bytes(model: PreTrainedModel, tokens: int, *, batch: int = 1) -> int:
    """Bytes that the cache of a model really has after reading `tokens` tokens."""
    cache = DynamicCache()
    with _ready(model):
        _step(model, _random_ids(model, batch, _at_least("tokens", tokens, 1)), cache)
    layers: Any = cache.layers
    held = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def saved_bytes(model: PreTrainedModel, tokens: int, *, batch: int = 1) -> int:
    """Bytes of activations that a forward pass keeps for the backward pass, weights left out.

    Counted by the hooks through which autograd saves its tensors, each storage once.
    """
    ids = _random_ids(model, batch, _at_least("tokens", tokens, 2))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage
        return tensor

    with evaluating(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, labels=ids, use_cache=False)
    return sum(storage.nbytes() for storage in held.values())


def train_one_step(shape: Shape, tokens: int) -> None:
    """Build a model of this shape and train it for one step of Adam, for `peak_memory` to watch."""
    model = build_shape(shape)
    ids = _random_ids(model, 1, _at_least("tokens", tokens, 2))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()


# How ------------------------------------------------------------------------------------------


def _step(model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    logits: torch.Tensor = model(
        ids, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits
    return logits[:, -1].argmax(-1)


@contextmanager
def _ready(model: PreTrainedModel) -> Iterator[None]:
    with evaluating(model), torch.inference_mode():
        yield


def _random_ids(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    """What they say does not matter: every token costs the same."""
    shape = _at_least("batch", batch, 1), tokens
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    return ids.to(model.device)


def _times(work: Callable[[], object], repeats: int, device: str, threads: int) -> list[float]:
    """Seconds of each repeat, after one that is not counted."""
    own = device == "cpu" and threads == 1 and sys.platform != "win32"
    clock, seconds = time.thread_time if own else time.perf_counter, []
    with using_threads(_at_least("threads", threads, 1)):
        for _ in range(_at_least("repeats", repeats, 1) + 1):
            begin = clock()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(clock() - begin)
    return seconds[1:]


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise UserError(f"{name} is {value}: expected at least {least}")
    return value
