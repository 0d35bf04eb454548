"""Trainers on tiny models for the tests, and the loss that they should have, by hand."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from distillkit.chat import Collator, encode_rows
from distillkit.feature_training import Features
from distillkit.losses import distillation_loss
from distillkit.training import DistillationArguments, DistillationTrainer


def make_trainer(folder, student=None, teacher=None, *, rows=None, collator=None, **options):
    keys = (
        "divergence",
        "features",
        "rollout",
        "optimizers",
        "teacher_tokenizer",
        "callbacks",
        "eval_dataset",
        "processing_class",
    )
    given = {key: options.pop(key) for key in keys if key in options}
    settings = {"learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True} | options
    return DistillationTrainer(
        student or tiny.student(),
        teacher,
        args=DistillationArguments(
            **{"output_dir": str(folder), "use_cpu": True, "log_level": "error", **settings}
        ),
        train_dataset=rows if rows is not None else tiny.encoded(8),
        data_collator=collator,
        **{"processing_class": tiny.TOKENIZER, "teacher_tokenizer": tiny.TOKENIZER, **given},
    )


PLAIN_DESCENT = {  # the change of the weights in a step is the gradient
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
}


def batch_of(rows, side="right"):
    return Collator(tiny.TOKENIZER, padding_side=side)(rows)


def by_hand(student, teacher, batch, **settings):
    """The course's loss on logits that are shifted here, by hand."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        p = teacher(**inputs).logits
    q = student(**inputs).logits
    return distillation_loss(q[:, :-1], p[:, :-1], batch["labels"][:, 1:], **settings)


def uneven_rows():
    """Nine conversations, whose assistant speaks 3 tokens in one and hundreds in another."""
    chance = random.Random(0)
    rows = []
    for words in (2, 150, 3, 9, 60, 2, 200, 4, 30):
        said = " ".join(chance.choices(tiny.WORDS, k=words))
        turns = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": said}]
        rows.append({"messages": turns})
    return encode_rows(tiny.TOKENIZER, rows)


def two_epochs(folder, *, batch_size=4, accumulate=1, resume=False, matches=None, **options):
    """Two epochs of float64 in steps of 4, 4 and 1 conversations, with an evaluation after each."""
    student, teacher = tiny.student().double(), tiny.teacher().double()
    trainer = make_trainer(
        folder,
        student,
        teacher,
        features=Features(student, teacher, matches) if matches else None,
        rows=uneven_rows(),
        eval_dataset=tiny.encoded(7, seed=3),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=accumulate,
        **{"num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 1, **PLAIN_DESCENT},
        **options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same_run(log, weights, trainer):
    """The losses of every step, and the weights after the last, are those of `trainer`."""
    names = ("loss", "soft_loss", "hard_loss", "on_policy_loss", "grad_norm", "eval_loss")
    theirs = trainer.state.log_history
    assert len(log) == len(theirs)
    for mine, its in zip(log[:-1], theirs[:-1], strict=True):
        for name in (set(names) & set(its)) | {"step"}:
            assert mine[name] == pytest.approx(its[name], rel=1e-6), name  # partly of float32
    assert log[-1]["train_loss"] == pytest.approx(theirs[-1]["train_loss"], rel=1e-5)
    assert_same_weights(weights, trainer)


def assert_same_weights(weights, trainer):
    for name, its in trainer.model.state_dict().items():
        torch.testing.assert_close(weights[name], its, rtol=1e-9, atol=1e-9)


def run_here(command, cwd=Path(__file__).parent, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, timeout=240, **options)
