"""Quantization-aware training: layers that compute as if they held integers, and still learn.

    student = fake_quantize(student, Grid(bits=4, group=32))
    DistillationTrainer(student, teacher, …).train()
    smaller = convert(student)               # integers, and the same logits to the last bit

The weights are floats. Each forward pass rounds them onto the grid; the backward pass takes the
rounding for the identity (the straight-through estimator: Bengio et al. 2013; for
quantized networks Jacob et al. 2018, section 3). Scales follow the weights and get no gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillkit.calibration import linear_inputs
from distillkit.errors import UserError
from distillkit.quantization.activations import (
    activation_codes,
    activation_scale,
    float_product,
    static_scale,
)
from distillkit.quantization.grids import (
    EIGHT_BITS,
    Grid,
    Limits,
    Quantized,
    min_max,
    round_to_nearest,
)
from distillkit.quantization.layers import QuantizedEmbedding, QuantizedLinear, scaled_product
from distillkit.quantization.quantizing import (
    Plan,
    check_quantizable,
    mark,
    put_table,
    stack_linears,
)

__all__ = [
    "FakeQuantizedEmbedding",
    "FakeQuantizedLinear",
    "convert",
    "fake_quantize",
    "straight_through",
]

Encoded = dict[str, list[int]]


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, passes: Tensor | None) -> Tensor:
        ctx.save_for_backward(passes)
        return rounded.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (passes,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient if passes is None else gradient * passes, None, None


def straight_through(x: Tensor, rounded: Tensor, passes: Tensor | None = None) -> Tensor:
    """`rounded`, exactly, whose gradient goes to `x` as it is; where `passes` is false, none goes.

    (Written x + (rounded − x).detach(), the sum would differ from `rounded` in its last bit.)
    """
    result: Tensor = _Straight.apply(x, rounded.detach(), passes)
    return result


class FakeQuantizedLinear(nn.Linear):
    """A linear layer that computes what the `QuantizedLinear` of its weights would.

    Its parameters are those of the layer that it replaces.
    """

    input_scale: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        grid: Grid,
        *,
        activations: str | None = None,
        input_scale: Tensor | None = None,
        limits: Limits = min_max,
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.grid, self.activations, self.limits = grid, activations, limits
        self.register_buffer("input_scale", input_scale, persistent=False)

    def quantized(self) -> Quantized:
        """The weights on their grid, as they are now."""
        return round_to_nearest(self.weight, self.grid, limits=self.limits)

    def forward(self, input: Tensor) -> Tensor:
        quantized = self.quantized()
        if self.activations is None:
            weight = straight_through(self.weight, quantized.dequantized())
            return nn.functional.linear(input, weight.to(input.dtype), self.bias)
        scale = activation_scale(input) if self.input_scale is None else self.input_scale
        scale, w_scale = scale.detach().to(input.dtype), quantized.scale
        steps = input / scale
        codes = straight_through(steps, activation_codes(input, scale), steps.abs() <= 127.5)
        w_codes = straight_through(self.weight / w_scale.to(self.weight.dtype), quantized.codes)
        product = float_product(codes, w_codes)
        return scaled_product(product, scale, w_scale, self.bias).to(input.dtype)

    def converted(self) -> QuantizedLinear:
        """The layer of integers that gives the same, bit for bit."""
        return QuantizedLinear.of(
            self.quantized(),
            self.bias,
            activations=self.activations,
            input_scale=self.input_scale,
        )


class FakeQuantizedEmbedding(nn.Embedding):
    """An embedding table whose rows are rounded onto the grid each time they are read."""

    def __init__(self, table: nn.Embedding, grid: Grid, *, limits: Limits = min_max) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, device="meta")
        self.weight, self.padding_idx = table.weight, table.padding_idx
        self.grid, self.limits = grid, limits

    def quantized(self) -> Quantized:
        """The rows on their grid, as they are now."""
        return round_to_nearest(self.weight, self.grid, limits=self.limits)

    def forward(self, input: Tensor) -> Tensor:
        rows = straight_through(self.weight, self.quantized().dequantized())
        return nn.functional.embedding(input, rows, self.padding_idx)

    def converted(self) -> QuantizedEmbedding:
        """The table of integers that gives the same, bit for bit."""
        return QuantizedEmbedding.of(self.quantized(), self.weight.dtype)


def fake_quantize(
    model: PreTrainedModel,
    grid: Grid,
    *,
    embeddings: Grid | None = EIGHT_BITS,
    exceptions: Mapping[str, Grid | None] | None = None,
    activations: str | None = None,
    encoded: Sequence[Encoded] = (),
    limits: Limits = min_max,
) -> PreTrainedModel:
    """A copy to train, which computes as if it held integers; `convert` then puts them in.

    It trains, saves and resumes as any other model does; what is saved is floats.

    Args:
        grid, embeddings, exceptions, activations: as in `quantize`.
        encoded: calibration conversations for static activations, whose scale stays as it is.
        limits: how the range of a group of weights is found.

    Raises UserError as `quantize` does.
    """
    plan = Plan(grid, embeddings, dict(exceptions or {}), activations)
    check_quantizable(model, plan)
    if activations == "static" and not encoded:
        raise UserError("static activations need calibration text: pass encoded=…")
    changed: Any = copy.deepcopy(model)
    read = linear_inputs(changed, encoded) if activations == "static" else {}
    for name, linear in stack_linears(changed).items():
        if (own := plan.grid_of(name)) is not None:
            scale = static_scale(read[name].largest) if name in read else None
            fake = FakeQuantizedLinear(
                linear, own, activations=activations, input_scale=scale, limits=limits
            )
            changed.set_submodule(name, fake)
    if embeddings is not None:
        table, head = changed.get_input_embeddings(), changed.get_output_embeddings()
        changed.set_input_embeddings(FakeQuantizedEmbedding(table, embeddings, limits=limits))
        if head is not None:
            changed.set_output_embeddings(FakeQuantizedLinear(head, embeddings, limits=limits))
    changed._plan = plan
    return changed


def convert(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model that `fake_quantize` made, with integers: its logits are the same bits.

    Raises UserError where the model is another.
    """
    plan = getattr(model, "_plan", None)
    if plan is None:
        raise UserError(f"{type(model).__name__} was not made by fake_quantize: use quantize")
    changed: Any = copy.deepcopy(model).eval()
    for name, layer in stack_linears(changed).items():
        if isinstance(layer, FakeQuantizedLinear):
            changed.set_submodule(name, layer.converted())
    table, head = changed.get_input_embeddings(), changed.get_output_embeddings()
    if isinstance(table, FakeQuantizedEmbedding):
        put_table(changed, table.converted(), None if head is None else head.converted())
    del changed._plan
    return mark(changed, plan)
