"""What linear layers read: against hooks on whole forward passes, one conversation at a time."""

import copy

import pytest
import torch
from hub_models import gpt2, qwen2, smollm2

from distillkit.calibration import layer_by_layer, linear_inputs, linears
from distillkit.chat import encode_rows
from distillkit.dialogues import front_desk
from distillkit.errors import UserError
from distillkit.models import layer_stack, load_model


def read_alone(model, encoded) -> dict[str, torch.Tensor]:
    """All that each linear layer reads, with no padding, layer stack or batch to go wrong."""
    prefix, stack = layer_stack(model)
    seen = {f"{prefix}.{name}": [] for name in linears(stack)}
    for name in seen:
        keep = seen[name].append
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, keep=keep: keep(args[0][0].detach().double())
        )
    with torch.no_grad():
        for row in encoded:
            model(torch.tensor([row["input_ids"]]), use_cache=False)
    return {name: torch.cat(rows) for name, rows in seen.items()}


def a_model(kind: str, folder):
    if kind == "front desk":
        return load_model("front-desk-student")
    return load_model({"qwen2": qwen2, "smollm2": smollm2}[kind](folder))


@pytest.mark.parametrize("kind", ["front desk", "qwen2", "smollm2"])
@pytest.mark.parametrize("batch_tokens", [1, 700])
def test_inputs_are_those_of_plain_forward_passes(kind, batch_tokens, tmp_path):
    model, tokenizer = a_model(kind, tmp_path / "model")
    encoded = encode_rows(tokenizer, front_desk(5, seed=1))
    found = linear_inputs(model, encoded, products=True, rows=True, batch_tokens=batch_tokens)
    expected = read_alone(model.eval(), encoded)
    assert list(found) == list(expected) and len(found) > 10
    for name, rows in expected.items():
        inputs = found[name]
        assert inputs.tokens == len(rows) == sum(len(row["input_ids"]) for row in encoded)
        torch.testing.assert_close(inputs.squares, rows.square().sum(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(inputs.norms, rows.norm(dim=0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(inputs.largest, rows.abs().amax(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inputs.means, rows.abs().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(inputs.products, rows.T @ rows, rtol=1e-4, atol=1e-3)
        assert inputs.rows.shape == rows.shape and inputs.rows.dtype == torch.float32


def test_each_layer_reads_what_the_changed_ones_below_give():
    model, tokenizer = load_model("front-desk-student")
    encoded = encode_rows(tokenizer, front_desk(3, seed=1))
    before = linear_inputs(model, encoded)
    read = {}

    def halve(name, linear, inputs):
        read[name] = inputs.squares
        linear.weight.mul_(0.5)

    layer_by_layer(model, encoded, halve)
    after = linear_inputs(copy.deepcopy(model), encoded)
    for name, squares in read.items():
        # Within one layer all are measured before the first is changed, so only the inputs of its
        # first three, which nothing of its own layer has written, are those of the changed model.
        changed = name.endswith(("q_proj", "k_proj", "v_proj"))
        assert torch.allclose(squares, after[name].squares, rtol=1e-4) == changed, name
        first = name.startswith("model.layers.0.")
        assert torch.allclose(squares, before[name].squares, rtol=1e-4) == first, name


def test_the_model_is_left_as_it_was():
    model, tokenizer = load_model("front-desk-student")
    model.train()
    weights = copy.deepcopy(model.state_dict())
    linear_inputs(model, encode_rows(tokenizer, front_desk(2, seed=1)))
    assert model.training
    assert all(not part._forward_pre_hooks for part in model.modules())
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())


def test_nothing_to_read_is_refused(tmp_path):
    model, _ = load_model("front-desk-student")
    with pytest.raises(UserError, match="found 0 calibration conversations"):
        linear_inputs(model, [])
    with pytest.raises(UserError, match="or an empty one"):
        linear_inputs(model, [{"input_ids": [], "labels": []}])
    convolved, _ = load_model(gpt2(tmp_path / "gpt2"))
    with pytest.raises(UserError, match="no linear layer"):
        linear_inputs(convolved, [{"input_ids": [1, 2], "labels": [-100, 2]}])
