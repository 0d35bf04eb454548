"""Unstructured pruning: against loops over floats, and on models."""

import copy
import doctest
import math

import oracles_pruning as oracles
import pytest
import tiny
import torch
from hub_models import gpt2, qwen2

from distillkit.calibration import Inputs, linear_inputs
from distillkit.chat import encode_rows
from distillkit.dialogues import front_desk
from distillkit.encoders import build_masked_lm
from distillkit.errors import UserError
from distillkit.evaluation import nll
from distillkit.models import ModelSize, load_model, save_model
from distillkit.pruning import (
    Magnitude,
    NofM,
    SparseGPT,
    Unstructured,
    Wanda,
    by_kind,
    by_layer,
    by_linear,
    importance,
    inverse_hessian_rows,
    magnitude_mask,
    methods,
    prunable,
    prune,
    prune_globally,
    sensitivity,
    sparsegpt_update,
    wanda_mask,
    weigh,
    zeros_of,
)
from distillkit.rescaling import with_outliers

METHODS = [Magnitude(), Wanda(), SparseGPT()]


@pytest.fixture(scope="module")
def desk():
    """(model, conversations): the shipped student, whose tests work on copies."""
    model, tokenizer = load_model("front-desk-student")
    return model, encode_rows(tokenizer, front_desk(36, seed=5))


def a_layer(seed, rows=5, columns=12, tokens=30, dtype=torch.float64):
    """(weight, inputs): inputs hang together, and some are larger than others."""
    chance = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=chance) + torch.eye(columns)
    sizes = torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=chance)]
    x = torch.randn(tokens, columns, generator=chance) @ mixing * sizes
    return torch.randn(rows, columns, generator=chance).to(dtype), x.to(dtype)


def read(x):
    exact = x.double()
    squares = exact.square().sum(0)
    return Inputs(len(x), squares, exact.abs().amax(0), exact.abs().sum(0), exact.T @ exact)


# --- against the papers ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.95])
def test_masks_are_those_of_the_loops(seed, sparsity):
    weight, x = a_layer(seed)
    pattern, rows = Unstructured(sparsity), weight.tolist()
    assert magnitude_mask(weight, pattern).tolist() == oracles.magnitude_mask(rows, sparsity)
    found = wanda_mask(weight, read(x).norms, pattern).tolist()
    assert found == oracles.wanda_mask(rows, x.tolist(), sparsity)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 6), (3, 3)])
def test_masks_n_of_m_are_those_of_the_loops(n, m):
    weight, x = a_layer(7)
    found = wanda_mask(weight, read(x).norms, NofM(n, m))
    assert found.tolist() == oracles.wanda_mask_n_of_m(weight.tolist(), x.tolist(), n, m)
    ones = [[1.0] * 12]
    alone = magnitude_mask(weight, NofM(n, m)).tolist()
    assert alone == oracles.wanda_mask_n_of_m(weight.tolist(), ones, n, m)
    assert {int(group.sum()) for group in found.unflatten(1, (-1, m)).flatten(0, 1)} == {n}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block_size", [1, 5, 12, 128])
def test_sparsegpt_is_that_of_the_loops(seed, block_size):
    weight, x = a_layer(seed)
    found, keep = sparsegpt_update(
        weight, read(x).products, Unstructured(0.5), block_size=block_size, damping=0.02
    )
    expected, mask = oracles.sparsegpt(
        weight.tolist(), x.tolist(), 0.02, block_size, lambda count: count // 2, False
    )
    assert keep.tolist() == mask
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8
    )
    assert ((found == 0) == ~keep).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 3)])
def test_sparsegpt_n_of_m_is_that_of_the_loops(n, m):
    weight, x = a_layer(3)
    found, keep = sparsegpt_update(weight, read(x).products, NofM(n, m), damping=0.02)
    expected, mask = oracles.sparsegpt(weight.tolist(), x.tolist(), 0.02, m, lambda _: m - n, True)
    assert keep.tolist() == mask
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("room", [methods, importance], ids=lambda room: room.__name__)
def test_examples_in_the_docstrings(room):
    result = doctest.testmod(room)
    assert result.attempted and not result.failed


