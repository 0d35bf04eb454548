"""An exported model is the model: same logits, same text, in every way that a model is called."""

import shutil
import sys
import tomllib
from pathlib import Path

import hub_models
import pytest
import torch
from exports import ROWS, ids_of, in_a_fresh_process, logits_of, student
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from distillkit.arithmetic import Shape
from distillkit.benchmark import bytes_on_disk, measure_speed
from distillkit.chat import encode_prompt, encode_rows
from distillkit.decoding import generate_replies
from distillkit.errors import UserError
from distillkit.evaluation import agreement, nll, task_success
from distillkit.export import (
    ONNX_KINDS,
    check_export,
    export_onnx,
    load_onnx,
    onnx_parts,
    quantize_onnx,
)
from distillkit.export import onnx_model as runtime
from distillkit.export.needed import WANTED
from distillkit.model_files import load_model
from distillkit.models import ModelSize, build_model, build_shape
from distillkit.speaking import Speaker

pytest.importorskip("onnx", reason="pip install 'onnx>=1.18,<1.23' to test the export to ONNX")
pytest.importorskip("onnxruntime", reason="pip install 'onnxruntime>=1.20' to run what is exported")

BOUND = 1e-4  # of logits that reach 20: float32 summed in another order


@pytest.fixture(scope="module")
def original():
    return student()


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    return export_onnx(*original, tmp_path_factory.mktemp("onnx") / "student")


@pytest.fixture(scope="module")
def exported(folder):
    return load_onnx(folder)


@pytest.fixture(scope="module")
def smaller(folder, tmp_path_factory):
    """The folder in fewer bits, by kind."""
    place = tmp_path_factory.mktemp("smaller")
    return {kind: quantize_onnx(folder, place / kind, kind) for kind in ONNX_KINDS}


def difference(model, exported, ids):
    return float((logits_of(model, ids) - logits_of(exported, ids)).abs().max())


# The same numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 37), (3, 1), (3, 37), (2, 129)])
def test_logits_are_those_of_the_model(original, exported, batch, length):
    model, _ = original
    assert difference(model, exported, ids_of(model, batch, length)) < BOUND


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_only_the_logits_that_are_asked_for(original, exported, keep):
    model, _ = original
    ids = ids_of(model, 2, 9)
    logits = logits_of(exported, ids, logits_to_keep=keep)
    assert logits.shape[1] == (keep or 9)
    torch.testing.assert_close(logits, logits_of(model, ids)[:, -keep:], atol=BOUND, rtol=0)


def test_a_long_prompt_then_steps_and_blocks(original, exported):
    """Past several rooms of slots, and with blocks between the steps."""
    model, _ = original
    ids = ids_of(model, 2, 213)
    wanted, cache = logits_of(model, ids), exported.new_cache()
    read = 0
    for width in [130, *[1] * 70, 5, 1, 7]:
        block = ids[:, read : read + width]
        found = logits_of(exported, block, past_key_values=cache, logits_to_keep=1)
        read += width
        torch.testing.assert_close(found[:, 0], wanted[:, read - 1], atol=BOUND, rtol=0)
    assert read == cache.get_seq_length() == 213


def test_rows_of_the_cache_are_selected(original, exported):
    model, _ = original
    ids, cache = ids_of(model, 3, 12), exported.new_cache()
    for at in range(8):
        logits_of(exported, ids[:, at : at + 1], past_key_values=cache)
    cache.batch_select_indices(torch.tensor([2, 0]))
    for at in (8, 9):
        found = logits_of(exported, ids[[2, 0], at : at + 1], past_key_values=cache)
    torch.testing.assert_close(found, logits_of(model, ids)[[2, 0], 9:10], atol=BOUND, rtol=0)
    with pytest.raises(UserError, match="3 conversations and a cache of 2"):
        logits_of(exported, ids[:, 10:11], past_key_values=cache)


def test_a_block_is_read_in_parts_that_fit_into_memory(original, exported, monkeypatch):
    model, _ = original
    ids, wanted = ids_of(model, 3, 50), logits_of(model, ids_of(model, 3, 50))
    monkeypatch.setattr(runtime, "_SCORES_AT_ONCE", 3 * 4 * 80)
    for settings in ({}, {"use_cache": False}, {"logits_to_keep": 2}):
        found = logits_of(exported, ids, **settings)
        torch.testing.assert_close(found, wanted[:, -found.shape[1] :], atol=BOUND, rtol=0)


