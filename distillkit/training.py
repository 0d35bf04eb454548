"""The trainer: Hugging Face's own, with a teacher beside the student.

`DistillationTrainer` minimises α·T²·mean D(teacher, student) + (1−α)·mean −log student[label]. What
it adds to `transformers.Trainer` is small, and is where distillation code usually goes wrong:

- logits and labels are aligned once, together, as the kind of model asks (a causal model's are
  shifted), and only the positions that have a label enter;
- both means divide by the number of such positions in the whole optimiser step, over micro-batches
  and processes, so the loss does not depend on how a step is cut into pieces;
- the output heads run at those positions only (see `logits.py`);
- the teacher is frozen, in eval mode, and belongs to no checkpoint;
- a step may learn from what the student itself says (see `on_policy.py`); its tokens are counted
  after they are there, it has no labels, so alpha is 1 in it;
- `eval_loss` is the labels' negative log-likelihood per token, so every arm is judged alike;
- a checkpoint appears whole or not at all (see `saving.py`);
- what is inside the teacher can be matched too (see `feature_training.py`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput

from distillkit.batching import EpochTeller, EvenRows, shuffled
from distillkit.chat import IGNORE_INDEX, Collator, encode_rows
from distillkit.decoding import check_reply_room, position_limit
from distillkit.encoders import collator_for
from distillkit.errors import UserError
from distillkit.feature_training import Features, FeatureTrainer
from distillkit.logits import (
    CAUSAL,
    aligned_labels,
    alignment_of,
    check_causal,
    labelled_positions,
    logits_at,
)
from distillkit.losses import Divergence, forward_kl, label_loss
from distillkit.on_policy import OneTurn, Rollout, is_on_policy
from distillkit.pairing import shared_logits
from distillkit.sampling import Sampling
from distillkit.saving import checkpoints_in
from distillkit.training_arguments import DistillationArguments, check_speaks

__all__ = ["DistillationArguments", "DistillationTrainer", "checkpoints_in"]


class DistillationTrainer(FeatureTrainer):
    """Trains `student` on labels and on a frozen `teacher`'s distribution over the next token.

    `train_dataset` and `eval_dataset` hold rows of `input_ids` and `labels` (as `encode_rows` makes
    them, not shifted), or rows of `messages`, which are encoded with `processing_class`. The models
    may also be classifiers or masked language models, on rows that `encoders` makes. Without a
    teacher, or with `alpha=0`, the loss is the labels' alone; `features` are added to either.
    `predict(rows)` gives, for each conversation, the summed −log q[label] as `predictions` and the
    number of labels as `label_ids`. `rollout` is how the student comes to speak in on-policy steps:
    by default one turn of each conversation of the batch (`on_policy.OneTurn`).

    Raises `UserError` when teacher and student share weights, when their vocabularies cannot be
    compared, when one of them looks ahead, or when on-policy steps lack a teacher, a tokenizer or a
    student that can speak; in training, when nobody finds room to speak in a whole on-policy step.
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
        features: Features | None = None,
        rollout: Rollout | None = None,
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
        self.teacher = teacher if args.needs_teacher or features is not None else None
        self.use_features(features)
        self.rollout = _speaking(rollout, args, student, self.teacher, processing_class)
        self.shared_ids: int | None = None
        if self.teacher is not None:
            self.shared_ids = shared_logits(
                student, self.teacher, processing_class, teacher_tokenizer
            )
            _freeze(self.teacher, student, self.accelerator.device)
        # Our loss is divided by the tokens of the whole step: the base class must not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._epochs = EpochTeller(data_collator)
        self.add_callback(self._epochs)
        self._parts: dict[str, Tensor] = {}
        self._steps: Counter[str] = Counter()  # that each part is summed over
        self.on_policy = False  # whether this step learns from the student's own words

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
        with self.looking_inside(self.model, 0) as student_inside:
            logits = logits_at(model, inputs, rows, self.model)
        alpha, parts = self._alpha, []
        if self.teacher is not None and (alpha > 0.0 or self.features is not None):
            with self.looking_inside(self.teacher, 1) as teacher_inside:
                teacher_logits = self._teacher_logits(self.teacher, inputs, rows)
            whole = num_items_in_batch is not None
            parts += self.feature_losses(student_inside, teacher_inside, inputs, whole_step=whole)
        if alpha > 0.0:
            soft = self._soft_loss(logits, teacher_logits) / count
            name = "on_policy_loss" if self.on_policy else "soft_loss"
            parts.append(alpha * self._note(name, soft))
        if alpha < 1.0:
            smoothing = self.args.label_smoothing_factor
            hard = label_loss(logits, labels, label_smoothing=smoothing, num_items=count)
            parts.append((1.0 - alpha) * self._note("hard_loss", hard))
        loss = self._note("loss", torch.stack(parts).sum())
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    @property
    def _alpha(self) -> float:
        if self.teacher is None:
            return 0.0
        return 1.0 if self.on_policy else self._scheduled(self.args.alpha, self.args.alpha_end)

    @property
    def _temperature(self) -> float:
        return self._scheduled(self.args.temperature, self.args.temperature_end)

    def _scheduled(self, start: float, end: float | None) -> float:
        """On the line from `start` in the first step to `end` in the last."""
        done = min(1.0, self.state.global_step / max(1, self.state.max_steps - 1))
        return start if end is None else start + done * (end - start)

    def _teacher_logits(
        self, teacher: PreTrainedModel, inputs: dict[str, Any], rows: Tensor
    ) -> Tensor:
        if teacher.training:  # somebody called train() on it since
            teacher.eval()
        with torch.no_grad(), self.accelerator.autocast():
            return logits_at(teacher, inputs, rows)

    def _soft_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """T² (the divergence's own power of T) times the sum of D(teacher, student)."""
        temperature = self._temperature
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
        self._begin_step()
        if self.on_policy and self.rollout is not None:
            step = self.state.global_step
            student: Any = self.model  # without the wrapper of several processes
            rows = [self.rollout(student, batch, step) for batch in batches]
            batches = [self.data_collator(written) for written in rows]
        self.begin_step(batches, device)
        counts = [(aligned_labels(self.model, each) != IGNORE_INDEX).sum() for each in batches]
        total = self.accelerator.reduce(torch.stack(counts).sum().to(device), "sum")
        if self.on_policy and not total.item():
            self._refuse_silence()
        return batches, total

    def _refuse_silence(self) -> None:
        student: Any = self.model
        most = getattr(self.rollout, "max_reply_tokens", self.args.max_reply_tokens)
        raise UserError(
            f"step {self.state.global_step} is on policy, and the student says nothing in it: "
            f"beside a reply of {most} tokens no prompt of its conversations fits into the "
            f"student's {position_limit(student)} positions; give a smaller max_reply_tokens, "
            "or leave out the conversations that are so long before the assistant speaks"
        )

    def _begin_step(self) -> None:
        """Decide whether the step is on policy, and count it for what the log shows."""
        seed, step = self.args.seed, self.state.global_step
        if self.rollout is not None:  # epochs have become a number of steps by now
            check_speaks(self.args.lmbda, self.args.off_policy_steps, self.state.max_steps)
        lmbda = self.args.lmbda if step >= self.args.off_policy_steps else 0.0
        self.on_policy = self.rollout is not None and is_on_policy(lmbda, seed, step)
        kind = "on_policy_loss" if self.on_policy else "soft_loss"
        self._steps.update(["loss", kind, *self.names] + ["hard_loss"] * (not self.on_policy))

    # --- what is logged -----------------------------------------------------------------------

    def _note(self, name: str, value: Tensor) -> Tensor:
        """Add to the sum that the next log entry shows. It stays on the device: no waiting."""
        if torch.is_grad_enabled():
            seen = self._parts.get(name)
            self._parts[name] = value.detach() if seen is None else seen + value.detach()
        return value

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """As in the base class, and beside the loss its parts, and what is on a schedule.

        `soft_loss` and `hard_loss` are means over the steps that have labels, `on_policy_loss` over
        those that have not; each feature is a mean over all of them.
        """
        if "loss" in logs and self._parts:
            for name, value in self._parts.items():
                total = self.accelerator.reduce(value, reduction="sum").item()
                logs[name] = total / max(self._steps[name], 1)
            for name in ("alpha", "temperature"):
                end = getattr(self.args, f"{name}_end")
                if end is not None:
                    logs[name] = self._scheduled(getattr(self.args, name), end)
            self._parts, self._steps = {}, Counter()
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
        if output.predictions is None:  # there were no rows
            return output
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
        self._parts, self._steps = {}, Counter()
        if self.teacher is not None:
            self.teacher.eval()
        try:
            return super().train(*args, **named)
        finally:
            self.on_policy = False


def _speaking(
    rollout: Rollout | None,
    args: DistillationArguments,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Rollout | None:
    """How the student comes to speak, in a run that has on-policy steps."""
    if args.lmbda == 0.0:
        return None
    if teacher is None or (rollout is None and tokenizer is None):
        raise UserError(
            f"lmbda is {args.lmbda}: on-policy steps need a teacher, who scores the student's "
            "words, and processing_class=tokenizer, which knows the end of a turn"
        )
    check_causal(student)
    if rollout is None:
        check_reply_room(student, args.max_reply_tokens)
    sampling = Sampling(args.sampling_temperature, args.sampling_top_p, args.seed)
    return rollout or OneTurn(tokenizer, sampling, args.max_reply_tokens)  # type: ignore[arg-type]


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
