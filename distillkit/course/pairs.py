"""Teacher, student and conversations of a run level: the front desk's, or real ones at level gpu.

At level gpu they come from the hub. DISTILLKIT_TEACHER, DISTILLKIT_STUDENT and
DISTILLKIT_DIALOGUES put others in their place: hub names, folders of models, a file of
conversations. That is how the level is tried without a network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from distillkit.arithmetic import SHAPES, Shape
from distillkit.chat import check_same_tokenizer
from distillkit.course.levels import GB, Level
from distillkit.dialogues.loading import load_dialogues
from distillkit.errors import UserError
from distillkit.models import build_model, build_shape, load_model
from distillkit.optimizers import muon

__all__ = ["Pair", "from_hub", "open_pair", "open_real"]

HUB = {
    "teacher": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "student": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "dialogues": "HuggingFaceTB/everyday-conversations-llama3.1-2k",
    "encoder_teacher": "google-bert/bert-large-uncased",
    "encoder_student": "google-bert/bert-base-uncased",
    "intents": "clinc/clinc_oos:plus",
}
HUB_SPLITS = ("train_sft", "test_sft")
NEW_STUDENT_RATE = 5e-3

Rows = Sequence[dict[str, Any]]


def from_hub(what: str) -> str:
    """The name of the "teacher", the "student", the "dialogues" … of level gpu (see HUB)."""
    return os.environ.get(f"DISTILLKIT_{what.upper()}", "").strip() or HUB[what]


@dataclass(frozen=True)
class Pair:
    """What a chapter trains with: a teacher, its tokenizer, and conversations.

    Teacher and students are on the level's device, so what a chapter measures before a trainer
    comes (which would bring them there) runs on the GPU where there is one.
    """

    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train_rows: Rows
    held_out: Rows
    student_name: str | None  # None: a new one, with random weights
    device: str = "cpu"

    def student(self, seed: int = 0) -> PreTrainedModel:
        """A student that nothing has been taught yet; at level gpu, the one of the hub."""
        if self.student_name is None:
            return _on(self.device, build_model("student", self.tokenizer, seed=seed))
        model, tokenizer = load_model(self.student_name)
        check_same_tokenizer(self.tokenizer, tokenizer)
        return _on(self.device, model)

    def optimizers(self, student: PreTrainedModel, *, steps: int) -> tuple[Any, Any]:
        """For `Trainer(optimizers=…)`: Muon for a new student; for a trained one, its own AdamW."""
        if self.student_name is None:
            return muon(student, steps=steps, learning_rate=NEW_STUDENT_RATE)
        return None, None


def open_pair(level: Level, *, conversations: int, held_out: int, seed: int = 0) -> Pair:
    """The pair of a level, with so many conversations to train on and to hold out.

    Raises UserError when memory or disk is short, before anything is loaded.
    """
    if level.name != "gpu":
        teacher, tokenizer = load_model("front-desk-teacher")
        train = load_dialogues("front-desk", limit=conversations, seed=seed)
        aside = load_dialogues("front-desk", split="development", limit=held_out, seed=seed)
        return Pair(teacher, tokenizer, train.rows, aside.rows, None)
    names = from_hub("teacher"), from_hub("student")
    level.require(**_needs(*names))
    teacher, tokenizer = load_model(names[0])
    train_rows, held_out_rows = _hub_rows(conversations, held_out)
    teacher = _on(level.device, teacher)
    return Pair(teacher, tokenizer, train_rows, held_out_rows, names[1], level.device)


def _on(device: str, model: Any) -> Any:
    return model.to(device)


def open_real(level: Level, what: str = "student") -> tuple[str, PreTrainedModel]:
    """A model of a real LLM's size to time, on the level's device, and its name.

    At level gpu the hub's "teacher" or "student", on a GPU in half precision; below it random
    weights in the shape of SmolLM2-135M, which take as long as trained ones (a tenth as wide and as
    deep at smoke).
    """
    if level.name == "gpu":
        model: Any = load_model(from_hub(what))[0]
        dtype = torch.float16 if level.device == "cuda" else torch.float32
        return f"{Path(from_hub(what)).name} (real)", model.to(level.device, dtype)
    shape = level.pick(smoke=_TENTH, cpu=SHAPES["SmolLM2-135M"], gpu=_TENTH)
    return level.pick(smoke="a tenth of 135M", cpu="135M shape", gpu=""), build_shape(shape)


_TENTH = Shape(4915, 54, 3, 9, 3, 154, tied=True)


def _hub_rows(conversations: int, held_out: int) -> tuple[Rows, Rows]:
    """A hub data set has a part for tests; of a file, the last conversations are held out."""
    name = from_hub("dialogues")
    if not os.path.exists(name):
        train, test = (
            load_dialogues(name, split=split, limit=limit).rows
            for split, limit in zip(HUB_SPLITS, (conversations, held_out), strict=True)
        )
        return train, test
    rows = load_dialogues(name, limit=conversations + held_out).rows
    if len(rows) <= held_out:
        raise UserError(f"{name} has {len(rows)} conversations: {held_out} are to be held out")
    return rows[:-held_out], rows[-held_out:]


def _needs(teacher: str, student: str) -> dict[str, float]:
    """Gigabytes for a teacher beside a student that is trained: weights, gradient, two moments.

    In float32, and half as much again for what a forward pass keeps. On disk, what is not there.
    """
    sizes = {name: _parameters(name) for name in (teacher, student)}
    memory = 1.5 * 4 * (sizes[teacher] + 4 * sizes[student]) / GB
    absent = sum(size for name, size in sizes.items() if not Path(name).exists())
    needs = {"memory_gb": memory, "gpu_memory_gb": memory, "disk_gb": 4 * absent / GB}
    return {what: round(gigabytes, 4) for what, gigabytes in needs.items()}


def _parameters(name: str) -> int:
    """How many a model has, by its configuration alone."""
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception:
        load_model(name)  # says in a sentence what is wrong
        raise
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
