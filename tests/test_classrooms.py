"""The encoders and texts of a run level: the front desk's, or in their place others, here local."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from distillkit.course import classrooms
from distillkit.course.levels import SWITCH, Level
from distillkit.course.notebooks import ROOT
from distillkit.dialogues.intents import front_desk_intents
from distillkit.encoders import collator_for, train_text_tokenizer
from distillkit.models import save_model
from distillkit.training import DistillationArguments, DistillationTrainer

torch.set_num_threads(1)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """BERT's architecture with small widths and random weights, and texts in files."""
    rows = {
        split: front_desk_intents(60, seed=seed) for seed, split in enumerate(("train", "test"))
    }
    for split, each in rows.items():
        lines = "\n".join(json.dumps(row) for row in each)
        (tmp_path / f"texts.{split}.jsonl").write_text(lines)
    tokenizer = train_text_tokenizer([row["text"] for row in rows["train"]], 300)
    for role, width in (("teacher", 32), ("student", 16)):
        shape = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = BertConfig(vocab_size=len(tokenizer), intermediate_size=2 * width, **shape)
        save_model(BertForMaskedLM(config), tokenizer, tmp_path / role)
        monkeypatch.setenv(f"DISTILLKIT_ENCODER_{role.upper()}", str(tmp_path / role))
    monkeypatch.setenv("DISTILLKIT_INTENTS", str(tmp_path / "texts.{split}.jsonl"))


def one_step(room, folder):
    student = room.model("student")
    trainer = DistillationTrainer(
        student,
        room.model("teacher"),
        args=DistillationArguments(
            str(folder), max_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True
        ),
        train_dataset=room.encoded["train"],
        processing_class=room.tokenizer,
        optimizers=room.optimizers(student, "student", steps=1),
    )
    return trainer.train().training_loss


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_below_level_gpu_it_is_the_front_desk(name, tmp_path):
    room = classrooms.open_classroom(Level(name), train=80, test=30)
    assert len(room.encoded["train"]) == 80 and 0 < len(room.encoded["test"]) <= 30
    assert {row["intent"] for row in room.texts["test"]} <= set(room.names)
    assert room.model("teacher").config.hidden_size == classrooms.TEACHER.width
    first, second = (room.model("student", seed).classifier.weight for seed in (0, 1))
    assert not torch.equal(first, second)
    assert room.model("student").config.hidden_dropout_prob == 0.0
    assert one_step(room, tmp_path) > 0


@pytest.mark.parametrize("level", ["cpu", "gpu"])
def test_no_test_text_stands_in_training_and_the_order_is_drawn(level, local, monkeypatch):
    rows = [{"text": f"text {n}", "intent": "one" if n < 40 else "oos"} for n in range(80)]
    given = {"train": rows[::4], "test": rows}
    monkeypatch.setattr(classrooms, "load_intents", lambda *_, split, **__: given[split])
    room = classrooms.open_classroom(Level(level), train=20, test=50)
    texts = [row["text"] for row in room.texts["test"]]
    assert len(set(texts)) == 50 and not set(texts) & {row["text"] for row in given["train"]}
    assert texts != [row["text"] for row in rows if row["text"] in texts]
    assert 5 < sum(row["intent"] == "oos" for row in room.texts["test"][:25]) < 20 or level == "cpu"


def test_at_level_gpu_they_come_from_where_the_settings_say(local, tmp_path):
    room = classrooms.open_classroom(Level("gpu"), train=60, test=20)
    teacher, student = room.model("teacher"), room.model("student")
    assert (teacher.config.hidden_size, student.config.hidden_size) == (32, 16)
    assert teacher.config.num_labels == student.config.num_labels == len(room.names)
    batch = collator_for(student, room.tokenizer)(room.encoded["test"][:3])
    assert student(**batch).logits.shape == (3, len(room.names))
    assert room.optimizers(student, "student", steps=1) == (None, None)
    assert one_step(room, tmp_path / "run") > 0


@pytest.mark.slow  # executes the chapter once more
def test_chapter_05_runs_at_level_gpu_with_local_models(local, tmp_path):
    command = ["-m", "distillkit.cli", "run", "05", "--level", "gpu", "--pages", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command],
        env=dict(os.environ) | {SWITCH: "gpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
