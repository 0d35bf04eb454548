"""A model's predictions where they matter: at the positions of a batch that have a label.

A third of a dialogue's tokens is the assistant's, and the output head is most of a small model's
work, so it runs at those positions alone.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Size, Tensor, nn

from distillkit.chat import IGNORE_INDEX


def shifted_labels(batch: Mapping[str, Any]) -> Tensor:
    """The shift, here and nowhere else: (B, S − 1), at position s the label of token s + 1.

    The first token of a conversation is predicted by nothing, so its label is never used, also
    when padding stands before it.

    >>> import torch
    >>> labels = torch.tensor([[5, -100, 7], [-100, 8, 9]])
    >>> shifted_labels({"labels": labels, "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])})
    tensor([[-100,    7],
            [-100,    9]])
    """
    labels, mask = batch["labels"][:, 1:], batch.get("attention_mask")
    return labels if mask is None else labels.masked_fill(mask[:, :-1] == 0, IGNORE_INDEX)


def labelled_positions(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The flat positions (N,) of a batch that predict a label, and the labels (N,)."""
    labels = shifted_labels(batch)
    conversation, position = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    return conversation * batch["labels"].shape[1] + position, labels[conversation, position]


def logits_at(
    model: Any, inputs: dict[str, Any], rows: Tensor, inner: nn.Module | None = None
) -> Tensor:
    """A model's logits (N, V) at the flat positions `rows` (N,) of a batch.

    The output head runs at these positions alone, which saves most of its work. `inner` is the
    model inside a wrapper such as DistributedDataParallel, when `model` is one: the wrapper is
    called, so its own work is done. A model whose head cannot be caught computes all its logits,
    of which the same rows are taken.
    """
    inner = model if inner is None else inner
    passed = _model_inputs(inner, inputs)
    with _head_at(inner, rows, inputs["input_ids"].shape):
        logits = model(**passed).logits
    return logits if logits.dim() == 2 else logits.flatten(0, 1).index_select(0, rows)


@contextmanager
def _head_at(model: Any, rows: Tensor, shape: Size) -> Iterator[None]:
    """While open, the output head sees only the rows that matter."""

    def select(_: nn.Module, args: tuple) -> tuple | None:
        if not args or args[0].dim() != 3 or args[0].shape[:2] != shape:
            return None  # not the call that we know: leave it, all logits will come
        hidden = args[0].flatten(0, 1)
        return hidden.index_select(0, rows.to(hidden.device)), *args[1:]

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _model_inputs(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the model's forward takes of a batch: ids, and mask and positions where they matter.

    Positions count from each conversation's first token, also when padding stands on its left;
    those that the batch brings (of packed conversations, say) are kept. A model that predicts the
    next token looks to the left alone, so padding on the right is out of its sight: it is given no
    mask, and attention takes its faster, purely causal path.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside peft
    known = inspect.signature(type(base).forward).parameters
    passed: dict[str, Any] = {"input_ids": inputs["input_ids"]}
    if "use_cache" in known:
        passed["use_cache"] = False
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is not None:
        counted = _positions(mask)
        plain = positions is None or torch.equal(positions, counted)
        if plain and _padded_on_the_right(mask):
            return passed
        passed["attention_mask"] = mask
        positions = counted if positions is None else positions
    if positions is not None and "position_ids" in known:
        passed["position_ids"] = positions
    return passed


def _positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _padded_on_the_right(mask: Tensor) -> bool:
    """Whether no conversation has padding before it or a hole in it."""
    return bool((mask.long().cummin(dim=-1).values == mask).all())
