"""The arguments of the trainer: those of transformers, and what distillation needs besides."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from distillkit.errors import UserError
from distillkit.sampling import Sampling


@dataclass
class DistillationArguments(TrainingArguments):
    """`transformers.TrainingArguments`, and what distillation needs besides.

    `alpha` is the weight of the teacher's term (0: labels alone, the teacher is not run; 1: the
    teacher alone). `temperature` divides both logits in that term. `label_smoothing_factor` smooths
    the labels' term. `bucket_by_length` puts conversations of like length into a batch, which saves
    padding. `max_length` cuts conversations that this trainer encodes itself.

    `alpha_end` and `temperature_end`: what the two become, in a line, by the last step.

    `lmbda` is the share of the steps that learn from the student's own words, sampled anew at
    `sampling_temperature` and `sampling_top_p`, which have nothing to do with `temperature`. There
    are no labels for them, so the hard term falls away and alpha is 1 in these steps. The first
    `off_policy_steps` are not on policy: from a student that cannot speak yet nobody learns.
    """

    alpha: float = field(default=0.5, metadata={"help": "weight of the teacher's term, 0 to 1"})
    temperature: float = field(default=2.0, metadata={"help": "softens teacher and student alike"})
    alpha_end: float | None = field(default=None, metadata={"help": "alpha in the last step"})
    temperature_end: float | None = field(default=None, metadata={"help": "in the last step"})
    lmbda: float = field(default=0.0, metadata={"help": "share of on-policy steps, 0 to 1"})
    off_policy_steps: int = field(default=0, metadata={"help": "that come before any on policy"})
    sampling_temperature: float = field(default=1.0, metadata={"help": "of the student's words"})
    sampling_top_p: float = field(default=1.0, metadata={"help": "of the student's words"})
    max_reply_tokens: int = field(default=64, metadata={"help": "longest reply on policy"})
    bucket_by_length: bool = field(default=False, metadata={"help": "batch like lengths together"})
    max_length: int | None = field(default=None, metadata={"help": "longest conversation, tokens"})
    report_to: str | list[str] | None = field(default="none")
    remove_unused_columns: bool = field(default=False)
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "alpha_end", "lmbda"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UserError(f"{name} is {value}: it is a weight, so give a number from 0 to 1")
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if value is not None and not (value > 0.0 and math.isfinite(value)):
                raise UserError(f"{name} is {value}: give a number above 0")
        if self.max_reply_tokens < 1:
            raise UserError(f"max_reply_tokens is {self.max_reply_tokens}: give at least 1")
        Sampling(self.sampling_temperature, self.sampling_top_p)
        check_speaks(self.lmbda, self.off_policy_steps, self.max_steps)

    @property
    def needs_teacher(self) -> bool:
        return self.alpha > 0.0 or (self.alpha_end or 0.0) > 0.0 or self.lmbda > 0.0


def check_speaks(lmbda: float, off_policy_steps: int, steps: int) -> None:
    """Refuse a run in which the student is to speak (`lmbda` > 0) and never does.

    `steps` below 1: they follow from the epochs and are not known yet. Raises UserError.
    """
    if off_policy_steps < 0:
        raise UserError(f"off_policy_steps is {off_policy_steps}: give 0 or more")
    if lmbda > 0.0 and 0 < steps <= off_policy_steps:
        raise UserError(
            f"lmbda is {lmbda}, and the student would never speak: off_policy_steps is "
            f"{off_policy_steps} in a run of {steps} steps, so give fewer, or lmbda 0"
        )
