"""The settings of a training run: options of the command line, and entries of metrics.json."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distillkit import cross_tokenizer, losses, sparse_losses
from distillkit.errors import UserError
from distillkit.sampling import Sampling
from distillkit.training import DistillationArguments
from distillkit.training_arguments import check_speaks

DIVERGENCES: dict[str, Callable[..., losses.Divergence]] = {
    "forward_kl": losses.ForwardKL,
    "reverse_kl": losses.ReverseKL,
    "jensen_shannon": losses.JensenShannon,
    "skew_kl": losses.SkewKL,
    "total_variation": losses.TotalVariation,
    "logits_mse": losses.LogitsMSE,
    "top_k_kl": sparse_losses.TopKKL,
    "universal_logit_distance": cross_tokenizer.UniversalLogitDistance,
}

OPTIMIZERS = ("auto", "muon", "adamw")
RATES = {"muon": 5e-3, "adamw": 2e-3}  # of new students
TRAINED_RATE = 5e-5
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def _setting(default: Any, sentence: str) -> Any:
    return field(default=default, metadata={"help": sentence})


@dataclass(frozen=True)
class Settings:
    """How a run trains. Each is an option of the command line, and stands in metrics.json."""

    steps: int = _setting(1000, "optimiser steps")
    batch_size: int = _setting(16, "conversations in a micro-batch")
    accumulate: int = _setting(1, "micro-batches in a step")
    optimizer: str = _setting("auto", "adamw, muon, or auto: muon for a new student, else adamw")
    learning_rate: float | None = _setting(
        None, "highest rate (default: 5e-5, or for a new student 5e-3 with muon, 2e-3 with adamw)"
    )
    warmup: float = _setting(0.05, "share of the steps in which the rate rises")
    weight_decay: float = _setting(0.0, "decay of the weights, with adamw")
    alpha: float = _setting(0.5, "weight of the teacher's term; 0: labels only, 1: teacher only")
    temperature: float = _setting(2.0, "softens teacher and student alike")
    alpha_end: float | None = _setting(None, "alpha in the last step, reached in a line")
    temperature_end: float | None = _setting(None, "temperature in the last step, likewise")
    lmbda: float = _setting(0.0, "share of the steps that learn from the student's own words")
    off_policy_steps: int = _setting(0, "steps before the first of those")
    sampling_temperature: float = _setting(1.0, "of those words; apart from temperature")
    sampling_top_p: float = _setting(1.0, "of those words: the likeliest tokens of that mass")
    max_reply_tokens: int = _setting(64, "longest reply of the student on policy")
    divergence: str = _setting(
        "forward_kl", f"one of {', '.join(DIVERGENCES)}; a parameter follows a colon (skew_kl:0.1)"
    )
    label_smoothing: float = _setting(0.0, "share of each label spread over the vocabulary")
    eval_every: int | None = _setting(None, "steps between evaluations (default: steps / 20)")
    max_length: int | None = _setting(None, "longest conversation in tokens (default: the models')")
    vocab_size: int = _setting(1024, "of the tokenizer that is trained where there is no teacher")
    precision: str = _setting("auto", "fp32, bf16, fp16, or auto: fp32 on a CPU, half on a GPU")
    seed: int = _setting(0, "of the new student's weights and the order of the data")

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "eval_every",
            "max_length",
            "max_reply_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give at least 1")
        for name in ("alpha", "alpha_end", "lmbda", "label_smoothing", "warmup"):
            if not 0.0 <= (getattr(self, name) or 0.0) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}: give a number from 0 to 1")
        for name in ("learning_rate", "temperature", "temperature_end"):
            value = getattr(self, name)
            if value is not None and not (value > 0.0 and math.isfinite(value)):
                raise UserError(f"{name} is {value}: give a number above 0")
        if not (self.weight_decay >= 0.0 and math.isfinite(self.weight_decay)):
            raise UserError(f"weight_decay is {self.weight_decay}: give 0 or a number above it")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}: give a whole number from 0 to {2**32 - 1}")
        for name, known in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}: give {', '.join(known)}")
        divergence_named(self.divergence)
        Sampling(self.sampling_temperature, self.sampling_top_p)
        check_speaks(self.lmbda, self.off_policy_steps, self.steps)

    @property
    def taught(self) -> bool:
        """Whether a teacher takes part."""
        return max(self.alpha, self.alpha_end or 0.0, self.lmbda) > 0.0

    def by_labels(self) -> Settings:
        """The same without a teacher."""
        return replace(self, alpha=0.0, alpha_end=None, lmbda=0.0)

    @property
    def interval(self) -> int:
        return self.eval_every or max(1, self.steps // 20)


def training_arguments(folder: Path, settings: Settings, *, first: bool) -> DistillationArguments:
    """The trainer's arguments; `first`: nothing has been trained, so the curve begins at step 0."""
    return DistillationArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate or TRAINED_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=int(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        alpha=settings.alpha,
        temperature=settings.temperature,
        alpha_end=settings.alpha_end,
        temperature_end=settings.temperature_end,
        lmbda=settings.lmbda,
        off_policy_steps=settings.off_policy_steps,
        sampling_temperature=settings.sampling_temperature,
        sampling_top_p=settings.sampling_top_p,
        max_reply_tokens=settings.max_reply_tokens,
        label_smoothing_factor=settings.label_smoothing,
        bucket_by_length=True,
        eval_on_start=first,
        eval_strategy="steps",
        eval_steps=settings.interval,
        save_strategy="steps",
        save_steps=settings.interval,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=settings.interval,
        disable_tqdm=True,
        log_level="error",
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        seed=settings.seed,
    )


def divergence_named(name: str) -> losses.Divergence:
    """`"forward_kl"`, or with a parameter `"jensen_shannon:0.3"`, as an object of `losses`."""
    kind, colon, parameter = name.partition(":")
    try:
        return DIVERGENCES[kind](*([float(parameter)] if colon else []))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"divergence is {name!r}: give one of {', '.join(DIVERGENCES)}; jensen_shannon, "
            "skew_kl and top_k_kl take a number after a colon"
        ) from None