def test_rows_of_the_root_are_those_of_the_inverses_of_what_is_left():
    _, x = a_layer(1)
    root = inverse_hessian_rows(read(x).products, 0.01)
    hessian = read(x).products.clone()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    for column in range(len(hessian)):
        left = torch.linalg.inv(hessian[column:, column:])[0]
        torch.testing.assert_close(root[column, column:], left / left[0].sqrt())


def test_inputs_that_were_never_there_are_cut_first():
    weight, x = a_layer(2)
    x[:, 3] = 0.0
    found, _ = sparsegpt_update(weight, read(x).products, Unstructured(0.5))
    assert found.isfinite().all() and (found[:, 3] == 0).all()
    keep = wanda_mask(weight, read(x).norms, Unstructured(0.1))
    assert not keep[:, 3].any() and keep.sum() == 5 * 11


# --- the error that is left, on tokens that were not calibrated on --------------------------------


def errors(weight, calibration, held_out, pattern):
    """‖(W − W') x‖² / ‖W x‖² on held-out x, of each method."""
    whole = held_out @ weight.T
    found = []
    for method in METHODS:
        pruned, _ = method(weight, calibration, pattern)
        found.append(float((whole - held_out @ pruned.T).square().sum() / whole.square().sum()))
    return found


def test_on_real_inputs_sparsegpt_loses_least(desk):
    model, encoded = desk
    held_out = linear_inputs(model, encoded[30:36], rows=True)
    for seed in range(5):
        read_here = linear_inputs(model, encoded[6 * seed : 6 * seed + 6], products=True)
        for name in ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
            weight, x = model.get_submodule(name).weight.detach(), held_out[name].rows
            for pattern in (Unstructured(0.5), NofM(2, 4)):
                magnitude, wanda, sparsegpt = errors(weight, read_here[name], x, pattern)
                assert sparsegpt < min(magnitude, wanda), (seed, name, pattern)


@pytest.mark.parametrize("seed", range(5))
def test_with_outliers_magnitude_loses_most(desk, seed):
    model, encoded = desk
    model = with_outliers(model, seed=seed)
    held_out = linear_inputs(model, encoded[30:34], rows=True)
    read_here = linear_inputs(model, encoded[4 * seed : 4 * seed + 4], products=True)
    name = "model.layers.0.mlp.gate_proj"
    weight = model.get_submodule(name).weight.detach()
    found = errors(weight, read_here[name], held_out[name].rows, Unstructured(0.5))
    assert found[0] > 1.2 * found[1] > 1.2 * found[2]


def test_outliers_do_not_move_wandas_masks_and_do_move_those_of_magnitude(desk):
    model, encoded = desk
    plain, loud = copy.deepcopy(model), with_outliers(model)
    masks = [
        [
            prune(copy.deepcopy(each), method, Unstructured(0.5), encoded[:5])
            for each in (plain, loud)
        ]
        for method in (Wanda(), Magnitude())
    ]
    (wanda, wanda_loud), (magnitude, magnitude_loud) = masks
    same = [
        float((wanda.keep[name] == wanda_loud.keep[name]).double().mean()) for name in wanda.keep
    ]
    assert min(same) > 0.999  # sums in another order
    moved = [(magnitude.keep[n] != magnitude_loud.keep[n]).double().mean() for n in magnitude.keep]
    assert max(moved) > 0.01