def test_logits_of_an_earlier_step_stay_as_they_were(exported, original):
    ids, cache = ids_of(original[0], 1, 4), exported.new_cache()
    logits_of(exported, ids[:, :2], past_key_values=cache)
    third = logits_of(exported, ids[:, 2:3], past_key_values=cache)
    kept = third.clone()
    logits_of(exported, ids[:, 3:], past_key_values=cache)
    assert torch.equal(third, kept)


def llama(**settings):
    shape = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, **settings)
    return LlamaForCausalLM(config).eval()


def qwen3():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
    )
    model = Qwen3ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return model


SCALED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
SCALED |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
OTHERS = {
    "Qwen2.5's biases, one key for two queries": lambda: build_shape(
        Shape(60, 24, 2, 4, 2, 40, tied=True, qkv_bias=True)
    ),
    "an own head, wide heads": lambda: build_shape(Shape(60, 24, 2, 3, 3, 40, head_width=14)),
    "biases everywhere": lambda: llama(attention_bias=True, mlp_bias=True),
    "Llama 3's rotations": lambda: llama(rope_parameters=SCALED),
    "Qwen3's norms": qwen3,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders_are_carried(original, tmp_path, name):
    model = OTHERS[name]().eval()
    for key, parameter in model.named_parameters():  # biases begin as zeros
        if key.endswith("bias"):
            parameter.data.normal_()
    exported = load_onnx(export_onnx(model, original[1], tmp_path / "model"))
    ids, cache = ids_of(model, 3, 90), exported.new_cache()
    assert difference(model, exported, ids) < BOUND
    logits_of(exported, ids[:, :88], past_key_values=cache)
    for at in (88, 89):
        found = logits_of(exported, ids[:, at : at + 1], past_key_values=cache)
    torch.testing.assert_close(found[:, 0], logits_of(model, ids)[:, 89], atol=BOUND, rtol=0)


def test_hub_models_say_the_same(tmp_path):
    for name in ("qwen2", "smollm2"):
        model, tokenizer = load_model(getattr(hub_models, name)(tmp_path / name))
        exported = load_onnx(export_onnx(model, tokenizer, tmp_path / f"{name}-onnx"))
        found = check_export(model, exported, tokenizer, ROWS[:2], bound=BOUND).require()
        assert found.same_text == found.conversations == 2 and found.tokens > 50
        assert len(exported.tokenizer) == len(tokenizer)


# The same measuring ------------------------------------------------------------------------------


def test_the_export_is_checked(original, exported):
    found = check_export(original[0], exported, original[1], ROWS, bound=BOUND)
    assert found.holds and found.same_text == found.conversations == len(ROWS)
    assert 0 < found.largest_difference < BOUND
    assert found.tokens == nll(exported, encode_rows(original[1], ROWS)).tokens


def test_another_model_is_found_out(original, exported):
    other, tokenizer = load_model("front-desk-student-labels")
    found = check_export(other, exported, tokenizer, ROWS)
    assert not found.holds and found.largest_difference > 1
    with pytest.raises(UserError, match=r"another one: \d of 4 greedy replies are the same"):
        found.require()
    with pytest.raises(UserError, match="no assistant message"):
        check_export(other, exported, tokenizer, [{"messages": ROWS[0]["messages"][:1]}])


def test_it_is_measured_like_the_model(original, exported):
    model, tokenizer = original
    encoded = encode_rows(tokenizer, ROWS)
    assert nll(exported, encoded).per_token == pytest.approx(nll(model, encoded).per_token, 1e-5)
    assert agreement(exported, model, encoded) == 1.0
    ours = task_success(exported, tokenizer, visits=20, seed=3)
    assert ours == task_success(model, tokenizer, visits=20, seed=3)
    spoken = Speaker(exported, tokenizer).reply(ROWS[0]["messages"][:1])
    assert spoken.message == Speaker(model, tokenizer).reply(ROWS[0]["messages"][:1]).message


def test_its_speed_is_measured_on_the_threads_that_it_has(original, exported, folder):
    speed = measure_speed(exported, original[1], ROWS[:1], repeats=1)
    assert speed.threads == 1 and speed.latency_p50 > 0
    with pytest.raises(UserError, match="loaded for 1 threads and is to be timed on 2"):
        measure_speed(exported, original[1], ROWS[:1], threads=2)
    two = load_onnx(folder, threads=2, spin=False)
    assert measure_speed(two, original[1], ROWS[:1], threads=2, repeats=1).threads == 2
    assert difference(original[0], two, ids_of(original[0], 2, 30)) < BOUND
    with pytest.raises(UserError, match="threads is 0"):
        load_onnx(folder, threads=0)


def test_it_does_not_learn_and_wants_its_own_cache(exported, original):
    assert exported.eval() is exported and exported.train(False) is exported
    with pytest.raises(UserError, match="does not learn"):
        exported.train()
    with pytest.raises(UserError, match=r"found a list as cache: expected .*new_cache"):
        exported(ids_of(original[0], 1, 2), past_key_values=[])


# Fewer bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "bytes_each", "likeness"), [
    ("int8", 1.05, 0.98), ("int8_weights", 1.125, 0.98), ("int4_weights", 0.625, 0.85),
])  # fmt: skip
def test_fewer_bits_shrink_table_and_layers(original, folder, smaller, kind, bytes_each, likeness):
    model, tokenizer = original
    before, after = onnx_parts(folder), onnx_parts(smaller[kind])
    for part in ("table", "layers"):
        assert after[part] / before[part] == pytest.approx(bytes_each / 4, rel=0.03)
    assert bytes_on_disk(smaller[kind]) < 0.33 * bytes_on_disk(folder)
    rounded = load_onnx(smaller[kind])
    assert agreement(rounded, model, encode_rows(tokenizer, ROWS)) > likeness
    cache, ids = rounded.new_cache(), ids_of(model, 2, 30)
    wanted = logits_of(rounded, ids)
    logits_of(rounded, ids[:, :29], past_key_values=cache)
    step = logits_of(rounded, ids[:, 29:], past_key_values=cache)[:, 0]
    assert float((step - wanted[:, 29]).abs().mean()) < 0.3  # int8 sees other largest inputs


