"""Layers that hold integers: linear, embeddings, and a head that reads the embeddings' rows.

Their tensors are buffers, not parameters: they do not train. `weight` has one row of bytes for each
output (or token): (O, bytes, 1). Its last dimension of 1 keeps a program that does not know the
format from taking integers for weights: the shape does not fit, and loading fails.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distillkit.errors import UserError
from distillkit.quantization.activations import (
    ACTIVATIONS,
    activation_codes,
    activation_scale,
    integer_product,
)
from distillkit.quantization.grids import Grid, Quantized, dequantize
from distillkit.quantization.packing import bytes_a_row, pack, unpack

__all__ = ["Integers", "QuantizedEmbedding", "QuantizedLinear", "TiedHead"]


class Integers(nn.Module):
    """A matrix (O, I) as integers in bytes, with scales, and zeros on an affine grid."""

    weight: Tensor  # (O, bytes a row, 1), int8 or uint8
    scale: Tensor  # (R, G)
    zero: Tensor | None  # (R, G), uint8

    def __init__(self, rows: int, columns: int, grid: Grid) -> None:
        super().__init__()
        self.rows, self.columns, self.grid = rows, columns, grid
        dtype = torch.int8 if grid.bits == 8 and grid.symmetric else torch.uint8
        width = bytes_a_row(columns, grid.bits)
        self.register_buffer("weight", torch.zeros(rows, width, 1, dtype=dtype))
        table = grid.groups(rows, columns)
        self.register_buffer("scale", torch.zeros(table, dtype=grid.scales))
        zero = None if grid.symmetric else torch.zeros(table, dtype=torch.uint8)
        self.register_buffer("zero", zero)

    def _store(self, quantized: Quantized) -> None:
        codes, grid = quantized.codes, self.grid
        bytes_ = codes if grid.bits == 8 else pack(codes - grid.low, grid.bits)
        self.weight = bytes_.to(self.weight.dtype)[..., None].contiguous()
        self.scale, self.zero = quantized.scale, quantized.zero

    def codes(self, rows: Tensor | None = None) -> Tensor:
        """The integers (O, I), or those of some rows (…, I): int8, or uint8 (8 bits, affine)."""
        packed = self.weight[..., 0] if rows is None else self.weight[rows, :, 0]
        if self.grid.bits == 8:
            return packed
        return unpack(packed, self.grid.bits, self.columns).to(torch.int8) + self.grid.low

    def dequantized(self) -> Tensor:
        """The matrix (O, I) that the integers stand for, in float32."""
        return dequantize(self.codes(), self.scale, self.zero)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move to another device, but keep the dtypes: the integers are of these scales."""

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def extra_repr(self) -> str:
        grid = self.grid
        kind = "symmetric" if grid.symmetric else "affine"
        return f"{self.rows} × {self.columns}, {grid.bits} bits, {kind}, group {grid.group}"


class QuantizedLinear(Integers):
    """A linear layer y = x Ŵᵀ + b whose weights are integers on a grid.

    Weight-only (`activations` None): Ŵ is computed anew at each call, and the product is one of
    floats; that saves memory, not time. "dynamic" or "static": activations are integers as well,
    and so is the product (see `activations.py`).

    Raises UserError where integers cannot be multiplied: with a grid that is affine, or has groups.
    """

    bias: Tensor | None
    input_scale: Tensor | None  # (): of static activations, float32

    def __init__(
        self,
        inputs: int,
        outputs: int,
        grid: Grid,
        *,
        bias: bool = False,
        activations: str | None = None,
    ) -> None:
        super().__init__(outputs, inputs, grid)
        check_activations(grid, activations)
        self.in_features, self.out_features = inputs, outputs
        self.activations = activations
        self.register_buffer("bias", torch.zeros(outputs) if bias else None)
        empty = torch.zeros((), dtype=torch.float32) if activations == "static" else None
        self.register_buffer("input_scale", empty)

    @classmethod
    def of(
        cls,
        quantized: Quantized,
        bias: Tensor | None = None,
        *,
        activations: str | None = None,
        input_scale: Tensor | None = None,
    ) -> QuantizedLinear:
        """The layer that holds these integers; a static one needs the scale of what it reads."""
        outputs, inputs = quantized.codes.shape
        layer = cls(inputs, outputs, quantized.grid, bias=bias is not None, activations=activations)
        layer._store(quantized)
        layer.bias = None if bias is None else bias.detach().clone()
        if activations == "static":
            if input_scale is None:
                raise UserError("static activations need calibration text: pass encoded=…")
            layer.input_scale = input_scale.detach().clone()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if self.activations is not None:
            return self._with_integers(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.dequantized().to(x.dtype), bias)

    def _with_integers(self, x: Tensor) -> Tensor:
        scale = activation_scale(x) if self.input_scale is None else self.input_scale.to(x.dtype)
        codes = activation_codes(x, scale).flatten(0, -2)
        product = integer_product(codes, self.codes()).view(*x.shape[:-1], self.out_features)
        return scaled_product(product, scale, self.scale, self.bias).to(x.dtype)


