"""Texts, their classes, and encoders for them: the front desk's intents, or CLINC150 at level gpu.

At level gpu the encoders and the texts come from the hub. DISTILLKIT_ENCODER_TEACHER,
DISTILLKIT_ENCODER_STUDENT and DISTILLKIT_INTENTS put others in their place: hub names, folders of
models, a `.jsonl` file of texts in whose name {split} is filled in.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.course.levels import Level
from distillkit.course.pairs import from_hub
from distillkit.dialogues.intents import Row, intents_of, load_intents
from distillkit.encoders import build_classifier, encode_intents, train_text_tokenizer
from distillkit.model_files import classifier_from
from distillkit.models import ModelSize
from distillkit.optimizers import muon

__all__ = ["STUDENT", "TEACHER", "Classroom", "open_classroom"]

TEACHER = ModelSize(width=96, layers=2, heads=4, feed_forward=192)
STUDENT = ModelSize(width=48, layers=2, heads=4, feed_forward=96)
VOCABULARY = 1000
NEW_RATE = {"teacher": 3e-3, "student": 5e-3}


@dataclass(frozen=True)
class Classroom:
    """What a classifier learns from: rows of text and intent, the names of the intents, ids."""

    tokenizer: PreTrainedTokenizerBase
    names: list[str]
    texts: dict[str, list[Row]]  # "train", and "test"
    encoded: dict[str, list[dict[str, Any]]]
    bodies: dict[str, str]  # "teacher" and "student" of the hub; empty: new ones

    def model(self, role: str, seed: int = 0) -> PreTrainedModel:
        """The "teacher" or the "student", with a head that nobody has trained.

        New models have no dropout: they are trained for a few hundred steps, and it slows them.
        """
        if self.bodies:
            return classifier_from(self.bodies[role], self.names, seed=seed)[0]
        size = {"teacher": TEACHER, "student": STUDENT}[role]
        return build_classifier(size, self.tokenizer, self.names, seed=seed, dropout=0.0)

    def optimizers(self, model: PreTrainedModel, role: str, *, steps: int) -> tuple[Any, Any]:
        """For `Trainer(optimizers=…)`: Muon for a new model; for a trained body, AdamW at 5e-5."""
        if self.bodies:
            return None, None
        return muon(model, steps=steps, learning_rate=NEW_RATE[role])


def open_classroom(level: Level, *, train: int, test: int, seed: int = 0) -> Classroom:
    """The texts of a level, so many to train on and at most so many to test on, and its encoders.

    A test text that stands word for word among those to train on is left out, and so is an intent
    that training does not have. The others are shuffled, as a file may hold them class by class:
    the first of them are a fair sample.
    Raises UserError when a model or the texts cannot be had.
    """
    if level.name != "gpu":
        source, bodies = "front-desk", {}
    else:
        source = from_hub("intents")
        bodies = {role: from_hub(f"encoder_{role}") for role in ("teacher", "student")}
    texts = {
        "train": load_intents(source, split="train", limit=train, seed=seed),
        "test": load_intents(source, split="test", limit=None if bodies else 2 * test, seed=seed),
    }
    names = intents_of(texts["train"])
    unread = _unread(texts["test"], texts["train"], names)[: None if bodies else test]
    texts["test"] = Random(seed).sample(unread, min(test, len(unread)))
    if bodies:
        tokenizer = classifier_from(bodies["student"], names)[1]
    else:
        tokenizer = train_text_tokenizer([row["text"] for row in texts["train"]], VOCABULARY)
    encoded = {split: encode_intents(tokenizer, rows, names) for split, rows in texts.items()}
    return Classroom(tokenizer, names, texts, encoded, bodies)


def _unread(rows: list[Row], read: list[Row], names: list[str]) -> list[Row]:
    """The rows whose text is not among those read, and whose intent is among the names."""
    known = {row["text"] for row in read}
    return [row for row in rows if row["intent"] in names and row["text"] not in known]