def test_a_table_of_its_own_is_rounded_too(original, tmp_path):
    model = build_shape(Shape(60, 32, 2, 4, 2, 40)).eval()  # embedding and head are two
    folder = export_onnx(model, original[1], tmp_path / "model")
    for kind in ONNX_KINDS:
        small = quantize_onnx(folder, tmp_path / kind, kind, block=16)
        assert onnx_parts(small)["table"] < 0.4 * onnx_parts(folder)["table"]
        logits, wanted = (
            logits_of(each, ids_of(model, 2, 9)) for each in (load_onnx(small), model)
        )
        assert torch.corrcoef(torch.stack([logits.flatten(), wanted.flatten()]))[0, 1] > 0.97


def test_what_cannot_be_rounded_is_refused(original, folder, smaller, tmp_path):
    with pytest.raises(UserError, match="kind is 'int3': expected one of int8"):
        quantize_onnx(folder, tmp_path / "out", "int3")
    with pytest.raises(UserError, match="the folder to read from"):
        quantize_onnx(folder, folder)
    with pytest.raises(UserError, match="no matrix in float32 to round"):
        quantize_onnx(smaller["int8"], tmp_path / "out")
    narrow = build_model(ModelSize(24, 1, 2, 32), original[1])
    wide = export_onnx(narrow, original[1], tmp_path / "narrow")
    with pytest.raises(UserError, match="24 wide, which blocks of 32 do not divide"):
        quantize_onnx(wide, tmp_path / "out", "int4_weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["narrow"]


# Files -------------------------------------------------------------------------------------------


def test_a_fresh_process_says_the_same(original, folder, smaller):
    model, tokenizer = original
    prompts = [encode_prompt(tokenizer, row["messages"][:1]) for row in ROWS]
    places = [folder, smaller["int4_weights"]]
    for here, there in zip(
        [model, load_onnx(places[1])], in_a_fresh_process(prompts, *places), strict=True
    ):
        assert there == generate_replies(here, tokenizer, prompts)


def test_the_folder_is_whole_and_is_counted(original, folder, tmp_path):
    names = {path.name for path in folder.iterdir()}
    wanted = {"model.onnx", "config.json", "generation_config.json", "manifest.json"}
    assert wanted | {"tokenizer.json", "chat_template.jinja"} <= names
    assert bytes_on_disk(folder) == sum(path.stat().st_size for path in folder.iterdir())
    tied = sum(onnx_parts(folder).values())
    assert tied < 4 * sum(p.numel() for p in original[0].parameters()) + 60_000
    apart = export_onnx(*original, tmp_path / "apart", most_inline=1000)
    assert (apart / "model.onnx.data").stat().st_size > 1e6
    assert bytes_on_disk(apart) == sum(path.stat().st_size for path in apart.iterdir())
    assert difference(original[0], load_onnx(apart), ids_of(original[0], 1, 5)) < BOUND


DAMAGE = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "altered": lambda file: file.write_bytes(
        bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]
    ),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused(folder, tmp_path, name, damage):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_onnx(copy).threads == 1  # it can be moved
    DAMAGE[damage](copy / name)
    with pytest.raises(UserError, match=rf"{name} (is|was) {damage}"):
        load_onnx(copy)
    with pytest.raises(UserError, match=damage):
        quantize_onnx(copy, tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "distillkit manifest 1", "files": {}}']
)
def test_a_damaged_manifest_is_refused(folder, tmp_path, text):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        load_onnx(copy)


