"""What is cut with structure: the same as masking it, and the same in a fresh process."""

import copy
import sys

import pytest
import tiny
import torch
from hub_models import qwen2
from trainers import run_here
from transformers import Qwen3Config, Qwen3ForCausalLM

from distillkit.calibration import linear_inputs
from distillkit.errors import UserError
from distillkit.evaluation import nll
from distillkit.models import load_model, save_model, student_from_layers
from distillkit.narrowing import narrowed
from distillkit.pruning import (
    Scores,
    layer_changes,
    layer_nlls,
    most_important,
    smaller_vocabulary,
    weigh,
    written_by_heads_and_neurons,
)
from distillkit.rescaling import with_outliers

IDS = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))


def qwen3(*, tied=True):
    """Eight query heads in two groups, wider than the hidden state: Qwen3 has heads like these."""
    config = Qwen3Config(
        vocab_size=len(tiny.TOKENIZER),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


def masked(model, kept, width):
    """The whole model with zeros in the place of the heads and neurons that were cut."""
    model = copy.deepcopy(model)
    for layer, heads, neurons in zip(model.model.layers, kept.heads, kept.neurons, strict=True):
        out, down = layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight
        columns = [head * width + i for head in heads for i in range(width)]
        for weight, stays in ((out, columns), (down, neurons)):
            gone = torch.ones(weight.shape[1], dtype=torch.bool)
            gone[stays] = False
            weight.data[:, gone] = 0.0
    return model


# --- heads and neurons ----------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_cutting_heads_and_neurons_is_masking_them(tied):
    model = qwen3(tied=tied)
    scores = written_by_heads_and_neurons(model, tiny.encoded(4))
    student, kept = narrowed(model, heads=4, feed_forward=25, scores=scores)
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (4, 1)
    assert weigh(student).saved < weigh(model).saved and weigh(student).zeros == 0
    torch.testing.assert_close(student(IDS).logits, masked(model, kept, 8)(IDS).logits)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "front desk"])
def test_scores_are_what_is_written_token_by_token(kind, tmp_path):
    model = {
        "qwen3": qwen3,
        "qwen2": lambda: load_model(qwen2(tmp_path / "qwen2"))[0],
        "front desk": lambda: load_model("front-desk-student")[0],
    }[kind]()
    encoded = tiny.encoded(2)
    scores = written_by_heads_and_neurons(model, encoded)
    read = linear_inputs(model, encoded, rows=True)
    count = model.config.num_attention_heads
    for index, layer in enumerate(model.model.layers):
        x = read[f"model.layers.{index}.self_attn.o_proj"].rows.double()
        weight, width = layer.self_attn.o_proj.weight.detach().double(), x.shape[1] // count
        for head in range(count):
            columns = slice(head * width, (head + 1) * width)
            written = x[:, columns] @ weight[:, columns].T
            assert scores.heads[index][head] == pytest.approx(float(written.square().sum()))
        x = read[f"model.layers.{index}.mlp.down_proj"].rows.double()
        weight = layer.mlp.down_proj.weight.detach().double()
        for neuron in (0, 7, x.shape[1] - 1):
            written = torch.outer(x[:, neuron], weight[:, neuron])
            assert scores.neurons[index][neuron] == pytest.approx(float(written.square().sum()))


def test_the_largest_scores_stay_and_groups_go_as_one():
    model = qwen3()
    heads = [torch.tensor([9.0, 0, 0, 0, 3, 3, 3, 3]), *[torch.arange(8.0, 0, -1)] * 2]
    neurons = [torch.arange(40.0)] * 3
    _, kept = narrowed(model, heads=4, feed_forward=3, scores=Scores(heads, neurons))
    assert kept.heads == [[4, 5, 6, 7], [0, 1, 2, 3], [0, 1, 2, 3]]  # 12 is more than 9
    assert kept.neurons == [[37, 38, 39]] * 3
    student = student_from_layers(model, [1, 2], heads=4, scores=Scores(heads=heads))
    weight = model.model.layers[1].self_attn.q_proj.weight
    assert torch.equal(student.model.layers[0].self_attn.q_proj.weight, weight[:32])
    width = torch.zeros(32)
    width[[5, 30]] = 1.0
    assert narrowed(model, width=2, scores=Scores(width=width))[1].width == [5, 30]


def test_measured_scores_do_not_fall_for_outliers_and_sizes_of_weights_do():
    """Up × 32 and down / 32 is the same neuron: its weights look far larger."""
    model = qwen3()
    loud = with_outliers(model, kinds=["up_proj"], features=8)
    encoded = tiny.encoded(4)

    def neurons(each, scores):
        return narrowed(each, feed_forward=20, scores=scores)[1].neurons

    measured = [neurons(m, written_by_heads_and_neurons(m, encoded)) for m in (model, loud)]
    assert measured[0] == measured[1]
    assert neurons(model, None) != neurons(loud, None)


