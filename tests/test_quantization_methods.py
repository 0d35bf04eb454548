"""GPTQ, AWQ and SmoothQuant: against loops from the papers, and on text they were not fitted to."""

from functools import partial

import numpy as np
import oracles_quantization as oracle
import pytest
import tiny
import torch
from hub_models import gpt2, qwen2

from distillkit.calibration import Inputs, linear_inputs
from distillkit.errors import UserError
from distillkit.models import build_model, load_model
from distillkit.quantization import (
    EIGHT_BITS,
    Grid,
    activation_aware,
    activation_aware_scale,
    gptq,
    inverse_root,
    least_squares,
    output_error,
    quantize,
    round_to_nearest,
    smooth,
    smoothing_scale,
)
from distillkit.quantization.quantizing import stack_linears
from distillkit.rescaling import WRITERS, Bond, bonds, with_outliers

SEEDS = range(5)
FOUR_BITS = Grid(4, True, 8)


def read(rows: torch.Tensor) -> Inputs:
    exact = rows.double()
    return Inputs(
        len(rows),
        exact.square().sum(0),
        exact.abs().amax(0),
        exact.abs().sum(0),
        exact.T @ exact,
        rows,
    )


def layer_and_inputs(seed: int, columns=12, outputs=5, tokens=40):
    """A matrix, and inputs whose features are of different sizes and go together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    rows = torch.randn(tokens, columns, generator=generator) @ mixing
    rows = rows * torch.rand(columns, generator=generator)
    return torch.randn(outputs, columns, generator=generator), rows


def a_teacher(seed: int):
    model = build_model(tiny.TEACHER, tiny.TOKENIZER, seed=seed)
    for parameter in model.parameters():
        parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model.eval()


# GPTQ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("grid", "by_activation"),
    [
        (Grid(3, True, "channel"), False),
        (Grid(4, False, 4), False),
        (Grid(3, False, 4), True),
        (Grid(3, True, "channel"), True),
    ],
    ids=str,
)
def test_gptq_is_optimal_brain_quantization_in_a_fixed_order(grid, by_activation, seed):
    weight, rows = layer_and_inputs(seed)
    inputs = read(rows)
    order = list(range(12))
    if by_activation:
        order.sort(key=lambda column: -float(rows[:, column].double().square().sum()))
    group = 12 if grid.group == "channel" else grid.group
    expected, back = oracle.optimal_brain_quantization(
        weight.tolist(),
        inputs.products.tolist(),
        grid.bits,
        grid.symmetric,
        group,
        0.01,
        order,
    )
    found = gptq(weight, grid, inputs, by_activation=by_activation)
    assert np.array_equal(found.codes.numpy(), expected)
    np.testing.assert_allclose(found.dequantized().numpy(), back, rtol=1e-5, atol=1e-6)


def test_the_root_is_one_of_the_damped_inverse():
    products = read(layer_and_inputs(0)[1]).products
    root = inverse_root(products, 0.05, torch.arange(12))
    damped = 2 * products + 0.05 * 2 * products.diagonal().mean() * torch.eye(12)
    torch.testing.assert_close(root.T @ root @ damped, torch.eye(12).double())
    assert torch.equal(root, root.triu())


def test_features_that_were_always_zero_harm_nothing():
    weight, rows = layer_and_inputs(0)
    rows[:, 3] = 0.0
    found = gptq(weight, FOUR_BITS_OF_12, read(rows))
    assert torch.isfinite(found.dequantized()).all()
    silent = gptq(weight, FOUR_BITS_OF_12, read(torch.zeros(4, 12)))
    assert torch.equal(silent.codes, round_to_nearest(weight, FOUR_BITS_OF_12).codes)


FOUR_BITS_OF_12 = Grid(4, True, 4)


def test_what_gptq_refuses():
    weight, rows = layer_and_inputs(0)
    with pytest.raises(UserError, match="pass calibration text"):
        gptq(weight, FOUR_BITS_OF_12, None)
    with pytest.raises(UserError, match="larger damping"):
        gptq(weight, FOUR_BITS_OF_12, read(rows[:2]), damping=0.0)
    with pytest.raises(UserError, match="NaN"):
        gptq(weight * torch.nan, FOUR_BITS_OF_12, read(rows))


# AWQ and SmoothQuant: the scales --------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_scale_of_awq_is_the_best_of_all_that_the_paper_tries(seed):
    weight, rows = layer_and_inputs(seed)
    rows[:, 5] *= 30
    reader = torch.nn.Linear(12, 5, bias=False)
    reader.weight.data = weight
    bond = Bond("norm", 0, torch.nn.LayerNorm(12), (reader,))
    grid = Grid(3, True, 4)
    found = activation_aware_scale(bond, [read(rows)], grid, steps=10)
    expected, errors = oracle.activation_aware(rows.tolist(), weight.tolist(), 3, True, 4, 10)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert min(errors) < errors[0]  # this test can tell the best one from plain rounding


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_scale_of_smoothquant(alpha):
    weight, rows = layer_and_inputs(1)
    found = smoothing_scale(read(rows).largest, weight, alpha)
    expected = oracle.smoothing(rows.tolist(), weight.tolist(), alpha)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_features_that_nobody_writes_or_reads_keep_their_scale():
    weight = torch.tensor([[1.0, 0.0, 2.0]])
    assert smoothing_scale(torch.tensor([0.0, 5.0, 8.0]), weight, 0.5).tolist() == [1.0, 1.0, 2.0]


def test_the_error_of_a_change_is_that_of_the_loops():
    weight, rows = layer_and_inputs(2)
    other = weight + 0.1
    expected = oracle.squared_error(rows.tolist(), weight.tolist(), other.tolist())
    assert output_error(weight - other, read(rows)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="products=True"):
        output_error(weight, Inputs(1, weight[0], weight[0], weight[0]))


# Whole models --------------------------------------------------------------------------------


def a_model(kind: str, folder):
    if kind == "llama":
        return a_teacher(1)
    model, _ = load_model(qwen2(folder))  # a bias, a wide head, three queries to a key
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_moving_scale_leaves_the_function_as_it_was(kind, tmp_path):
    model, encoded = a_model(kind, tmp_path / "model"), tiny.encoded(6)
    outlying = with_outliers(model, scale=50.0)
    ids = torch.tensor([encoded[0]["input_ids"]])
    for moved in (
        smooth(outlying, encoded),
        activation_aware(outlying, encoded, FOUR_BITS),
    ):
        torch.testing.assert_close(moved(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
        changed = [
            name
            for name, linear in stack_linears(moved).items()
            if not torch.equal(linear.weight, stack_linears(outlying)[name].weight)
        ]
        assert len(changed) >= 2 * 5


def test_smoothing_takes_the_outliers_off_the_norms():
    model, encoded = with_outliers(a_teacher(0), scale=64.0), tiny.encoded(6)
    before, after = (linear_inputs(each, encoded) for each in (model, smooth(model, encoded)))
    for name, inputs in before.items():
        spread = inputs.largest.max() / inputs.largest.median()
        smoothed = after[name].largest.max() / after[name].largest.median()
        if name.endswith(("q_proj", "up_proj")):
            assert smoothed < spread / 4, name


def test_smoothing_takes_outliers_elsewhere_where_it_is_told_to():
    model, encoded = with_outliers(a_teacher(0), kinds=["up_proj"]), tiny.encoded(6)
    name = "model.layers.1.mlp.down_proj"

    def spread(each):
        largest = linear_inputs(each, encoded)[name].largest
        return float(largest.max() / largest.median())

    assert spread(smooth(model, encoded)) > 0.9 * spread(model)
    assert spread(smooth(model, encoded, kinds=WRITERS)) < spread(model) / 2
    with pytest.raises(UserError, match="kinds has head"):
        smooth(model, encoded, kinds=["head"])


def lost(model, quantized, encoded) -> float:
    """The squared error of every layer's output on some text, as a part of the output's square."""
    inputs, total = linear_inputs(model, encoded, products=True), 0.0
    for name, linear in stack_linears(model).items():
        change = linear.weight.detach() - quantized.get_submodule(name).dequantized()
        whole = output_error(linear.weight.detach(), inputs[name])
        total += output_error(change, inputs[name]) / whole
    return total


@pytest.mark.parametrize("seed", SEEDS)
def test_on_held_out_text_gptq_and_awq_lose_less_than_plain_rounding(seed):
    model = with_outliers(a_teacher(seed), seed=seed)
    fitted, held_out = tiny.encoded(12, seed=seed), tiny.encoded(12, seed=100 + seed)
    scaled = activation_aware(model, fitted, FOUR_BITS)
    plain = lost(model, quantize(model, FOUR_BITS), held_out)
    feedback = lost(model, quantize(model, FOUR_BITS, rounding=gptq, encoded=fitted), held_out)
    aware = lost(scaled, quantize(scaled, FOUR_BITS), held_out)
    assert feedback < 0.95 * plain
    assert aware < 0.95 * plain


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_on_held_out_text_smoothing_helps_quantized_activations(activations, seed):
    norms = ("input_layernorm", "post_attention_layernorm")
    model = with_outliers(a_teacher(seed), seed=seed, kinds=norms, scale=64.0)
    fitted, held_out = tiny.encoded(12, seed=seed), tiny.encoded(4, seed=100 + seed)

    def error(each):
        small = quantize(each, EIGHT_BITS, activations=activations, encoded=fitted)
        ids = [torch.tensor([row["input_ids"]]) for row in held_out]
        with torch.no_grad():
            return sum(float((small(i).logits - model(i).logits).square().mean()) for i in ids)

    assert error(smooth(model, fitted)) < 0.9 * error(model)


def test_methods_go_together():
    model, encoded = with_outliers(a_teacher(0)), tiny.encoded(4)
    limits = partial(least_squares, steps=6)
    scaled = activation_aware(model, encoded, FOUR_BITS, steps=5, limits=limits)
    rounding = partial(gptq, by_activation=True, limits=limits, damping=0.02)
    both = quantize(scaled, FOUR_BITS, rounding=rounding, encoded=encoded)
    assert lost(scaled, both, encoded) < lost(scaled, quantize(scaled, FOUR_BITS), encoded)


def test_what_moving_scale_refuses(tmp_path):
    model, encoded = a_teacher(0), tiny.encoded(2)
    with pytest.raises(UserError, match="found 0 calibration conversations"):
        smooth(model, [])
    with pytest.raises(UserError, match="found 0 calibration conversations"):
        activation_aware(model, [], FOUR_BITS)
    with pytest.raises(UserError, match=r"alpha is 1\.5"):
        smooth(model, encoded, alpha=1.5)
    with pytest.raises(UserError, match="a group of 7 does not divide"):
        activation_aware(model, encoded, Grid(4, True, 7))
    with pytest.raises(UserError, match="move scale before"):
        smooth(quantize(model, EIGHT_BITS), encoded)
    other, _ = load_model(gpt2(tmp_path / "gpt2"))
    with pytest.raises(UserError):
        smooth(other, encoded)


def test_every_bond_of_a_model_was_searched():
    model, encoded = with_outliers(a_teacher(2)), tiny.encoded(6)
    scaled = activation_aware(model, encoded, Grid(3, True, 8))
    moved = [
        not torch.equal(one.writer.weight, other.writer.weight)
        for one, other in zip(bonds(model), bonds(scaled), strict=True)
    ]
    assert all(moved)
