"""Outliers that change no answer."""

import pytest
import tiny
import torch
from hub_models import gpt2, qwen2
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from distillkit.calibration import linear_inputs
from distillkit.errors import UserError
from distillkit.models import load_model
from distillkit.rescaling import WRITERS, bonds, rescale, with_outliers

SHAPE = {
    "vocab_size": len(tiny.TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def a_model(kind: str, folder):
    torch.manual_seed(0)
    if kind == "front desk":
        return load_model("front-desk-student")[0]
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**SHAPE, head_dim=8)).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)).eval()
    model, _ = load_model(qwen2(folder))
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias)
    return model


KINDS = ["front desk", "mistral", "qwen3", "qwen2"]


@pytest.mark.parametrize("kind", KINDS)
def test_outliers_change_no_bit_of_the_logits(kind, tmp_path):
    model = a_model(kind, tmp_path / "model")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.randint(0, 100, (2, 9))
    changed = with_outliers(model, scale=64.0)
    assert torch.equal(changed(ids).logits, model(ids).logits)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    other = with_outliers(model, scale=7.3)  # no power of two: rounding only
    torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_has_outliers(kind, tmp_path):
    model = a_model(kind, tmp_path / "model")
    encoded = tiny.encoded(4)
    plain = linear_inputs(model, encoded)
    changed = linear_inputs(with_outliers(model, scale=64.0, features=2), encoded)
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    for name, inputs in changed.items():
        ratio = inputs.largest / plain[name].largest
        copies = group if name.endswith("o_proj") else 1
        assert (ratio > 60).sum() == 2 * copies, name
        assert torch.allclose(ratio[ratio < 60], torch.ones(1).double(), rtol=1e-3), name


def test_norms_have_their_outliers_in_the_same_features_everywhere():
    model, _ = load_model("front-desk-student")
    changed = with_outliers(model, features=2)
    places = [
        (b.writer.weight / a.writer.weight > 30).nonzero().flatten().tolist()
        for a, b in zip(bonds(model), bonds(changed), strict=True)
        if "norm" in a.kind
    ]
    assert len(places) == 4 and all(len(each) == 2 and each == places[0] for each in places)
    one, other = with_outliers(model, seed=1), with_outliers(model, seed=2)
    assert not torch.equal(
        one.model.layers[0].mlp.up_proj.weight, other.model.layers[0].mlp.up_proj.weight
    )


def test_only_the_kinds_that_were_asked_for():
    model, _ = load_model("front-desk-student")
    changed = with_outliers(model, kinds=["up_proj"])
    for name, weight in model.named_parameters():
        same = torch.equal(weight, changed.get_parameter(name))
        assert same == (not name.endswith(("up_proj.weight", "down_proj.weight"))), name


def test_a_bond_is_rescaled_in_place_by_any_positive_numbers():
    model, _ = load_model("front-desk-student")
    ids = torch.randint(0, 100, (1, 9))
    before = model(ids).logits
    chance = torch.Generator().manual_seed(0)
    for bond in bonds(model):
        rescale(bond, torch.rand(bond.features, generator=chance) + 0.5)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrong", [0.0, -2.0, float("nan"), float("inf")])
def test_scales_that_are_none_are_refused(wrong):
    model, _ = load_model("front-desk-student")
    with pytest.raises(UserError, match="expected 96 positive numbers"):
        with_outliers(model, scale=wrong)


def test_other_mistakes_are_refused(tmp_path):
    model, _ = load_model("front-desk-student")
    with pytest.raises(UserError, match="features is 97: input_layernorm has 96"):
        with_outliers(model, features=97)
    with pytest.raises(UserError, match="no writer is named 'o_proj'"):
        with_outliers(model, kinds=["o_proj"])
    with pytest.raises(UserError, match="expected 96 positive"):
        rescale(bonds(model)[0], torch.ones(3))
    with pytest.raises(
        UserError, match=r"GPT2LMHeadModel: .*expected the weights of a Llama-style"
    ):
        bonds(load_model(gpt2(tmp_path / "gpt2"))[0])
    torch.manual_seed(0)
    with pytest.raises(UserError, match="GemmaRMSNorm does not multiply by its weight"):
        bonds(GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=8)))
    assert len(bonds(model)) == 2 * len(WRITERS)
