"""Grids, packing, and layers of integers: against loops, and on inputs that want to break them."""

import copy
import doctest
import math

import numpy as np
import oracles_quantization as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from distillkit.errors import UserError
from distillkit.quantization import (
    EIGHT_BITS,
    Grid,
    QuantizedEmbedding,
    QuantizedLinear,
    activation_codes,
    activation_scale,
    dequantize,
    integer_product,
    least_squares,
    min_max,
    pack,
    packing,
    round_to_nearest,
    scaling,
    static_scale,
    unpack,
)
from distillkit.quantization import activations as engine

GRIDS = [
    Grid(bits, symmetric, group, scales)
    for bits, symmetric, group, scales in [
        (8, True, "channel", torch.float16),
        (8, False, "channel", torch.float32),
        (4, True, 8, torch.float16),
        (4, False, 4, torch.float16),
        (3, False, "tensor", torch.float32),
        (5, True, "tensor", torch.float16),
        (2, True, 12, torch.float16),
    ]
]


def matrix(rows=6, columns=24, *, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(
        rows, 1, generator=generator
    )


def group_size(grid: Grid, columns: int) -> int:
    return columns if isinstance(grid.group, str) else grid.group


# Grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_rounding_is_that_of_the_loops(grid, seed):
    weight = matrix(seed=seed)
    found = round_to_nearest(weight, grid)
    kind = np.float16 if grid.scales is torch.float16 else np.float32
    rows = weight.reshape(1, -1) if grid.group == "tensor" else weight
    size = group_size(grid, rows.shape[1])
    codes, back = oracle.nearest(rows.tolist(), grid.bits, grid.symmetric, size, kind)
    # A weight in the middle between two integers may fall to either in float32.
    assert (found.codes.reshape(codes.shape).numpy() != codes).mean() < 0.01
    step = float(found.scale.max())
    assert np.abs(found.dequantized().reshape(back.shape).numpy() - back).max() <= 1.001 * step
    assert found.codes.min() >= grid.low and found.codes.max() <= grid.high
    assert found.scale.dtype == grid.scales and found.scale.shape == grid.groups(*weight.shape)


@settings(max_examples=25)
@given(
    values=some.lists(some.floats(-1e4, 1e4, allow_nan=False, width=32), min_size=1, max_size=12),
    bits=some.integers(2, 8),
    symmetric=some.booleans(),
)
def test_a_rounded_weight_is_within_half_a_step_and_zero_stays_zero(values, bits, symmetric):
    grid = Grid(bits, symmetric, "channel", torch.float32)
    weight = torch.tensor([[*values, 0.0]])
    found = round_to_nearest(weight, grid)
    back, step = found.dequantized(), float(found.scale)
    assert back[0, -1] == 0.0
    # An affine zero is rounded, so the end of the range may be cut by half a step more.
    allowed = step * (0.5 if symmetric else 1.0) * (1 + 1e-4) + 1e-5 * float(weight.abs().max())
    assert float((back - weight).abs().max()) <= allowed


def test_what_is_on_the_grid_stays_there():
    grid = Grid(4, False, 8)
    back = round_to_nearest(matrix(), grid).dequantized()
    again = round_to_nearest(back, grid).dequantized()
    assert torch.allclose(again, back, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_searched_range_never_loses_more_than_the_whole(grid):
    weight = matrix(columns=48, seed=3)
    weight[0, 0] = 20.0

    def error(limits):
        back = round_to_nearest(weight, grid, limits=limits).dequantized()
        return ((back - weight) ** 2).reshape(*grid.groups(*weight.shape), -1).sum(-1)

    searched, whole = error(least_squares), error(min_max)
    assert (searched <= whole * (1 + 1e-6)).all()
    if grid.bits <= 4:
        assert searched.sum() < whole.sum()


def test_the_search_tries_the_ranges_that_it_says():
    values, grid = matrix(1, 16, seed=5), Grid(3, True, "channel", torch.float32)
    low, high = least_squares(values[:, None], grid, steps=11, narrowest=0.5)
    largest = float(values.abs().max())

    def error(share):
        each = oracle.grid_of([largest * share], 3, True, np.float32)
        return sum((oracle.on_grid(w, each)[1] - w) ** 2 for w in values[0].tolist())

    best = min(np.linspace(1.0, 0.5, 11), key=error)
    assert float(high) == pytest.approx(largest * best, rel=1e-5) and torch.equal(low, -high)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rows_of_zeros_and_a_row_of_one_sign(grid):
    weight = matrix()
    weight[1] = 0.0
    weight[2] = weight[2].abs()
    back = round_to_nearest(weight, grid).dequantized()
    assert torch.isfinite(back).all()
    assert (back[1] == 0).all()
    assert (round_to_nearest(torch.zeros(3, 24), grid).dequantized() == 0).all()


def test_tiny_and_huge_weights():
    tiny = round_to_nearest(matrix() * 1e-7, Grid(scales=torch.float32))
    usual = round_to_nearest(matrix(), Grid(scales=torch.float32))
    torch.testing.assert_close(tiny.dequantized() * 1e7, usual.dequantized(), rtol=1e-3, atol=0.02)
    assert torch.isfinite(round_to_nearest(matrix() * 1e-9, EIGHT_BITS).dequantized()).all()
    with pytest.raises(UserError, match=r"scales=torch\.float32"):
        round_to_nearest(matrix() * 1e9, EIGHT_BITS)
    assert torch.isfinite(round_to_nearest(matrix() * 1e9, Grid(scales=torch.float32)).scale).all()


@pytest.mark.parametrize("bits", [0, 1, 9, 17, -4, 4.0, "8", None])
def test_bits_that_are_none(bits):
    with pytest.raises(UserError, match="from 2 to 8"):
        Grid(bits)


@pytest.mark.parametrize("group", [0, -8, "row", 2.5, None])
def test_groups_that_are_none(group):
    with pytest.raises(UserError, match="group is"):
        Grid(group=group)


def test_other_refusals():
    with pytest.raises(UserError, match="a group of 7 does not divide 24 inputs: choose 8 or 12"):
        round_to_nearest(matrix(), Grid(group=7))
    with pytest.raises(UserError, match="scales is"):
        Grid(scales=torch.bfloat16)
    for bad in (math.nan, math.inf):
        weight = matrix()
        weight[2, 3] = bad
        with pytest.raises(UserError, match="1 of 144 weights are NaN"):
            round_to_nearest(weight, EIGHT_BITS)


def test_a_grid_in_words_and_back():
    for grid in GRIDS:
        assert Grid.from_json(grid.as_json()) == grid
    for wrong in ({}, {"bits": 8}, EIGHT_BITS.as_json() | {"scales": "float99"}, {"scales": 1}):
        with pytest.raises(UserError, match="describes no grid"):
            Grid.from_json(wrong)


def test_bits_for_each_weight():
    assert Grid(4, True, 32).bits_per_weight(64, 96) == 4.5
    assert Grid(4, False, 32).bits_per_weight(64, 96) == 4.75
    assert Grid(8, True, "channel", torch.float32).bits_per_weight(10, 64) == 8.5


# Packing -------------------------------------------------------------------------------------


@given(
    bits=some.integers(2, 8),
    count=some.integers(1, 19),
    rows=some.integers(1, 3),
    seed=some.integers(0, 99),
)
@settings(max_examples=40)
def test_packed_integers_come_back_and_fill_their_bits(bits, count, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, count), generator=generator)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [oracle.bits_of(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack(packed, bits, count).long(), codes)


def test_integers_that_do_not_fit_are_refused():
    for wrong in ([16], [-1]):
        with pytest.raises(UserError, match="4 bits hold 0 to 15"):
            pack(torch.tensor(wrong), 4)


@pytest.mark.parametrize("room", [packing, scaling])
def test_the_examples_in_the_docstrings(room):
    result = doctest.testmod(room)
    assert result.failed == 0 and result.attempted >= 2


# Layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_with_its_rounded_weights(grid, bias):
    quantized = round_to_nearest(matrix(), grid)
    offset = torch.arange(6.0) if bias else None
    layer = QuantizedLinear.of(quantized, offset)
    x = matrix(5, 24, seed=9).view(1, 5, 24)
    expected = torch.nn.functional.linear(x, quantized.dequantized(), offset)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.codes().to(torch.int16), quantized.codes)
    assert layer.codes().element_size() == 1
    assert layer(x.half()).dtype == torch.float16


@pytest.mark.parametrize("columns", [23, 24, 1])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_layer_holds_few_bytes_also_for_odd_sizes(bits, columns):
    layer = QuantizedLinear.of(round_to_nearest(matrix(7, columns), Grid(bits)))
    assert layer.weight.numel() == 7 * math.ceil(columns * bits / 8)
    assert layer.weight.element_size() == 1 and layer.weight.dim() == 3
    held = sum(each.numel() * each.element_size() for each in layer.state_dict().values())
    assert held == layer.weight.numel() + 2 * 7
    assert not list(layer.parameters())


@pytest.mark.parametrize("grid", [*GRIDS, Grid(4, True, 8)], ids=str)
def test_an_embedding_unpacks_the_rows_that_are_asked_for(grid):
    quantized = round_to_nearest(matrix(10), grid)
    table = QuantizedEmbedding.of(quantized)
    ids = torch.tensor([[3, 0, 9], [9, 9, 1]])
    assert torch.equal(table(ids), quantized.dequantized()[ids])
    assert table(ids[:, :0]).shape == (2, 0, 24)


def test_other_dtypes_and_copies_keep_integers_and_scales():
    layer = QuantizedLinear.of(round_to_nearest(matrix(), Grid(4, False, 8)), torch.ones(6))
    table = QuantizedEmbedding.of(round_to_nearest(matrix(), EIGHT_BITS))
    before = copy.deepcopy(layer.state_dict())
    layer, table = layer.to(torch.bfloat16), table.to(torch.bfloat16)
    assert layer.scale.dtype == torch.float16
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert table(torch.tensor([1])).dtype == torch.bfloat16
    assert layer(torch.ones(1, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16


# Activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True])
def test_a_product_of_integers_is_that_of_the_loops(static):
    weight, x = matrix(), matrix(5, 24, seed=2)
    x[3] = 0.0
    scale = static_scale(torch.full((24,), 0.5)) if static else None  # half of the rows clip
    layer = QuantizedLinear.of(
        round_to_nearest(weight, EIGHT_BITS),
        activations="static" if static else "dynamic",
        input_scale=scale,
    )
    expected = oracle.integer_layer(
        x.tolist(), weight.tolist(), static_scale=float(scale) if static else None
    )
    found = layer(x.view(1, 5, 24))[0]
    torch.testing.assert_close(found, torch.tensor(expected).float(), rtol=1e-4, atol=1e-4)
    assert (found[3] == 0).all()


@pytest.mark.parametrize("columns", [16, 1040, 1041, 5000])
def test_integer_products_are_exact(columns, monkeypatch):
    codes = torch.full((3, columns), 127.0)
    weight = torch.full((4, columns), 127, dtype=torch.int8)
    codes[1, ::2] = -127
    expected = (codes.double() @ weight.double().T).float()
    assert torch.equal(integer_product(codes, weight), expected)
    monkeypatch.setattr(engine, "has_integer_product", lambda device="cpu": False)
    assert torch.equal(integer_product(codes, weight), expected)


def test_half_precision_does_not_overflow_in_the_product():
    weight, x = torch.ones(4, 600), torch.full((2, 600), 0.01).half()
    layer = QuantizedLinear.of(round_to_nearest(weight, EIGHT_BITS), activations="dynamic")
    torch.testing.assert_close(layer(x), torch.full((2, 4), 6.0).half(), rtol=0.01, atol=0.0)


def test_activations_of_one_token_do_not_depend_on_its_neighbours():
    x = matrix(5, 24)
    scale = activation_scale(x)
    assert torch.equal(activation_scale(x[2:3]), scale[2:3])
    assert activation_codes(x, scale).abs().amax(-1).eq(127).all()


def test_activations_that_cannot_be():
    integers = round_to_nearest(matrix(), Grid(8, True, 8))
    with pytest.raises(UserError, match="symmetric grid"):
        QuantizedLinear.of(integers, activations="dynamic")
    with pytest.raises(UserError, match="symmetric grid"):
        QuantizedLinear.of(round_to_nearest(matrix(), Grid(8, False)), activations="dynamic")
    with pytest.raises(UserError, match="activations is 'always'"):
        QuantizedLinear.of(round_to_nearest(matrix(), EIGHT_BITS), activations="always")
    with pytest.raises(UserError, match="need calibration text"):
        QuantizedLinear.of(round_to_nearest(matrix(), EIGHT_BITS), activations="static")
    with pytest.raises(UserError, match="calibrate on a model that works"):
        static_scale(torch.tensor([1.0, math.nan]))


def test_dequantizing_is_a_function_of_tensors():
    codes = torch.tensor([[0, 1, 2, 3]])
    scale, zero = torch.tensor([[0.5, 2.0]]), torch.tensor([[1, 3]], dtype=torch.uint8)
    assert dequantize(codes, scale, zero).tolist() == [[-0.5, 0.0, -2.0, 0.0]]
    assert dequantize(codes, scale, None).tolist() == [[0.0, 0.5, 4.0, 6.0]]