class QuantizedEmbedding(Integers):
    """An embedding table whose rows are integers on a grid; only rows asked for are unpacked."""

    _like: Tensor  # (): what it gives has this dtype, whatever the scales have

    def __init__(self, tokens: int, width: int, grid: Grid) -> None:
        super().__init__(tokens, width, grid)
        self.num_embeddings, self.embedding_dim = tokens, width
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    @classmethod
    def of(cls, quantized: Quantized, dtype: torch.dtype = torch.float32) -> QuantizedEmbedding:
        """The table that holds these integers, and gives its rows in `dtype`."""
        tokens, width = quantized.codes.shape
        table = cls(tokens, width, quantized.grid)
        table._store(quantized)
        table._like = table._like.to(dtype)
        return table

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        like = fn(self._like)
        super()._apply(fn, recurse)
        self._like = like
        return self

    def forward(self, ids: Tensor) -> Tensor:
        codes, whole = self.codes(ids), len(self.scale) == 1 < self.rows
        rows = torch.zeros_like(ids) if whole else ids
        scale, zero = self.scale[rows], None if self.zero is None else self.zero[rows]
        flat = dequantize(
            codes.flatten(0, -2),
            scale.flatten(0, -2),
            None if zero is None else zero.flatten(0, -2),
        )
        return flat.view(*ids.shape, self.embedding_dim).to(self._like.dtype)


class TiedHead(nn.Module):
    """An output head that reads the rows of a quantized embedding table, and has no tensor itself.

    The table is not a part of it, so that it is saved, moved and counted once.
    """

    def __init__(self, table: QuantizedEmbedding) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple: no submodule
        self.in_features, self.out_features = table.columns, table.rows

    @property
    def table(self) -> QuantizedEmbedding:
        return self._table[0]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.table.dequantized().to(x.dtype))

    def extra_repr(self) -> str:
        return f"{self.out_features} × {self.in_features}, the rows of the embeddings"


def scaled_product(product: Tensor, x_scale: Tensor, w_scale_RG: Tensor, bias: Any) -> Tensor:
    """A product of integers (…, O) times the scales of its two sides, plus the bias, in float32.

    Written once, so that training and the trained layer round in the same order. In float16 the
    integers would overflow before they are scaled.
    """
    y = product * (x_scale.float() * w_scale_RG.float()[:, 0])
    return y if bias is None else y + bias.float()


def check_activations(grid: Grid, activations: str | None) -> None:
    """Raises UserError where activations are none of the known, or the grid's weights too rich."""
    if activations is None:
        return
    if activations not in ACTIVATIONS:
        raise UserError(f'activations is {activations!r}: expected "dynamic" or "static", or None')
    if not grid.symmetric or isinstance(grid.group, int):
        raise UserError(
            f"{grid} cannot be multiplied as integers: quantized activations need a symmetric grid "
            'with group "channel" or "tensor"'
        )
