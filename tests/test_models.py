"""Models built, shrunk, saved whole or not at all, loaded or refused in a sentence."""

import errno
import json
import os
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from distillkit import model_files
from distillkit.chat import CHAT_TEMPLATE, train_tokenizer
from distillkit.encoders import build_masked_lm
from distillkit.errors import UserError
from distillkit.models import (
    SIZES,
    ModelSize,
    build_model,
    count_parameters,
    load_model,
    save_model,
    student_from_layers,
)
from distillkit.narrowing import narrowed

TINY = ModelSize(width=16, layers=3, heads=2, feed_forward=24)
TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Good day!"}]
IDS = torch.tensor([[3, 20, 30, 40, 50, 1]])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([{"messages": TALK}], 150)


@pytest.fixture
def model(tokenizer):
    return build_model(TINY, tokenizer).eval()


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path: Path) -> Path:
    return save_model(model, tokenizer, tmp_path / "checkpoint")


# --- Build --------------------------------------------------------------------------------------


def test_the_weights_depend_on_the_seed_and_leave_the_random_state_alone(tokenizer) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (build_model(TINY, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one(IDS).logits, same(IDS).logits)
    assert not torch.equal(one(IDS).logits, other(IDS).logits)


def test_a_built_model_is_tied_in_float32_and_knows_its_ids(model, tokenizer) -> None:
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 1
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 0
    assert model.config._attn_implementation == "sdpa"
    assert model.config.vocab_size == len(tokenizer)


def test_parameters_are_counted_once(model) -> None:
    width, layers, feed_forward = TINY.width, TINY.layers, TINY.feed_forward
    layer = 4 * width**2 + 3 * width * feed_forward + 2 * width
    assert count_parameters(model) == model.config.vocab_size * width + layers * layer + width


def test_the_named_sizes_keep_to_the_design(tokenizer) -> None:
    sizes = {name: count_parameters(build_model(name, tokenizer)) for name in SIZES}
    wide = {
        name: count + (1024 - len(tokenizer)) * SIZES[name].width for name, count in sizes.items()
    }
    assert 1.5e6 < wide["teacher"] <= 2.4e6
    assert 0.1e6 < wide["student-small"] < wide["student"] < 0.5e6
    assert wide["student"] < wide["student-large"] < wide["teacher"]


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (lambda: ModelSize(16, 0, 2, 24), "must be at least 1"),
        (lambda: ModelSize(18, 1, 4, 24), "width 18 does not split into 4 heads"),
        (lambda: "giant", "no size is named 'giant': choose one of teacher, "),
    ],
)
def test_an_impossible_size_is_refused(tokenizer, size, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        build_model(size(), tokenizer)


# --- Students from layers -----------------------------------------------------------------------


def _gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=3, n_head=2)
    )


def _qwen2():
    config = Qwen2Config(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return Qwen2ForCausalLM(config)


@pytest.mark.parametrize("build", [_gpt2, _qwen2])
def test_a_student_of_all_layers_is_the_teacher(build) -> None:
    teacher = build().eval()
    student = student_from_layers(teacher, [0, 1, 2])
    assert torch.equal(student(IDS).logits, teacher(IDS).logits)


@pytest.mark.parametrize("build", [_gpt2, _qwen2])
def test_a_student_of_some_layers_works_with_its_cache_and_survives_saving(build, tmp_path) -> None:
    teacher = build().eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = student_from_layers(teacher, [0, 2])
    assert count_parameters(student) < count_parameters(teacher)
    with torch.no_grad():
        cached = student(IDS[:, :3], use_cache=True).past_key_values
        step = student(IDS[:, 3:], past_key_values=cached).logits
    torch.testing.assert_close(step, student(IDS).logits[:, 3:], rtol=1e-4, atol=1e-5)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, student(IDS).logits)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert teacher.config.num_hidden_layers == 3
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_chosen_layers_are_the_teachers_and_ties_stay(model) -> None:
    student = student_from_layers(model, [1, 2])
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert student.lm_head.weight is not model.lm_head.weight
    for mine, its in zip((1, 2), student.model.layers, strict=True):
        assert torch.equal(its.mlp.up_proj.weight, model.model.layers[mine].mlp.up_proj.weight)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1]


@pytest.mark.parametrize("layers", [[], [3], [-1], [1, 0], [1, 1]])
def test_layers_that_do_not_exist_are_refused(model, layers) -> None:
    with pytest.raises(UserError, match="expected ascending numbers from 0 to 2"):
        student_from_layers(model, layers)


# --- Save and load ------------------------------------------------------------------------------


def test_what_is_saved_loads_with_ours_and_with_any_tool(checkpoint, model, tokenizer) -> None:
    ours, our_tokenizer = load_model(checkpoint)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint)
    their_tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for loaded in (ours, theirs):
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert not ours.training
    for loaded in (our_tokenizer, their_tokenizer):
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.chat_template == CHAT_TEMPLATE
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names


