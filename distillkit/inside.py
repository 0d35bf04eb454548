"""See inside a model while it runs: its hidden states, and what enters its attention.

Hidden states are read by hooks on the layers, so the model's pass is the one that is made anyway
and its output head does no more work. Queries, keys and values are read where transformers hands
them to the attention function: they come as attention uses them (positions rotated in), from every
model that has such a function, and the fast implementation of attention stays in use. The attention
maps that transformers can return would need the slow one.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distillkit.errors import UserError
from distillkit.features import After, Heads, Inside
from distillkit.models import layer_stack


@contextmanager
def looking_inside(
    model: Any, places: Collection[After] = (), layers: Collection[int] = ()
) -> Iterator[Inside]:
    """While open, one pass of the model fills what is yielded: hidden states at `places`, and
    queries, keys and values of the attention in `layers` (counted from 1).

    Raises UserError for places and layers that the model lacks, and, at the end, where the model
    ran but its attention does not go through transformers' interface.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside peft
    _, stack = layer_stack(model)
    _check(model, len(stack), places, layers)
    seen = Inside()
    with ExitStack() as opened:
        for place in places:
            opened.enter_context(_reading(model, stack, place, seen))
        if layers:
            opened.enter_context(_reading_heads(model, stack, layers, seen))
        yield seen
    if seen.hidden.keys() != set(places) or seen.heads.keys() != set(layers):
        raise UserError(
            f"{type(model).__name__} did not show its attention: set its attn_implementation to "
            "'sdpa' or 'eager', or match hidden states instead"
        )


def _check(model: Any, depth: int, places: Collection[After], layers: Collection[int]) -> None:
    for place in places:
        if not 0 <= place.layer <= depth or (place.normed and place.layer != depth):
            raise UserError(
                f"{place} is no place in {type(model).__name__}: expected 0 (the embeddings) to "
                f"{depth}, and normed=True behind the last layer alone"
            )
    for layer in layers:
        if not 1 <= layer <= depth:
            raise UserError(
                f"{type(model).__name__} has no attention in layer {layer}: expected 1 to {depth}"
            )


@contextmanager
def _reading(
    model: PreTrainedModel, stack: nn.ModuleList, place: After, seen: Inside
) -> Iterator[None]:
    def before(_: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        seen.hidden[place] = args[0] if args else named["hidden_states"]

    def after(_: nn.Module, args: tuple, output: Any) -> None:
        seen.hidden[place] = output if isinstance(output, Tensor) else output[0]

    if place.layer == 0:
        handle = stack[0].register_forward_pre_hook(before, with_kwargs=True)
    elif place.normed:
        handle = model.base_model.register_forward_hook(after)  # its last_hidden_state
    else:
        handle = stack[place.layer - 1].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _reading_heads(
    model: PreTrainedModel, stack: nn.ModuleList, layers: Collection[int], seen: Inside
) -> Iterator[None]:
    """Stand in for the attention function that the model uses; it still does the work."""
    owner = {id(part): layer for layer in layers for part in stack[layer - 1].modules()}
    kind = model.config._attn_implementation
    known = ALL_ATTENTION_FUNCTIONS.get(kind)

    def reading(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any
    ) -> Any:
        if id(module) in owner:
            scaling = named.get("scaling") or query.shape[-1] ** -0.5
            causal = bool(getattr(module, "is_causal", False))
            seen.heads[owner[id(module)]] = Heads(query, key, value, scaling, causal)
        work = known or sys.modules[type(module).__module__].eager_attention_forward
        return work(module, query, key, value, *rest, **named)

    ALL_ATTENTION_FUNCTIONS[kind] = reading
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[kind]
        if known is not None and ALL_ATTENTION_FUNCTIONS.get(kind) is not known:
            ALL_ATTENTION_FUNCTIONS[kind] = known  # it was somebody's own
