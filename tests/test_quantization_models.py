"""Whole models of integers: what is replaced, saving, loading, refusals, and training for it."""

import copy
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import tiny
import torch
from hub_models import gpt2, qwen2, smollm2
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from distillkit.benchmark import bytes_on_disk
from distillkit.errors import UserError
from distillkit.evaluation import generate_replies
from distillkit.manifest import write_manifest
from distillkit.models import count_parameters, load_model, save_model
from distillkit.quantization import (
    EIGHT_BITS,
    FakeQuantizedLinear,
    Grid,
    Plan,
    QuantizedEmbedding,
    QuantizedLinear,
    TiedHead,
    convert,
    count_weights,
    fake_quantize,
    gptq,
    is_quantized,
    least_squares,
    memory_bytes,
    plan_of,
    quantize,
    seal,
    straight_through,
)
from distillkit.quantization.quantizing import stack_linears
from distillkit.training import DistillationArguments, DistillationTrainer

FOUR_BITS = Grid(4, False, 8)
IDS = torch.tensor([tiny.encoded(1)[0]["input_ids"]])


def untied(folder) -> None:
    torch.manual_seed(3)
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=len(tiny.TOKENIZER), hidden_size=32, intermediate_size=40, **shape
    )
    save_model(LlamaForCausalLM(config), tiny.TOKENIZER, folder)


def a_model(kind: str, folder):
    if kind == "tied":
        return tiny.teacher().eval(), tiny.TOKENIZER
    maker = {"untied": untied, "qwen2": qwen2, "smollm2": smollm2}[kind]
    maker(folder)
    model, tokenizer = load_model(folder)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model, tokenizer


