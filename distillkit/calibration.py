"""What a model's linear layers read, on calibration text: what pruning and quantization ask.

Layers are visited from the first to the last, and each reads what the layers before it give *after*
they have been changed, as in SparseGPT, Wanda and GPTQ: an error that was made below is there to be
made good above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillkit.decoding import evaluating
from distillkit.errors import UserError
from distillkit.models import layer_stack

__all__ = ["Inputs", "layer_by_layer", "linear_inputs", "linears"]

Encoded = dict[str, list[int]]
Work = Callable[[str, nn.Linear, "Inputs"], object]


@dataclass
class Inputs:
    """What one linear layer has read: a sum over N tokens, in float64 on the layer's device.

    squares (D,): of each input feature, the sum of x². largest (D,): of each, the largest |x|.
    sizes (D,): of each, the sum of |x|.
    products (D, D): the sum of x xᵀ, half the Hessian of the layer's squared error; None unless it
    was asked for. rows: the x themselves (N, D), in float32; None unless they were asked for.
    """

    tokens: int
    squares: Tensor
    largest: Tensor
    sizes: Tensor
    products: Tensor | None = None
    rows: Tensor | None = None

    @property
    def norms(self) -> Tensor:
        """‖x‖₂ of each input feature over all tokens (D,): what Wanda multiplies weights by."""
        return self.squares.sqrt()

    @property
    def means(self) -> Tensor:
        """The mean |x| of each input feature (D,): what AWQ raises to a power."""
        return self.sizes / self.tokens


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside, by name, in the order in which the module lists them."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}


def linear_inputs(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    *,
    products: bool = False,
    rows: bool = False,
    batch_tokens: int = 4096,
) -> dict[str, Inputs]:
    """The inputs of every linear layer of the layer stack, the model being left as it is.

    Args:
        encoded: conversations as `chat.encode_rows` gives them; every token of them counts.
        products, rows: whether to keep these, too.
        batch_tokens: tokens in a forward pass, padding included. It does not change the result.

    Raises:
        UserError: there is no conversation, or one without a token; or the stack has no linear
            layer (GPT-2's are of another class, which tools that look for `nn.Linear` pass over).
    """
    found: dict[str, Inputs] = {}

    def keep(name: str, _: nn.Linear, inputs: Inputs) -> None:
        found[name] = inputs

    layer_by_layer(
        model, encoded, keep, products=products, rows=rows, batch_tokens=batch_tokens, again=False
    )
    return found


def layer_by_layer(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    work: Work,
    *,
    products: bool = False,
    rows: bool = False,
    batch_tokens: int = 4096,
    again: bool = True,
) -> None:
    """Call ``work(name, linear, inputs)`` for every linear layer of the layer stack, in order.

    `work` may change the weights in place. All linear layers of one layer of the stack are measured
    before the first of them is worked on; then that layer reads its input again, so that the next
    one is measured on what the changed layer gives. The head and the embeddings are not visited.
    With `again` false the second reading is left out, for work that changes nothing.

    Raises UserError as `linear_inputs` does.
    """
    if not encoded or not all(row["input_ids"] for row in encoded):
        raise UserError(
            f"found {len(encoded)} calibration conversations, or an empty one: expected at least "
            "one, each with a token (see chat.encode_rows)"
        )
    prefix, stack = layer_stack(model)
    if not linears(stack):
        raise UserError(f"{type(model).__name__} has no linear layer in its layers: cannot be used")
    with evaluating(model), torch.no_grad():
        passes = [_begin(model, stack, batch) for batch in _batches(encoded, batch_tokens)]
        for index, layer in enumerate(stack):
            gathered = {name: _Gathered(products, rows) for name in linears(layer)}
            after = [_read(layer, index, each, gathered) for each in passes]
            for name, linear in linears(layer).items():
                if gathered[name].tokens:  # experts that no token was sent to have read nothing
                    work(f"{prefix}.{index}.{name}", linear, gathered[name].inputs())
            if again:
                after = [_read(layer, index, each, {}) for each in passes]
            for each, hidden in zip(passes, after, strict=True):
                each.hidden = hidden


@dataclass
class _Pass:
    """One batch on its way through the stack: where it stands, and what each layer is told."""

    hidden: Tensor  # (B, S, D)
    real: Tensor  # (B, S): whether it is a token and no padding
    told: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


@dataclass
class _Gathered:
    """Sums that grow batch by batch."""

    with_products: bool
    with_rows: bool
    tokens: int = 0
    squares: Tensor | None = None
    largest: Tensor | None = None
    sizes: Tensor | None = None
    products: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)

    def take(self, x_ND: Tensor) -> None:
        x_ND = x_ND.detach()
        exact = x_ND.double()
        size = exact.abs()
        squares, largest, sizes = exact.square().sum(0), size.amax(0), size.sum(0)
        self.tokens += len(x_ND)
        self.squares = squares if self.squares is None else self.squares + squares
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.sizes = sizes if self.sizes is None else self.sizes + sizes
        if self.with_products:
            products = exact.T @ exact
            self.products = products if self.products is None else self.products + products
        if self.with_rows:
            self.rows.append(x_ND.float())

    def inputs(self) -> Inputs:
        assert self.squares is not None and self.largest is not None and self.sizes is not None
        rows = torch.cat(self.rows) if self.rows else None
        return Inputs(self.tokens, self.squares, self.largest, self.sizes, self.products, rows)


def _batches(encoded: Sequence[Encoded], budget: int) -> Iterator[list[list[int]]]:
    """Conversations of like length, so that little is padded."""
    order = sorted((row["input_ids"] for row in encoded), key=len, reverse=True)
    while order:
        size = max(1, budget // len(order[0]))
        yield order[:size]
        order = order[size:]


class _Stop(Exception):
    """Ends a forward pass after the last layer of the stack: the head's logits are not needed."""


def _begin(model: PreTrainedModel, stack: nn.ModuleList, batch: list[list[int]]) -> _Pass:
    """Let a batch arrive at the stack, and note what each layer is told beside the hidden states.

    Padding stands on the right, where a causal model cannot see it from the left.
    """
    width = max(map(len, batch))
    ids_BS = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch])
    real_BS = torch.tensor([[True] * len(ids) + [False] * (width - len(ids)) for ids in batch])
    arrived: list[Tensor] = []
    told: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if not arrived:
            arrived.append(hidden)
        told.append((args[1:], kwargs))

    def stop(*_: Any) -> None:
        raise _Stop

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in stack]
    hooks.append(stack[-1].register_forward_hook(stop))
    try:
        model(ids_BS.to(model.device), use_cache=False)
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return _Pass(arrived[0], real_BS.to(arrived[0].device), told)


def _read(layer: nn.Module, index: int, at: _Pass, gathered: dict[str, _Gathered]) -> Tensor:
    """What the layer makes of a batch, its linear layers being watched."""
    args, kwargs = at.told[index]
    with _watched(layer, at.real, gathered):
        output = layer(at.hidden, *args, **kwargs)
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def _watched(layer: nn.Module, real_BS: Tensor, gathered: dict[str, _Gathered]) -> Iterator[None]:
    def watch(sums: _Gathered) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            # An expert reads the tokens that were sent to it, in one row: padding among them.
            sums.take(x[real_BS] if x.shape[:2] == real_BS.shape else x.flatten(0, -2))

        return hook

    hooks = [
        part.register_forward_pre_hook(watch(gathered[name]))
        for name, part in linears(layer).items()
        if name in gathered
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
