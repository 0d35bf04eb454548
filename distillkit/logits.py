"""A model's predictions where they matter: at the positions of a batch that have a label.

Where a batch's labels meet the logits depends on what the model does, and is found from its class:

- a *causal* model predicts the next token: labels and logits are shifted by one, once, here;
- a *masked language model* fills gaps: the label of a position belongs to its own logits;
- a *classifier* says one thing of a whole text: labels (B,), logits (B, C), no positions at all.

A third of a dialogue's tokens is the assistant's, and the output head is most of a small model's
work, so it runs at those positions alone.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from distillkit.chat import IGNORE_INDEX
from distillkit.errors import UserError


class Alignment(NamedTuple):
    """How one kind of model reads a batch."""

    name: str  # for messages
    labels: Callable[[Mapping[str, Any]], Tensor]  # the labels, each where its logits are
    inputs: Callable[[Any, dict[str, Any], Tensor], tuple[dict[str, Any], Tensor]]


def alignment_of(model: Any) -> Alignment:
    """How this model reads a batch, by its class; one that says nothing of itself is causal."""
    names = [kind.__name__ for kind in type(_base(model)).__mro__]
    if any(name.endswith("ForSequenceClassification") for name in names):
        return CLASSIFIER
    return MASKED if any(name.endswith("ForMaskedLM") for name in names) else CAUSAL


def aligned_labels(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """The labels of a batch where this model's logits for them are, −100 elsewhere.

    (B, S − 1) for a causal model, (B, S) for a masked language model, (B,) for a classifier.
    Raises UserError where a batch has no labels, or a classifier's are not one class a text.
    """
    if batch.get("labels") is None:
        raise UserError(
            f"the batch has no labels (found {', '.join(batch)}): give every row labels, as "
            "chat.encode_rows and encoders.encode_intents do"
        )
    return alignment_of(model).labels(batch)


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


def labelled_positions(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The flat positions (N,) of a batch at which this model predicts a label, and the labels (N,).

    A position counts through the tokens of the batch; for a classifier, through its texts.
    """
    labels = aligned_labels(model, batch)
    found = labels != IGNORE_INDEX
    if labels.dim() == 1:
        return found.nonzero(as_tuple=True)[0], labels[found]
    row, position = found.nonzero(as_tuple=True)
    return row * batch["labels"].shape[1] + position, labels[found]


def valid_tokens(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """The real tokens (B, S) of a batch, each where `logits_at` shows it to this model.

    A text without any label has none: it enters no loss (several processes are evened out with
    such ones).
    """
    mask, places = _mask_and_places(batch)
    labelled = (aligned_labels(model, batch) != IGNORE_INDEX).view(len(mask), -1).any(dim=1)
    if alignment_of(model) is CAUSAL and _padding_moves(batch, places):
        mask = mask.sort(dim=1, descending=True).values
    return mask.bool() & labelled.unsqueeze(1)


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
    alignment = alignment_of(inner)
    passed, rows = alignment.inputs(inner, inputs, rows)
    if alignment is CLASSIFIER:
        return model(**passed).logits.index_select(0, rows)
    with _head_at(inner, rows, inputs["input_ids"].shape):
        logits = model(**passed).logits
    return logits if logits.dim() == 2 else logits.flatten(0, 1).index_select(0, rows)


def check_causal(model: Any) -> None:
    """Refuse a language model of conversations that sees the token it has to predict.

    BERT's kind looks to both sides unless its configuration says `is_decoder`. A model that says it
    is no decoder is tried on two conversations that differ in their last token alone.
    """
    if (kind := alignment_of(model)) is not CAUSAL:
        raise UserError(
            f"{type(model).__name__} is {kind.name}: conversations need a model that reads from "
            "left to right; if its weights are of that kind, set is_decoder to true in its "
            "config.json"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{type(model).__name__} reads with one network and writes with another: conversations "
            "need a model that does both from left to right, such as Llama, Qwen or GPT-2"
        )
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


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # inside peft


def _known(model: Any) -> Mapping[str, Any]:
    """The arguments of a model's forward."""
    return inspect.signature(type(_base(model)).forward).parameters


def _causal_inputs(
    model: Any, inputs: dict[str, Any], rows: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """What the model's forward takes of a batch, and where `rows` are in that.

    A model that predicts the next token looks to the left alone, so padding on the right is out of
    its sight. Padding elsewhere is moved there: every model then counts positions in its own way
    (RoBERTa from its padding id on, Bloom not at all), needs no mask, and attention takes its
    faster, purely causal path. A batch that brings positions of its own, of packed conversations
    say, is passed on as it is.
    """
    known = _known(model)
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


def _encoder_inputs(
    model: Any, inputs: dict[str, Any], rows: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """What an encoder's forward takes of a batch, and `rows`, which stay where they are.

    It looks to both sides, so padding must be masked: it would be read like words. Positions are
    counted by the model itself, as it was trained to (RoBERTa begins at 2).
    """
    known, names = _known(model), ("input_ids", "attention_mask", "token_type_ids")
    return {
        name: inputs[name] for name in names if name in known and inputs.get(name) is not None
    }, rows


def _own_labels(batch: Mapping[str, Any]) -> Tensor:
    return batch["labels"]


def _classes(batch: Mapping[str, Any]) -> Tensor:
    labels = batch["labels"]
    if labels.dim() != 1 or labels.is_floating_point():
        raise UserError(
            f"the labels of a classifier are {tuple(labels.shape)} {labels.dtype}: expected the "
            "number of one class a text; regression and several classes at once are not distilled"
        )
    return labels


CAUSAL = Alignment("a causal language model", shifted_labels, _causal_inputs)
MASKED = Alignment("a masked language model", _own_labels, _encoder_inputs)
CLASSIFIER = Alignment("a classifier", _classes, _encoder_inputs)