def logits(model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def test_fixed_ids_are_in_every_vocabulary():
    assert int(IDS.max()) < 130


# What is replaced ----------------------------------------------------------------------------


WAYS = {
    "8 bits": {"grid": EIGHT_BITS},
    "4 bits": {"grid": FOUR_BITS},
    "3 and 6 bits": {"grid": Grid(3, True, 8), "embeddings": Grid(6, False)},
    "float table": {"grid": FOUR_BITS, "embeddings": None},
    "gptq": {"grid": FOUR_BITS, "rounding": gptq, "encoded": tiny.encoded(3)},
    "dynamic": {"grid": EIGHT_BITS, "activations": "dynamic"},
    "static": {"grid": EIGHT_BITS, "activations": "static", "encoded": tiny.encoded(3)},
}


@pytest.mark.parametrize(
    ("way", "kind"),
    [(way, "tied") for way in WAYS]
    + [(way, kind) for way in ("4 bits", "gptq") for kind in ("untied", "qwen2", "smollm2")],
)
def test_a_quantized_model_is_smaller_and_comes_back_from_disk(way, kind, tmp_path):
    model, tokenizer = a_model(kind, tmp_path / "model")
    before = logits(model)
    small = quantize(model, **WAYS[way])
    assert torch.equal(logits(model), before) and not is_quantized(model)
    assert memory_bytes(small) < 0.75 * memory_bytes(model)
    largest = {"8 bits": 0.1, "dynamic": 0.1, "3 and 6 bits": 1.0}.get(way, 0.5)
    assert (logits(small) - before).abs().mean() < largest * before.abs().mean()
    folder = save_model(small, tokenizer, tmp_path / "small")
    again, _ = load_model(folder)
    assert torch.equal(logits(again), logits(small))
    assert memory_bytes(again) == memory_bytes(small)
    assert (folder / "model.safetensors").stat().st_size < memory_bytes(small) + 8_000
    assert plan_of(again) == plan_of(small)
    assert plan_of(small).grid == WAYS[way]["grid"]


def test_a_loaded_model_can_be_saved_again(tmp_path):
    small = quantize(tiny.teacher(), FOUR_BITS)
    once, tokenizer = load_model(save_model(small, tiny.TOKENIZER, tmp_path / "one"))
    twice, _ = load_model(save_model(once, tokenizer, tmp_path / "two"))
    assert torch.equal(logits(twice), logits(small))


def test_transformers_reads_it_in_another_dtype(tmp_path):
    model, tokenizer = a_model("qwen2", tmp_path / "model")
    small = quantize(model, EIGHT_BITS, activations="static", encoded=tiny.encoded(3))
    folder = save_model(small, tokenizer, tmp_path / "small")
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    own, other = (each.model.layers[0].self_attn.q_proj for each in (half, small))
    assert half.model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(own.scale, other.scale) and own.scale.dtype == torch.float16
    assert torch.equal(own.input_scale, other.input_scale)
    assert logits(half).dtype == torch.bfloat16
    assert (logits(half) - logits(small)).abs().mean() < 0.1 * logits(small).abs().mean()


def test_weights_are_counted_whatever_they_are_stored_as(tmp_path):
    for kind in ("tied", "untied", "qwen2"):
        model, _ = a_model(kind, tmp_path / kind)
        assert count_weights(model) == count_parameters(model)
        assert count_weights(quantize(model, FOUR_BITS)) == count_parameters(model)
        assert count_weights(quantize(model, FOUR_BITS, embeddings=None)) == count_parameters(model)


def test_what_stands_where():
    model = tiny.teacher()
    names = list(stack_linears(model))
    grids = {names[0]: None, names[1]: EIGHT_BITS}
    small = quantize(model, FOUR_BITS, exceptions=grids)
    parts = dict(small.named_modules())
    assert type(parts[names[0]]) is torch.nn.Linear
    assert parts[names[1]].grid == EIGHT_BITS
    assert all(isinstance(parts[n], QuantizedLinear) for n in names[1:])
    assert all(parts[n].grid == FOUR_BITS for n in names[2:])
    assert isinstance(small.get_input_embeddings(), QuantizedEmbedding)
    assert isinstance(small.get_output_embeddings(), TiedHead)
    assert not [name for name in small.state_dict() if "lm_head" in name]
    assert plan_of(small).exceptions == grids
    assert plan_of(small) == Plan.from_json(plan_of(small).as_json())
    assert not small.training


def test_copies_have_a_head_that_reads_their_own_table():
    small = quantize(tiny.teacher(), EIGHT_BITS)
    other = copy.deepcopy(small)
    assert other.lm_head.table is other.get_input_embeddings()
    other.get_input_embeddings().scale.zero_()
    assert (logits(other) == 0).all() and not (logits(small) == 0).all()


def test_each_layer_is_rounded_on_what_the_rounded_ones_below_give():
    model, seen = tiny.teacher(), {}

    def watching(weight, grid, inputs):
        found = gptq(weight, grid, inputs)
        seen[weight.data_ptr()] = inputs.squares
        return found

    quantize(model, Grid(2, True), rounding=watching, encoded=tiny.encoded(3))
    coarse = list(seen.values())
    seen.clear()
    quantize(model, EIGHT_BITS, rounding=watching, encoded=tiny.encoded(3))
    fine = list(seen.values())
    assert len(coarse) == len(fine) == 14
    assert torch.equal(coarse[0], fine[0]) and not torch.allclose(coarse[7], fine[7], rtol=1e-2)


def test_what_cannot_be_quantized(tmp_path):
    model = tiny.teacher()
    with pytest.raises(UserError, match="a group of 7 does not divide 24 inputs") as raised:
        quantize(model, Grid(4, True, 7))
    assert "layers.0.self_attn.q_proj" in str(raised.value)
    with pytest.raises(UserError, match=r"exceptions name model\.layers\.9"):
        quantize(model, EIGHT_BITS, exceptions={"model.layers.9.mlp": None})
    with pytest.raises(UserError, match="quantized already"):
        quantize(quantize(model, EIGHT_BITS), EIGHT_BITS)
    with pytest.raises(UserError, match="pass calibration text"):
        quantize(model, EIGHT_BITS, rounding=gptq)
    with pytest.raises(UserError, match="need calibration text"):
        quantize(model, EIGHT_BITS, activations="static")
    with pytest.raises(UserError, match="or an empty one"):
        quantize(model, EIGHT_BITS, rounding=gptq, encoded=[{"input_ids": [], "labels": []}])
    with pytest.raises(UserError, match="symmetric grid"):
        quantize(model, FOUR_BITS, activations="dynamic")
    with pytest.raises(UserError, match="is not quantized"):
        plan_of(model)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj: 1 of \d+ weights are NaN"):
        quantize(model, EIGHT_BITS)
    other, _ = load_model(gpt2(tmp_path / "gpt2"))
    with pytest.raises(UserError, match="Conv1D"):
        quantize(other, EIGHT_BITS)


# On disk -------------------------------------------------------------------------------------

SPEAKS = """
import sys
from distillkit.evaluation import generate_replies
from distillkit.models import load_model
model, tokenizer = load_model(sys.argv[1])
print(generate_replies(model, tokenizer, [[3, 114, 108, 129, 1, 4]], max_reply_tokens=12))
"""
PLAIN = """
import sys, torch
if sys.argv[2] == "known":
    import distillkit.quantization
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(float(model(torch.arange(9)[None]).logits.double().sum()))
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    small = quantize(tiny.teacher(), FOUR_BITS)
    return small, save_model(small, tiny.TOKENIZER, tmp_path_factory.mktemp("saved") / "small")


def test_a_fresh_process_says_the_same(saved):
    small, folder = saved
    said = generate_replies(small, tiny.TOKENIZER, [[3, 114, 108, 129, 1, 4]], max_reply_tokens=12)
    fresh = run(SPEAKS, str(folder))
    assert fresh.stdout.strip() == str(said), fresh.stderr


def test_transformers_alone_refuses_the_folder_and_reads_it_with_us(saved):
    small, folder = saved
    refused = run(PLAIN, str(folder), "alone")
    assert refused.returncode != 0 and "Error" in refused.stderr and not refused.stdout
    read = run(PLAIN, str(folder), "known")
    with torch.no_grad():
        expected = float(small(torch.arange(9)[None]).logits.double().sum())
    assert float(read.stdout) == pytest.approx(expected, rel=1e-6), read.stderr


def test_bytes_on_disk_count_the_manifest(saved):
    _, folder = saved
    loaded = [
        path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")
    ]
    assert bytes_on_disk(folder) == sum(path.stat().st_size for path in loaded)
    assert (folder / "manifest.json").is_file()


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of the folder, to be damaged."""
    small, _ = saved
    return save_model(small, tiny.TOKENIZER, tmp_path / "small")


def edit(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("place", [0.3, 0.9])
def test_one_altered_byte_is_refused(damaged, name, place):
    content = bytearray((damaged / name).read_bytes())
    content[int(len(content) * place)] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(UserError, match=r"altered since it was written|damaged"):
        load_model(damaged)


def test_a_cut_file_is_refused_by_us_and_by_transformers_with_us(damaged):
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is cut off"):
        load_model(damaged)
    with pytest.raises(UserError, match="is cut off"):
        AutoModelForCausalLM.from_pretrained(damaged)


def test_files_that_are_missing_are_refused(damaged):
    (damaged / "generation_config.json").unlink()
    with pytest.raises(UserError, match=r"generation_config\.json is missing"):
        load_model(damaged)
    (damaged / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        load_model(damaged)
    write_manifest(damaged / "manifest.json", [damaged / "model.safetensors"])
    with pytest.raises(UserError, match=r"lists no config\.json"):
        load_model(damaged)
    (damaged / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        load_model(damaged)


@pytest.mark.parametrize("what", ["scale", "zero", "weight"])
def test_a_missing_tensor_is_refused_also_under_a_new_seal(damaged, what):
    edit(damaged, lambda tensors: tensors.pop(f"model.layers.0.mlp.up_proj.{what}"))
    seal(damaged)
    for load in (load_model, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(UserError, match=f"lacks model.layers.0.mlp.up_proj.{what}"):
            load(damaged)


def test_a_tensor_of_another_shape_is_refused_also_under_a_new_seal(damaged):
    name = "model.layers.0.mlp.up_proj.scale"
    edit(damaged, lambda tensors: tensors.update({name: tensors[name][:, :1].contiguous()}))
    seal(damaged)
    with pytest.raises(UserError, match="another form"):
        load_model(damaged)


def test_a_configuration_that_says_something_else_is_refused(damaged):
    path = damaged / "config.json"
    words = json.loads(path.read_text())
    for change in ({"grid": {"bits": 99}}, {"grid": None}, {"activations": "perhaps"}):
        path.write_text(
            json.dumps(words | {"quantization_config": {**words["quantization_config"], **change}})
        )
        seal(damaged)
        with pytest.raises(UserError):
            load_model(damaged)


def test_a_float_model_saved_over_a_quantized_one_leaves_no_manifest(damaged):
    save_model(tiny.teacher(), tiny.TOKENIZER, damaged)
    assert not (damaged / "manifest.json").exists()
    assert torch.equal(logits(load_model(damaged)[0]), logits(tiny.teacher()))


# Training for it -----------------------------------------------------------------------------

ARMS = {
    "4 bits": {"grid": FOUR_BITS},
    "searched": {
        "grid": Grid(3, True),
        "limits": partial(least_squares, steps=5),
        "embeddings": Grid(4, True, 8),
    },
    "float table": {"grid": FOUR_BITS, "embeddings": None},
    "dynamic": {"grid": EIGHT_BITS, "activations": "dynamic"},
    "static": {"grid": EIGHT_BITS, "activations": "static", "encoded": tiny.encoded(3)},
}


def test_gradients_pass_straight_through():
    x = torch.tensor([0.2, 0.9, 7.0], requires_grad=True)
    rounded = straight_through(x, x.round(), x.abs() < 5)
    assert rounded.tolist() == [0.0, 1.0, 7.0]
    (rounded * torch.tensor([2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [2.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("arm", "kind"), [(arm, "tied") for arm in ARMS] + [("4 bits", "untied"), ("static", "qwen2")]
)
def test_what_was_trained_for_is_what_the_integers_give(arm, kind, tmp_path):
    model, _ = a_model(kind, tmp_path / "model")
    fake = fake_quantize(model, **ARMS[arm]).eval()
    small = convert(fake)
    assert torch.equal(logits(fake), logits(small))
    assert not torch.equal(logits(fake), logits(model))
    if arm not in ("searched", "static"):  # which quantize has no word for, or calibrates later
        assert torch.equal(logits(small), logits(quantize(model, **ARMS[arm])))


def test_a_fake_layer_has_the_gradient_of_the_layer_with_rounded_weights():
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 5)
    x = torch.randn(3, 24, requires_grad=True)
    for activations in (None, "dynamic"):
        fake = FakeQuantizedLinear(copy.deepcopy(linear), EIGHT_BITS, activations=activations)
        twin = copy.deepcopy(linear)
        twin.weight.data = fake.quantized().dequantized()
        own, other = (
            torch.autograd.grad(layer(x).square().sum(), [x, layer.weight, layer.bias])
            for layer in (fake, twin)
        )
        for one, two in zip(own, other, strict=True):
            torch.testing.assert_close(one, two, rtol=0.05, atol=0.05)


def test_a_static_scale_passes_no_gradient_to_what_it_clips():
    linear = torch.nn.Linear(8, 3, bias=False)
    fake = FakeQuantizedLinear(
        linear, EIGHT_BITS, activations="static", input_scale=torch.tensor(1 / 127)
    )
    x = torch.tensor([[0.5, 0.9, 3.0, -3.0, 0.1, 0.2, 0.3, 0.4]], requires_grad=True)
    fake(x).sum().backward()
    assert (x.grad[0, 2:4] == 0).all() and (x.grad[0, [0, 1, 4]] != 0).all()


def test_the_trainer_teaches_a_student_that_rounds(tmp_path):
    teacher, rows = tiny.teacher(), tiny.encoded(24)
    start = tiny.student()
    student = fake_quantize(start, Grid(2, True), embeddings=Grid(3, True))
    assert student.lm_head.weight is student.get_input_embeddings().weight
    args = DistillationArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=15,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        report_to="none",
        alpha=1.0,
        temperature=1.0,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(
        student,
        teacher,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny.TOKENIZER,
    )

    def divergence(model) -> float:
        with torch.no_grad():
            p, q = (m(IDS).logits.log_softmax(-1) for m in (teacher, model))
        return float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))

    before = divergence(convert(student))
    trainer.train()
    small = convert(student)
    assert torch.equal(logits(student.eval()), logits(small))
    assert divergence(small) < 0.8 * before
    folder = save_model(student, tiny.TOKENIZER, tmp_path / "floats")
    floats, _ = load_model(folder)
    assert type(floats.model.layers[0].mlp.up_proj) is torch.nn.Linear
    again, _ = load_model(save_model(small, tiny.TOKENIZER, tmp_path / "small"))
    assert torch.equal(logits(again), logits(small))


def test_a_model_of_integers_is_no_student(tmp_path):
    args = DistillationArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="quantized"):
        DistillationTrainer(
            quantize(tiny.student(), EIGHT_BITS),
            tiny.teacher(),
            args=args,
            train_dataset=tiny.encoded(2),
            processing_class=tiny.TOKENIZER,
        )


def test_what_training_for_it_refuses():
    with pytest.raises(UserError, match="use quantize"):
        convert(tiny.teacher())
    with pytest.raises(UserError, match="need calibration text"):
        fake_quantize(tiny.teacher(), EIGHT_BITS, activations="static")
    with pytest.raises(UserError, match="a group of 7"):
        fake_quantize(tiny.teacher(), Grid(4, True, 7))
