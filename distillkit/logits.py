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
from distillkit.errors import UserError


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


def valid_tokens(batch: Mapping[str, Any]) -> Tensor:
    """The real tokens (B, S) of a batch as `logits_at` shows it to a model, padding moved right.

    A conversation without any label has none: it enters no loss (several processes are evened out
    with such ones).
    """
    mask, places = _mask_and_places(batch)
    labelled = (shifted_labels(batch) != IGNORE_INDEX).any(dim=1, keepdim=True)
    if _padding_moves(batch, places):
        mask = mask.sort(dim=1, descending=True).values
    return mask.bool() & labelled


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
    passed, rows = _model_inputs(inner, inputs, rows)
    with _head_at(inner, rows, inputs["input_ids"].shape):
        logits = model(**passed).logits
    return logits if logits.dim() == 2 else logits.flatten(0, 1).index_select(0, rows)


def check_causal(model: Any) -> None:
    """Refuse a model that sees the token it has to predict.

    BERT's kind looks to both sides unless its configuration says `is_decoder`. A model that says it
    is no decoder is tried on two conversations that differ in their last token alone.
    """
    if getattr(model.config, "is_decoder", True) is not False:
        return
    training = model.training
    model.eval()
    with torch.no_grad():
        one, other = (
            model(input_ids=torch.tensor([[0, last]], device=model.device)).logits[0, 0].float()
            for last in (0, 1)
        )
    model.train(training)
    if (one - other).abs().max() > 10 * torch.finfo(model.dtype).eps * one.abs().max():
        raise UserError(
            f"{type(model).__name__} sees the token that it has to predict: set is_decoder to true "
            "in its config.json, or take a model that reads from left to right"
        )


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


def _model_inputs(
    model: Any, inputs: dict[str, Any], rows: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """What the model's forward takes of a batch, and where `rows` are in that.

    A model that predicts the next token looks to the left alone, so padding on the right is out of
    its sight. Padding elsewhere is moved there: every model then counts positions in its own way
    (RoBERTa from its padding id on, Bloom not at all), needs no mask, and attention takes its
    faster, purely causal path. A batch that brings positions of its own, of packed conversations
    say, is passed on as it is.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside peft
    known = inspect.signature(type(base).forward).parameters
    passed: dict[str, Any] = {"input_ids": inputs["input_ids"]}
    if "use_cache" in known:
        passed["use_cache"] = False
    mask, places = _mask_and_places(inputs)
    if _padding_moves(inputs, places):
        order = mask.argsort(dim=1, descending=True, stable=True)
        passed["input_ids"] = passed["input_ids"].gather(1, order)
        return passed, rows - rows % mask.shape[1] + places.flatten()[rows]
    own = {name: inputs.get(name) for name in ("attention_mask", "position_ids")}
    passed |= {name: value for name, value in own.items() if value is not None and name in known}
    return passed, rows


def _mask_and_places(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The attention mask (B, S), and how many real tokens stand before each."""
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask.long()
    return mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


def _padding_moves(batch: Mapping[str, Any], places: Tensor) -> bool:
    own = batch.get("position_ids")
    return own is None or torch.equal(own, places)