def test_a_half_precision_checkpoint_is_loaded_in_float32(model, tokenizer, tmp_path) -> None:
    save_model(model.to(torch.bfloat16), tokenizer, tmp_path / "half")
    loaded, _ = load_model(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_loading_is_quiet_and_leaves_the_settings_as_they_were(checkpoint, capfd) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(checkpoint)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_a_card_is_saved_and_shipped_names_are_found(
    model, tokenizer, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(model_files, "SHIPPED_FOLDER", tmp_path)
    name = model_files.SHIPPED[0]
    save_model(model, tokenizer, tmp_path / name, card="# A card\n")
    assert (tmp_path / name / "README.md").read_text() == "# A card\n"
    assert count_parameters(load_model(name)[0]) == count_parameters(model)
    with pytest.raises(UserError, match=f"{model_files.SHIPPED[1]}: no such folder"):
        load_model(model_files.SHIPPED[1])


def test_saving_again_replaces_the_checkpoint_and_keeps_other_files(checkpoint, tokenizer) -> None:
    (checkpoint / "metrics.json").write_text("{}")
    (checkpoint / "checkpoint-500").mkdir()
    (checkpoint / "model-00001-of-00002.safetensors").write_text("stale")
    new = build_model(TINY, tokenizer, seed=5).eval()
    save_model(new, tokenizer, checkpoint)
    assert torch.equal(load_model(checkpoint)[0](IDS).logits, new(IDS).logits)
    assert (checkpoint / "metrics.json").read_text() == "{}"
    assert (checkpoint / "checkpoint-500").is_dir()
    assert not (checkpoint / "model-00001-of-00002.safetensors").exists()
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_a_new_folder_is_readable_by_others_and_parents_are_made(
    model, tokenizer, tmp_path
) -> None:
    target = save_model(model, tokenizer, tmp_path / "a" / "b")
    assert target.stat().st_mode & 0o055 == 0o055
    assert os.listdir(tmp_path / "a") == ["b"]


class _Breaks:
    """Stands in for a model or a tokenizer: writes half a file, then fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def save_pretrained(self, folder) -> None:
        (Path(folder) / "half").write_text("half")
        raise self.error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        (FULL, UserError, "no space left on the disk to save"),
        (OSError(errno.EROFS, "Read-only file system"), UserError, "cannot be written"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_save_that_fails_leaves_nothing_and_harms_nothing(
    checkpoint, model, tokenizer, part, error, raised, sentence
) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    parts = {"model": model, "tokenizer": tokenizer, part: _Breaks(error)}
    for target in (checkpoint, checkpoint.parent / "new"):
        with pytest.raises(raised, match=sentence):
            save_model(parts["model"], parts["tokenizer"], target)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_a_rename_that_fails_puts_the_old_checkpoint_back(
    checkpoint, model, tokenizer, monkeypatch
) -> None:
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(UserError, match="cannot be written"):
        save_model(model, tokenizer, checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]
    load_model(checkpoint)


def test_a_file_or_a_folder_of_other_things_is_not_overwritten(model, tokenizer, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        save_model(model, tokenizer, tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        save_model(model, tokenizer, tmp_path / "file" / "below")
    with pytest.raises(UserError, match="holds other things than a checkpoint"):
        save_model(model, tokenizer, tmp_path)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_model(model, tokenizer, tmp_path / "empty")


# --- What cannot be loaded ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("config.json", "no checkpoint: it has no config.json"),
        ("model.safetensors", "no checkpoint: it has no model.safetensors"),
        ("tokenizer.json", "has no tokenizer files"),
    ],
)
def test_a_missing_file_is_named(checkpoint, file, sentence) -> None:
    (checkpoint / file).unlink()
    with pytest.raises(UserError, match=sentence):
        load_model(checkpoint)


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "~/no-such-folder-at-all", "a/b/c"])
def test_a_missing_folder_is_named(name) -> None:
    with pytest.raises(UserError, match="no such folder; expected a checkpoint or a hub name"):
        load_model(name)


def test_a_file_is_no_checkpoint(checkpoint) -> None:
    with pytest.raises(UserError, match="is a file; expected the folder"):
        load_model(checkpoint / "config.json")


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 0.999))
def test_weights_cut_off_anywhere_are_refused_in_one_sentence(checkpoint, share) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="the weights are damaged or cut off") as caught:
        load_model(checkpoint)
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "the weights lack 1 of the tensors"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.full((16,), torch.nan)}),
            "model.norm.weight holds NaN or infinity",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(17)}),
            "the weights have in another shape 1 of the tensors",
        ),
    ],
    ids=["a tensor less", "NaN", "another shape"],
)
def test_weights_that_do_not_fit_are_refused(checkpoint, change, sentence) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=sentence) as caught:
        load_model(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "\x00\x01", '"text"', "[]"])
def test_damaged_settings_are_refused_in_one_sentence(checkpoint, file, content) -> None:
    (checkpoint / file).write_text(content)
    with pytest.raises(UserError) as caught:
        load_model(checkpoint)
    assert "\n" not in str(caught.value)


def test_layers_that_the_settings_forget_are_warned_of(checkpoint, caplog) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    load_model(checkpoint)
    assert "9 tensors that config.json does not ask for are left out (model.layers.2" in caplog.text


def test_a_model_of_an_unknown_kind_is_refused(checkpoint) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(UserError, match=r"the model cannot be loaded: .*nonesuch"):
        load_model(checkpoint)


def test_a_tokenizer_too_large_for_the_model_is_refused(model, tmp_path) -> None:
    larger = train_tokenizer([{"messages": TALK}], 300, alphabet="bytes")
    save_model(model, larger, tmp_path / "checkpoint")
    with pytest.raises(UserError, match="they do not belong together"):
        load_model(tmp_path / "checkpoint")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch) -> None:
    def unreachable(*args, **options):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(model_files.HfApi, "model_info", unreachable)
    with pytest.raises(UserError, match="the hub cannot be reached: give a folder, or a shipped"):
        load_model("someone/something")


def test_a_model_that_the_hub_lacks_is_one_sentence(monkeypatch) -> None:
    def lacking(*args, **options):
        raise ValueError("Repository Not Found\nfor url …")

    monkeypatch.setattr(model_files.HfApi, "model_info", lacking)
    with pytest.raises(UserError, match="the hub gives no such model: Repository Not Found for"):
        load_model("someone/something")


# --- A narrower student -------------------------------------------------------------------------


def qwen():
    config = Qwen2Config(
        vocab_size=len(tiny.TOKENIZER),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).float()


@pytest.mark.parametrize("tied", [True, False])
def test_a_student_cut_in_width_is_the_same_after_saving(tmp_path, tied):
    teacher = qwen()
    if not tied:
        teacher.config.tie_word_embeddings = False
        teacher.lm_head.weight = torch.nn.Parameter(torch.randn_like(teacher.lm_head.weight))
    student = student_from_layers(teacher, [0, 2], width=24, heads=4, feed_forward=20).eval()
    assert student.config.num_key_value_heads == 1
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == tied
    save_model(student, tiny.TOKENIZER, tmp_path / "student")
    loaded, _ = load_model(tmp_path / "student")
    ids = torch.randint(0, 100, (2, 7))
    assert torch.equal(loaded(ids).logits, student(ids).logits)


def test_cutting_nothing_changes_nothing():
    teacher = qwen().eval()
    student = student_from_layers(teacher, [0, 1, 2], width=32, heads=8, feed_forward=40).eval()
    ids = torch.randint(0, 100, (2, 7))
    assert torch.equal(student(ids).logits, teacher(ids).logits)


def test_what_is_cut_is_what_has_no_weight():
    """A teacher whose last numbers, group and neurons are zero loses nothing with them."""
    teacher = qwen().eval()
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            for dimension in range(weight.dim()):
                size = weight.shape[dimension]
                if "proj" in name and ("q_" in name or "o_" in name) and size == 32:
                    continue
                if size == 40:
                    weight.index_fill_(dimension, torch.arange(20, 40), 0.0)
        for layer in teacher.model.layers:
            heads = layer.self_attn
            heads.o_proj.weight[:, 16:] = 0.0
            heads.q_proj.weight[16:] = 0.0
            heads.v_proj.weight[4:] = 0.0
    _, kept = narrowed(teacher, heads=4, feed_forward=20)
    assert kept.heads == [[0, 1, 2, 3]] * 3
    assert kept.neurons == [list(range(20))] * 3
    student = narrowed(teacher, heads=4, feed_forward=20)[0].eval()
    ids = torch.randint(0, 100, (2, 7))
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits)


@pytest.mark.parametrize("wrong", [{"width": 33}, {"heads": 3}, {"feed_forward": 0}], ids=str)
def test_widths_that_cannot_be_cut_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        student_from_layers(qwen(), [0, 2], **wrong)


def test_another_kind_of_model_is_not_cut_in_width():
    bert = build_masked_lm(ModelSize(16, 2, 2, 32), tiny.TOKENIZER)
    with pytest.raises(UserError, match="expected the weights of a Llama-style model"):
        student_from_layers(bert, [0], width=8)


def test_a_frozen_teachers_copy_learns():
    teacher = qwen().requires_grad_(False)
    students = student_from_layers(teacher, [0]), student_from_layers(teacher, [0], width=16)
    assert all(weight.requires_grad for each in students for weight in each.parameters())
    assert not any(weight.requires_grad for weight in teacher.parameters())


def test_what_the_settings_say_layer_by_layer_goes_with_the_layers(tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = SmolLM3Config(vocab_size=len(tiny.TOKENIZER), pad_token_id=0, **shape, **heads)
    assert config.no_rope_layers == [1, 1, 1, 0]  # 0: no positions in this one
    torch.manual_seed(0)
    student = student_from_layers(SmolLM3ForCausalLM(config), [0, 3]).eval()
    assert student.config.no_rope_layers == [1, 0] and len(config.no_rope_layers) == 4
    save_model(student, tiny.TOKENIZER, tmp_path / "student")
    loaded, _ = load_model(tmp_path / "student")
    ids = torch.randint(0, 100, (2, 7))
    assert torch.equal(loaded(ids).logits, student(ids).logits)