# --- layers ---------------------------------------------------------------------------------------


def test_a_layer_that_does_nothing_is_found_and_cut_for_nothing():
    model = qwen3()
    idle = model.model.layers[1]
    idle.self_attn.o_proj.weight.data.zero_()
    idle.mlp.down_proj.weight.data.zero_()
    encoded = tiny.encoded(4)
    changes, nlls = layer_changes(model, encoded), layer_nlls(model, encoded)
    assert changes[1] == pytest.approx(0.0, abs=1e-6) and min(changes[0], changes[2]) > 0.01
    assert nlls[1] == pytest.approx(nll(model, encoded).per_token, rel=1e-5)
    kept = most_important(changes, 2)
    assert kept == [0, 2]
    assert torch.equal(student_from_layers(model, kept)(IDS).logits, model(IDS).logits)


def test_changes_are_those_of_plain_passes():
    model, encoded = qwen3(), tiny.encoded(3)
    sums, tokens = torch.zeros(2), 0
    for row in encoded:
        with torch.no_grad():
            states = model(
                torch.tensor([row["input_ids"]]), output_hidden_states=True
            ).hidden_states
        for layer in range(2):  # the last one's output is shown behind the norm
            for before, after in zip(states[layer][0], states[layer + 1][0], strict=True):
                cosine = before @ after / (before.norm() * after.norm())
                sums[layer] += 1 - cosine
        tokens += len(row["input_ids"])
    assert layer_changes(model, encoded)[:2] == pytest.approx((sums / tokens).tolist(), rel=1e-4)
    assert layer_nlls(model, encoded)[0] == pytest.approx(
        nll(student_from_layers(model, [1, 2]), encoded).per_token
    )


# --- in a fresh process ---------------------------------------------------------------------------

FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(40)[None]
    torch.save(model(ids).logits.detach(), folder + "/logits.pt")
"""


def test_what_was_cut_is_the_same_in_a_fresh_process(tmp_path):
    model, desk = qwen3(), load_model("front-desk-student")
    scores = written_by_heads_and_neurons(model, tiny.encoded(2))
    cut = {
        "heads": (narrowed(model, heads=4, scores=scores)[0], tiny.TOKENIZER),
        "neurons": (narrowed(model, feed_forward=7, scores=scores)[0], tiny.TOKENIZER),
        "layers": (student_from_layers(model, [0, 2]), tiny.TOKENIZER),
        "words": smaller_vocabulary(*desk, range(300))[:2],
    }
    folders = [str(save_model(*pair, tmp_path / name)) for name, pair in cut.items()]
    run_here([sys.executable, "-c", FRESH, *folders], check=True)
    for (name, (student, _)), folder in zip(cut.items(), folders, strict=True):
        logits = student(torch.arange(40)[None]).logits
        assert torch.equal(torch.load(f"{folder}/logits.pt"), logits), name


# --- what cannot be -------------------------------------------------------------------------------


def test_what_cannot_be_cut_is_refused():
    model, encoded = qwen3(), tiny.encoded(2)
    scores = written_by_heads_and_neurons(model, encoded)
    with pytest.raises(UserError, match="heads is 0: expected 1 to the 8"):
        narrowed(model, heads=0, scores=scores)
    with pytest.raises(UserError, match="heads is 2: 4 queries share a key"):
        narrowed(model, heads=2, scores=scores)
    with pytest.raises(UserError, match=r"scores.heads has the shapes \[\(2,\)\]: .* 3 times \(8,"):
        narrowed(model, heads=4, scores=Scores(heads=[torch.ones(2)]))
    with pytest.raises(UserError, match=r"scores.neurons .* 3 times \(40,\)"):
        narrowed(model, feed_forward=4, scores=Scores(neurons=scores.neurons[:2]))
    with pytest.raises(UserError, match=r"scores.width .* 1 times \(32,\)"):
        narrowed(model, width=4, scores=Scores(width=torch.ones(3)))
    with pytest.raises(UserError, match="is NaN"):
        narrowed(model, feed_forward=4, scores=Scores(neurons=[torch.full((40,), torch.nan)] * 3))
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="is NaN"):
        narrowed(model, feed_forward=4)


def test_nothing_to_measure_is_refused():
    model = qwen3()
    with pytest.raises(UserError, match="found 0 calibration conversations"):
        written_by_heads_and_neurons(model, [])
    with pytest.raises(UserError, match="found no conversation"):
        layer_changes(model, [])
    with pytest.raises(UserError, match="found no assistant token"):
        layer_nlls(model, [])
    with pytest.raises(UserError, match="has one layer"):
        layer_changes(tiny.student(), tiny.encoded(1))
    for count in (0, 4):
        with pytest.raises(UserError, match=f"{count} of 3 cannot be kept"):
            most_important([1.0, 2.0, 3.0], count)