def test_what_is_no_export_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_onnx(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        load_onnx(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    later = (copy / "manifest.json").read_text().replace("manifest 1", "manifest 2")
    (copy / "manifest.json").write_text(later)
    with pytest.raises(UserError, match="has the format 'distillkit manifest 2'"):
        load_onnx(copy)


def test_an_export_appears_whole_or_not_at_all(original, folder, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things"):
        export_onnx(*original, tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        export_onnx(*original, tmp_path / "full" / "thesis.txt")
    before = shutil.copytree(folder, tmp_path / "old")
    names = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(type(original[1]), "save_pretrained", _no_space)
    for place in ("old", "new"):
        with pytest.raises(UserError, match="no space left"):
            export_onnx(*original, tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert load_onnx(before).threads == 1
    monkeypatch.undo()
    export_onnx(*original, before)  # an export is replaced
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def _no_space(*_, **__):
    raise OSError(28, "No space left on device")


# What is not covered -----------------------------------------------------------------------------


def test_other_architectures_are_refused(original, tmp_path):
    for name in ("gpt2", "bert", "roberta"):
        model, tokenizer = load_model(getattr(hub_models, name)(tmp_path / name))
        with pytest.raises(UserError, match=r"is not covered: .*llama, mistral"):
            export_onnx(model, tokenizer, tmp_path / "out")
    windowed = llama()
    windowed.config.sliding_window = 16
    with pytest.raises(UserError, match="sliding window of 16 tokens"):
        export_onnx(windowed, original[1], tmp_path / "out")
    moving = llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(UserError, match="'dynamic', which changes with the length"):
        export_onnx(moving, original[1], tmp_path / "out")
    adapted = llama()
    adapted.model.layers[1].mlp.up_proj = torch.nn.Sequential(adapted.model.layers[1].mlp.up_proj)
    with pytest.raises(UserError, match=r"1\.mlp\.up_proj is a Sequential, expected an nn\.Linear"):
        export_onnx(adapted, original[1], tmp_path / "out")
    rectified = llama(hidden_act="relu")
    with pytest.raises(UserError, match="activation is relu"):
        export_onnx(rectified, original[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(original, folder, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed: pip install '{package}>="):
        load_onnx(folder) if package == "onnxruntime" else export_onnx(*original, tmp_path / "out")


def test_what_a_missing_package_says_is_what_the_extra_asks_for():
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extra = extras["optional-dependencies"]["export"]
    assert {WANTED[name] for name in ("onnx", "onnxruntime", "gguf")} == set(extra)
