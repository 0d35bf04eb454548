"""The trainer: Hugging Face's own, with a teacher beside the student.

`DistillationTrainer` minimises α·T²·mean D(teacher, student) + (1−α)·mean −log student[label]. What
it adds to `transformers.Trainer` is small, and is where distillation code usually goes wrong:

- logits and labels are aligned once, together, as the kind of model asks (a causal model's are
  shifted), and only the positions that have a label enter;
- both means divide by the number of such positions in the whole optimiser step, over micro-batches
  and processes, so the loss does not depend on how a step is cut into pieces;
- the output heads run at those positions only (see `logits.py`);
- the teacher is frozen, in eval mode, and belongs to no checkpoint;
- `eval_loss` is the labels' negative log-likelihood per token, so every arm is judged alike;
- a checkpoint appears whole or not at all (see `saving.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from distillkit.batching import EpochTeller, EvenRows, shuffled
from distillkit.chat import IGNORE_INDEX, Collator, encode_rows
from distillkit.encoders import collator_for
from distillkit.errors import UserError
from distillkit.logits import (
    CAUSAL,
    aligned_labels,
    alignment_of,
    check_causal,
    labelled_positions,
    logits_at,
)
from distillkit.losses import Divergence, forward_kl, label_loss
from distillkit.pairing import shared_logits
from distillkit.saving import WholeCheckpoints, checkpoints_in

__all__ = ["DistillationArguments", "DistillationTrainer", "checkpoints_in"]


@dataclass
class DistillationArguments(TrainingArguments):
    """`transformers.TrainingArguments`, and what distillation needs besides.

    `alpha` is the weight of the teacher's term (0: labels alone, the teacher is not run; 1: the
    teacher alone). `temperature` divides both logits in that term. `label_smoothing_factor` smooths
    the labels' term. `bucket_by_length` puts conversations of like length into a batch, which saves
    padding. `max_length` cuts conversations that this trainer encodes itself.
    """

    alpha: float = field(default=0.5, metadata={"help": "weight of the teacher's term, 0 to 1"})
    temperature: float = field(default=2.0, metadata={"help": "softens teacher and student alike"})
    bucket_by_length: bool = field(default=False, metadata={"help": "batch like lengths together"})
    max_length: int | None = field(default=None, metadata={"help": "longest conversation, tokens"})
    report_to: str | list[str] | None = field(default="none")
    remove_unused_columns: bool = field(default=False)
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.alpha <= 1.0:
            raise UserError(f"alpha is {self.alpha}: it is a weight, so give a number from 0 to 1")
        if not self.temperature > 0.0:
            raise UserError(f"temperature is {self.temperature}: give a number above 0")


class DistillationTrainer(WholeCheckpoints):
    """Trains `student` on labels and on a frozen `teacher`'s distribution over the next token.

    `train_dataset` and `eval_dataset` hold rows of `input_ids` and `labels` (as `encode_rows` makes
    them, not shifted), or rows of `messages`, which are encoded with `processing_class`. The models
    may also be classifiers or masked language models, on rows that `encoders` makes. Without a
    teacher, or with `alpha=0`, the loss is the labels' alone. `predict(rows)` gives, for each
    conversation, the summed −log q[label] as `predictions` and the number of labels as `label_ids`.

    Raises `UserError` when teacher and student share weights, when their vocabularies cannot be
    compared, or when one of them looks ahead.
    """

    args: DistillationArguments

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None = None,
        *,
        args: DistillationArguments,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        divergence: Divergence = forward_kl,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        data_collator: Callable | None = None,
        **trainer_options: Any,
    ) -> None:
        causal = alignment_of(student) is CAUSAL
        if data_collator is None and processing_class is not None:
            data_collator = (
                Collator(processing_class) if causal else collator_for(student, processing_class)
            )
        if causal or _holds(train_dataset, "messages") or _holds(eval_dataset, "messages"):
            check_causal(student)
        keeps_cache = getattr(student.config, "use_cache", None)
        super().__init__(
            model=student,
            args=args,
            data_collator=data_collator,
            train_dataset=_encoded(train_dataset, processing_class, args.max_length),
            eval_dataset=_encoded(eval_dataset, processing_class, args.max_length),
            processing_class=processing_class,
            **trainer_options,
        )
        # The base class switches the cache off in the configuration, and would save it like that.
        if keeps_cache is not None:
            student.config.use_cache = keeps_cache
        self.divergence = divergence
        self.teacher = teacher if args.alpha > 0.0 else None
        self.shared_ids: int | None = None
        if self.teacher is not None:
            self.shared_ids = shared_logits(
                student, self.teacher, processing_class, teacher_tokenizer
            )
            _freeze(self.teacher, student, self.accelerator.device)
        # Our loss is divided by the tokens of the whole step: the base class must not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._epochs = EpochTeller()
        self.add_callback(self._epochs)
        self._parts: dict[str, Tensor] = {}
        self._steps = 0  # that the parts are summed over

    # --- the loss -----------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The share of this micro-batch in the loss of the step.

        It is multiplied by the number of processes, whose gradients will be averaged. With
        `return_outputs`, also {"logits": (N, V)} at the N labelled positions.
        """
        rows, labels = labelled_positions(self.model, inputs)
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        count = torch.as_tensor(count, device=labels.device).clamp(min=1)
        logits = logits_at(model, inputs, rows, self.model)
        parts = []
        if self.teacher is not None:
            soft = self._soft_loss(self.teacher, logits, inputs, rows) / count
            parts.append(self._alpha * self._note("soft_loss", soft))
        if self._alpha < 1.0:
            smoothing = self.args.label_smoothing_factor
            hard = label_loss(logits, labels, label_smoothing=smoothing, num_items=count)
            parts.append((1.0 - self._alpha) * self._note("hard_loss", hard))
        loss = torch.stack(parts).sum()
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    @property
    def _alpha(self) -> float:
        return 0.0 if self.teacher is None else self.args.alpha

    def _soft_loss(
        self, teacher: PreTrainedModel, logits: Tensor, inputs: dict[str, Any], rows: Tensor
    ) -> Tensor:
        """T² (the divergence's own power of T) times the sum of D(teacher, student) over `rows`."""
        temperature = self.args.temperature
        if teacher.training:  # somebody called train() on it since
            teacher.eval()
        with torch.no_grad(), self.accelerator.autocast():
            teacher_logits = logits_at(teacher, inputs, rows)
        teacher_logits = teacher_logits.to(logits.device)
        if teacher_logits.shape[-1] != logits.shape[-1]:
            logits = logits[:, : self.shared_ids]
            teacher_logits = teacher_logits[:, : self.shared_ids]
        per_token = self.divergence(logits, teacher_logits, temperature)
        return temperature**self.divergence.temperature_power * per_token.sum()

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | None]:
        """The micro-batches of a step, and how many positions of all processes enter its loss."""
        if self.state.global_step >= self.state.max_steps:  # resumed behind the last step
            self.control.should_training_stop = True
            return [], None
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        self._steps += 1
        counts = [(aligned_labels(self.model, each) != IGNORE_INDEX).sum() for each in batches]
        return batches, self.accelerator.reduce(torch.stack(counts).sum().to(device), "sum")

    # --- what is logged -----------------------------------------------------------------------

    def _note(self, name: str, value: Tensor) -> Tensor:
        """Add to the sum that the next log entry shows. It stays on the device: no waiting."""
        if torch.is_grad_enabled():
            seen = self._parts.get(name)
            self._parts[name] = value.detach() if seen is None else seen + value.detach()
        return value

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """As in the base class, and beside loss = α·soft_loss + (1−α)·hard_loss the two parts."""
        if "loss" in logs and self._parts:
            for name, value in self._parts.items():
                total = self.accelerator.reduce(value, reduction="sum").item()
                logs[name] = total / max(self._steps, 1)
            soft, hard = logs.get("soft_loss", 0.0), logs.get("hard_loss", 0.0)
            logs["loss"] = self._alpha * soft + (1.0 - self._alpha) * hard
            self._parts, self._steps = {}, 0
        super().log(logs, *rest, **named)

    # --- evaluation ---------------------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, Tensor]:
        """Per conversation: the sum of −log q[label] in nats, and how many labels there are."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            rows, labels = labelled_positions(self.model, inputs)
            logits = logits_at(model, inputs, rows, self.model)
            nll = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        conversations = len(inputs["labels"])
        owner = rows // (inputs["labels"].numel() // conversations)
        sums = nll.new_zeros(conversations).index_add_(0, owner, nll)
        return None, sums, torch.bincount(owner, minlength=conversations)

    def evaluation_loop(self, *args: Any, **named: Any) -> EvalLoopOutput:
        """As in the base class; the loss is Σ −log q[label] / Σ labels, whatever the batch size."""
        output = super().evaluation_loop(*args, **named)
        nll, tokens = np.asarray(output.predictions), np.asarray(output.label_ids)
        if output.metrics is not None and tokens.sum() > 0:
            prefix = named.get("metric_key_prefix", "eval")
            output.metrics[f"{prefix}_loss"] = float(nll.sum(dtype=np.float64) / tokens.sum())
        return output

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        # In the given order, so that predict() can be read conversation by conversation.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def get_train_dataloader(self) -> DataLoader:
        """As in the base class; a process that would run out of conversations gets blank ones."""
        given, step = self.train_dataset, self._train_batch_size * self.args.world_size
        if (
            self.args.world_size > 1
            and not self.args.dataloader_drop_last
            and _holds(given, "input_ids")
        ):
            self.train_dataset = EvenRows(given, step)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = given

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        strategy = getattr(self.args, "train_sampling_strategy", "random")
        if strategy != "random" or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        step = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        bucket = step if self.args.bucket_by_length else None
        self._epochs.sampler = shuffled(dataset, bucket, seed=seed)
        return self._epochs.sampler

    def train(self, *args: Any, **named: Any) -> Any:
        """As in the base class. The counters that the log shows start anew."""
        self._parts, self._steps = {}, 0
        if self.teacher is not None:
            self.teacher.eval()
        return super().train(*args, **named)


def _encoded(dataset: Any, tokenizer: Any, max_length: int | None) -> Any:
    """Rows of messages become rows of ids and labels; what is encoded already passes through."""
    if isinstance(dataset, dict):
        return {name: _encoded(rows, tokenizer, max_length) for name, rows in dataset.items()}
    if dataset is None or not hasattr(dataset, "__len__") or len(dataset) == 0:
        return dataset
    first = dataset[0]
    if "messages" not in first or "input_ids" in first:
        return dataset
    if tokenizer is None:
        raise UserError("the rows hold messages: pass processing_class=tokenizer to encode them")
    return encode_rows(tokenizer, dataset, max_length=max_length)


def _holds(dataset: Any, column: str) -> bool:
    return hasattr(dataset, "__len__") and len(dataset) > 0 and column in dataset[0]


def _freeze(teacher: PreTrainedModel, student: PreTrainedModel, device: torch.device) -> None:
    """Eval mode, no gradients, on the trainer's device; refused when it is part of the student."""
    weights = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in weights for parameter in teacher.parameters()):
        raise UserError(
            "teacher and student share weights, so freezing one freezes the other: "
            "make the student with copy.deepcopy or student_from_layers"
        )
    teacher.eval().requires_grad_(False)
    if getattr(teacher, "hf_device_map", None) is None:
        nn.Module.to(teacher, device)