# --- whole models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NofM(2, 4)], ids=str)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_model_is_pruned_in_place_and_told_where(desk, method, pattern):
    model, encoded = copy.deepcopy(desk[0]), desk[1][:4]
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    masks = prune(model, method, pattern, encoded)
    assert set(masks.keep) == set(prunable(model)) and len(masks.keep) == 14
    assert masks.sparsity == pytest.approx(0.5, abs=0.01)
    assert masks.by_layer == pytest.approx(dict.fromkeys(masks.keep, 0.5), abs=0.01)
    for name, value in model.state_dict().items():
        mask = masks.keep.get(name.removesuffix(".weight"))
        if mask is None:
            assert torch.equal(value, whole[name]), name
            continue
        assert ((value == 0) == ~mask).all(), name
        if method.name != "SparseGPT":
            assert torch.equal(value, whole[name] * mask), name
        if isinstance(pattern, NofM):
            assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all(), name
    assert math.isfinite(nll(model, encoded).per_token)
    again = zeros_of(model)
    assert all(torch.equal(again.keep[name], mask) for name, mask in masks.keep.items())


def test_layers_are_pruned_on_what_the_pruned_ones_below_give(desk):
    """Wanda by hand: with inputs of the whole model the upper layer gets another mask."""
    model, encoded = desk[0], desk[1][:4]
    pruned = copy.deepcopy(model)
    masks = prune(pruned, Wanda(), Unstructured(0.7), encoded)
    name = "model.layers.1.self_attn.q_proj"
    weight, pattern = model.get_submodule(name).weight, Unstructured(0.7)
    at_once = wanda_mask(weight, linear_inputs(model, encoded)[name].norms, pattern)
    in_turn = wanda_mask(weight, linear_inputs(pruned, encoded)[name].norms, pattern)
    assert torch.equal(masks.keep[name], in_turn)
    assert not torch.equal(masks.keep[name], at_once)


def test_one_threshold_for_the_whole_model(desk):
    model = copy.deepcopy(desk[0])
    before = {name: linear.weight.detach().clone() for name, linear in prunable(model).items()}
    masks = prune_globally(model, 0.4)
    assert masks.sparsity == pytest.approx(0.4, abs=1e-5)
    cut = max(float(before[name][~mask].abs().max()) for name, mask in masks.keep.items())
    kept = min(float(before[name][mask].abs().min()) for name, mask in masks.keep.items())
    assert cut <= kept
    assert max(masks.by_layer.values()) - min(masks.by_layer.values()) > 0.05
    assert all(torch.equal(zeros_of(model).keep[name], mask) for name, mask in masks.keep.items())


def test_zeros_are_not_bytes(desk, tmp_path):
    model = copy.deepcopy(desk[0])
    _, tokenizer = load_model("front-desk-student")

    def in_a_file(name):
        save_model(model, tokenizer, tmp_path / name)
        return (tmp_path / name / "model.safetensors").stat().st_size

    before, file_before = weigh(model), in_a_file("whole")
    masks = prune(model, Magnitude(), Unstructured(0.5))
    after, file_after = weigh(model), in_a_file("pruned")
    assert file_before == file_after and before.saved == after.saved
    assert before.saved < file_before < before.saved + 10_000  # a header of names
    assert after.zeros - before.zeros == sum(int((~mask).sum()) for mask in masks.keep.values())
    assert before.without_zeros == before.saved == 4 * before.parameters
    embedded = model.get_input_embeddings().weight.numel()
    assert after.sparsity == pytest.approx(0.5 * (1 - embedded / after.parameters), abs=0.01)
    layers = 4 * (after.parameters - embedded)
    assert after.without_zeros == pytest.approx(4 * embedded + layers * (0.5 + 1 / 32), rel=0.01)


# --- the scan -------------------------------------------------------------------------------------


