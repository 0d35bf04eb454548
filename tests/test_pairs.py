"""The pair of a run level: the front desk's, or in its place real ones, here from local folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_models
import pytest
import tiny
import torch
from transformers import LlamaConfig

from distillkit.course import levels, pairs
from distillkit.course.levels import SWITCH, Level
from distillkit.course.notebooks import ROOT, read_notebook
from distillkit.errors import UserError
from distillkit.models import SIZES, count_parameters
from distillkit.training import DistillationArguments, DistillationTrainer

torch.set_num_threads(1)
GPU = Level("gpu")  # without a GPU: the same code on the CPU


@pytest.fixture
def local(tmp_path, monkeypatch):
    """SmolLM2's architecture with small widths, random weights, and conversations in a file."""
    return set_up(tmp_path, monkeypatch.setenv)


def set_up(folder: Path, put) -> Path:
    put("DISTILLKIT_TEACHER", str(hub_models.smollm2(folder / "teacher", width=48, layers=3)))
    put("DISTILLKIT_STUDENT", str(hub_models.smollm2(folder / "student", width=24)))
    talks = folder / "talks.jsonl"
    talks.write_text("".join(json.dumps(row) + "\n" for row in tiny.dialogues(150)))
    put("DISTILLKIT_DIALOGUES", str(talks))
    return folder


def one_step(pair: pairs.Pair, folder: Path) -> float:
    student = pair.student()
    trainer = DistillationTrainer(
        student,
        pair.teacher,
        args=DistillationArguments(
            str(folder), max_steps=1, save_strategy="no", disable_tqdm=True, report_to="none"
        ),
        train_dataset=pair.train_rows,
        processing_class=pair.tokenizer,
        optimizers=pair.optimizers(student, steps=1),
    )
    return trainer.train().training_loss


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_below_level_gpu_it_is_the_front_desk(name, tmp_path):
    pair = pairs.open_pair(Level(name), conversations=3, held_out=2)
    assert (len(pair.train_rows), len(pair.held_out)) == (3, 2)
    assert pair.train_rows[0]["id"].startswith("front-desk/train")
    assert pair.held_out[0]["id"].startswith("front-desk/development")
    student = pair.student(seed=1)
    assert student.config.hidden_size == SIZES["student"].width
    assert not torch.equal(student.lm_head.weight, pair.student(seed=2).lm_head.weight)
    assert one_step(pair, tmp_path) > 0


def test_at_level_gpu_they_come_from_where_the_settings_say(local, tmp_path):
    pair = pairs.open_pair(GPU, conversations=20, held_out=4)
    assert pair.teacher.config.hidden_size == 48
    assert (len(pair.train_rows), len(pair.held_out)) == (20, 4)
    ids = {row["id"] for row in pair.train_rows} & {row["id"] for row in pair.held_out}
    assert not ids
    assert pair.student().config.hidden_size == 24
    assert one_step(pair, tmp_path / "run") > 0


def test_teacher_and_student_are_on_the_levels_device(local):
    """`meta` stands for a GPU: a device that is not the CPU, and is everywhere."""
    pair = pairs.open_pair(Level("gpu", "meta"), conversations=2, held_out=1)
    assert pair.teacher.device.type == pair.student().device.type == "meta"
    pair = pairs.open_pair(GPU, conversations=2, held_out=1)
    assert pair.teacher.device.type == pair.student().device.type == "cpu"


@pytest.mark.parametrize("layers", [3, 8])
def test_chapter_06_leaves_out_a_handful_of_a_deep_teachers_layers(layers):
    """Each costs an NLL of the whole teacher, of which level gpu's has 32 layers."""
    [cell] = [
        each.source
        for each in read_notebook(ROOT / "chapters/06_inside_the_network.ipynb").cells
        if "without number" in each.source
    ]
    [loop] = [line for line in cell.splitlines() if line.startswith("for i in every")]
    names = {"every": list(range(layers)), "L": layers}
    left_out = eval(loop.removeprefix("for i in ").partition(":  #")[0], names)
    assert len(left_out) == min(layers, 4) and left_out[0] == 0


def test_without_settings_the_names_are_those_of_the_hub(monkeypatch):
    for what, name in pairs.HUB.items():
        monkeypatch.delenv(f"DISTILLKIT_{what.upper()}", raising=False)
        assert pairs.from_hub(what) == name and "/" in name


def test_a_real_size_is_the_hubs_at_level_gpu_and_a_shape_below(local):
    name, model = pairs.open_real(GPU)
    assert (name, model.config.hidden_size, model.dtype) == ("student (real)", 24, torch.float32)
    assert pairs.open_real(GPU, "teacher")[1].config.hidden_size == 48
    name, model = pairs.open_real(Level("smoke"))
    assert count_parameters(model) < 1e6 and model.config.num_key_value_heads == 3
    name, model = pairs.open_real(Level("cpu"))
    assert (name, count_parameters(model)) == ("135M shape", 134_515_008)


def test_short_memory_is_refused_before_anything_is_loaded(local, monkeypatch):
    monkeypatch.setattr(levels, "free_memory", lambda: 1e5)
    monkeypatch.setattr(pairs, "load_model", lambda _: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"needs \S+ GB of free memory at level gpu"):
        pairs.open_pair(GPU, conversations=2, held_out=1)


def test_needs_are_those_of_the_models(tmp_path):
    shapes = {"360M": (960, 32, 15, 5, 2560), "135M": (576, 30, 9, 3, 1536)}
    for name, (width, layers, heads, kv_heads, feed_forward) in shapes.items():
        LlamaConfig(
            vocab_size=49152,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=feed_forward,
            tie_word_embeddings=True,
        ).save_pretrained(tmp_path / name)
    teacher, student = str(tmp_path / "360M"), str(tmp_path / "135M")
    assert pairs._parameters(teacher) == 361_821_120  # as the hub's page says: 362M
    assert pairs._parameters(student) == 134_515_008
    needs = pairs._needs(teacher, student)
    assert needs == {"memory_gb": 5.3993, "gpu_memory_gb": 5.3993, "disk_gb": 0.0}


def test_the_smallest_need_is_not_rounded_away(local):
    needs = pairs._needs(pairs.from_hub("teacher"), pairs.from_hub("student"))
    assert needs["memory_gb"] > 0
    assert count_parameters(pairs.load_model(pairs.from_hub("student"))[0]) < 1e5


def test_too_few_conversations_are_refused(local, tmp_path, monkeypatch):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in tiny.dialogues(3)))
    monkeypatch.setenv("DISTILLKIT_DIALOGUES", str(few))
    with pytest.raises(UserError, match="3 conversations: 5 are to be held out"):
        pairs.open_pair(GPU, conversations=20, held_out=5)


def test_a_model_that_is_not_there_is_named(local, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_STUDENT", "./nowhere")
    with pytest.raises(UserError, match="nowhere"):
        pairs.open_pair(GPU, conversations=2, held_out=1)


CHAPTERS = [path.stem for path in sorted((ROOT / "chapters").glob("*.ipynb"))]


@pytest.mark.slow  # executes each chapter once more: up to a minute each
@pytest.mark.parametrize(
    "chapter", [name for name in CHAPTERS if name[:2] in ("00", "01", "03", "04", "06", "07")]
)
def test_a_chapter_runs_at_level_gpu_with_local_models(chapter, tmp_path):
    environment = dict(os.environ)
    set_up(tmp_path, environment.__setitem__)
    command = ["-m", "distillkit.cli", "run", chapter, "--level", "gpu", "--pages", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command],
        env=environment | {SWITCH: "gpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