def test_a_scan_prunes_one_part_at_a_time_and_leaves_the_model_as_it_was(desk):
    model, encoded = desk[0], desk[1][:2]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patterns = [Unstructured(0.3), NofM(1, 4)]
    rows = sensitivity(
        model, encoded, patterns, method=Wanda(), calibration=desk[1][30:32], parts=by_layer
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    found = [(row.part, row.pattern) for row in rows]
    assert found == [("0", "30 %"), ("0", "1:4"), ("1", "30 %"), ("1", "1:4")]
    whole = nll(model, encoded).per_token
    alone = copy.deepcopy(model)
    norms = linear_inputs(model, desk[1][30:32])
    for name in by_layer(model)["1"]:
        linear = alone.get_submodule(name)
        linear.weight.data *= wanda_mask(linear.weight, norms[name].norms, NofM(1, 4))
    assert rows[3].nll == pytest.approx(nll(alone, encoded).per_token, rel=1e-5)
    assert rows[3].rise == pytest.approx(rows[3].nll - whole)
    assert rows[3].cut == 0.75 and rows[1].rise > rows[0].rise
    assert rows[3].weights == sum(
        alone.get_submodule(n).weight.numel() for n in by_layer(model)["1"]
    )


def test_parts_of_a_scan(desk):
    model = desk[0]
    assert list(by_linear(model)) == list(prunable(model))
    kinds = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
    assert set(by_kind(model)) == set(kinds.split())
    assert by_kind(model)["q_proj"] == [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    assert [len(names) for names in by_layer(model).values()] == [7, 7]


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 1.5, float("nan")])
def test_shares_that_are_none_are_refused(wrong):
    with pytest.raises(UserError, match="expected a share from 0 to below 1"):
        Unstructured(wrong)


@pytest.mark.parametrize(("n", "m"), [(5, 4), (0, 4), (-1, 4)])
def test_more_than_there_are_is_refused(n, m):
    with pytest.raises(UserError, match=f"found {n}:4: expected to keep 1 to 4"):
        NofM(n, m)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_columns_that_are_no_whole_groups_are_refused_before_anything_is_cut(desk, method):
    model = copy.deepcopy(desk[0])
    with pytest.raises(UserError, match="96 columns are no multiple of 5"):
        prune(model, method, NofM(2, 5), desk[1][:2])
    weight, x = a_layer(0)
    with pytest.raises(UserError, match="12 columns are no multiple of 5"):
        method(weight, read(x), NofM(2, 5))
    assert zeros_of(model).sparsity == 0.0


def test_missing_calibration_is_refused(desk):
    model = copy.deepcopy(desk[0])
    for method in (Wanda(), SparseGPT()):
        with pytest.raises(UserError, match="found 0 calibration conversations"):
            prune(model, method, Unstructured(0.5))
        with pytest.raises(UserError, match="found 0 calibration conversations"):
            sensitivity(model, desk[1][:1], [Unstructured(0.5)], method=method)
        with pytest.raises(UserError, match="inputs"):
            method(torch.ones(2, 4), None, Unstructured(0.5))
    assert zeros_of(model).sparsity == 0.0


def test_weights_that_are_no_numbers_are_refused(desk):
    model = copy.deepcopy(desk[0])
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    for method in METHODS:
        with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj holds NaN"):
            prune(model, method, Unstructured(0.5), desk[1][:1])
    with pytest.raises(UserError, match="holds NaN"):
        prune_globally(model, 0.5)


def test_settings_of_sparsegpt_that_cannot_be_are_refused():
    weight, x = a_layer(0)
    products = read(x).products
    for wrong, sentence in (
        ({"damping": 0.0}, "damping is 0.0"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"block_size": 0}, "block_size is 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            sparsegpt_update(weight, products, Unstructured(0.5), **wrong)
    with pytest.raises(UserError, match="has no inverse"):
        sparsegpt_update(weight, products * float("nan"), Unstructured(0.5))


def test_other_kinds_of_models_are_refused(tmp_path):
    others = [
        load_model(gpt2(tmp_path / "gpt2"))[0],
        build_masked_lm(ModelSize(16, 2, 2, 32), tiny.TOKENIZER),
    ]
    for other in others:
        with pytest.raises(UserError, match="expected the weights of a Llama-style model"):
            prune(other, Magnitude(), Unstructured(0.5))


def test_models_of_the_hub_are_pruned_with_their_biases_and_groups(tmp_path):
    model, _ = load_model(qwen2(tmp_path / "qwen2"))
    encoded = tiny.encoded(3)
    for method in METHODS:
        pruned = copy.deepcopy(model)
        assert prune(pruned, method, NofM(2, 4), encoded).sparsity == 0.5
        assert torch.equal(pruned.lm_head.weight, model.lm_head.weight)
