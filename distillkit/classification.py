"""How good a classifier is: accuracy in scope, recall out of scope, likelihood and calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.decoding import evaluating, position_limit
from distillkit.dialogues.intents import OUT_OF_SCOPE
from distillkit.encoders import collator_for
from distillkit.errors import UserError
from distillkit.evaluation import Calibration, calibration_of
from distillkit.logits import CLASSIFIER, alignment_of, labelled_positions, logits_at


@dataclass(frozen=True)
class Answers:
    """What a classifier said of N texts: log_probs (N, C), the right labels (N,), class names."""

    log_probs: Tensor
    labels: Tensor
    names: tuple[str, ...]

    @property
    def hits(self) -> Tensor:
        """Whether the likeliest class is the right one (N,)."""
        return self.log_probs.argmax(-1) == self.labels

    @property
    def in_scope(self) -> Tensor:
        """Which texts are in scope (N,): all of them, where the classes know no `oos`."""
        inside = torch.ones_like(self.labels, dtype=torch.bool)
        if OUT_OF_SCOPE in self.names:
            inside = self.labels != self.names.index(OUT_OF_SCOPE)
        return inside

    @property
    def accuracy(self) -> float:
        """Share of the texts in scope that got their class (to call one `oos` is an error)."""
        return self.hits[self.in_scope].double().mean().item()

    @property
    def recall_out_of_scope(self) -> float:
        """Share of the texts out of scope that were called so; nan where there are none."""
        return self.hits[~self.in_scope].double().mean().item()

    @property
    def nll(self) -> float:
        """Mean −log q(right class) over all texts, in nats."""
        rows = torch.arange(len(self.labels))
        return -self.log_probs[rows, self.labels].double().mean().item()

    def calibration(self, *, bins: int = 15) -> Calibration:
        """Expected calibration error over all texts, and its bins."""
        return calibration_of(self.log_probs.max(-1).values.exp(), self.hits, bins=bins)

    def measures(self) -> dict[str, float]:
        """The four numbers by name."""
        return {
            "accuracy": self.accuracy,
            "recall_out_of_scope": self.recall_out_of_scope,
            "nll": self.nll,
            "calibration_error": self.calibration().error,
        }


def classify(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[dict[str, Any]],
    *,
    batch_size: int = 64,
) -> Answers:
    """Run a classifier over rows of `input_ids` and `labels` (see `encoders.encode_intents`).

    Texts of like length share a batch; the answers are in the order of the rows.
    Raises UserError where there is no row, the model is no classifier, a row has no label among
    its classes or more tokens than its positions.
    """
    if not encoded:
        raise UserError("there is no text to classify: pass at least one row")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: give at least 1")
    if (kind := alignment_of(model)) is not CLASSIFIER:
        raise UserError(f"{type(model).__name__} is {kind.name}: expected a classifier")
    _check_rows(model, encoded)
    collate = collator_for(model, tokenizer)
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]["input_ids"]))
    found = []
    for start in range(0, len(order), batch_size):
        rows = [encoded[row] for row in order[start : start + batch_size]]
        batch = {name: value.to(model.device) for name, value in collate(rows).items()}
        places, _ = labelled_positions(model, batch)
        with evaluating(model), torch.inference_mode():
            found.append(logits_at(model, batch, places).float().log_softmax(-1).cpu())
    log_probs = torch.cat(found)[torch.tensor(order).argsort()].clone()
    labels = torch.tensor([row["labels"] for row in encoded])
    return Answers(log_probs, labels, class_names(model))


def _check_rows(model: PreTrainedModel, encoded: Sequence[dict[str, Any]]) -> None:
    classes, limit = int(model.config.num_labels or 0), position_limit(model)
    for number, row in enumerate(encoded):
        label, length = row.get("labels"), len(row["input_ids"])
        if not _is_below(classes, label):
            raise UserError(
                f"the label of row {number} is {label}: expected one of the model's {classes} "
                f"classes, a whole number from 0 to {classes - 1}"
            )
        if limit is not None and length > limit:
            raise UserError(
                f"row {number} has {length} tokens, the model {limit} positions: encode the texts "
                f"with max_length={limit}"
            )


def _is_below(end: int, value: Any) -> bool:
    try:
        return 0 <= index(value) < end
    except TypeError:  # no whole number
        return False


def class_names(model: Any) -> tuple[str, ...]:
    """The names of a classifier's logits, in their order.

    `id2label` need not be: many configurations on the hub name class 10 right after class 1.
    """
    names = model.config.id2label
    return tuple(names[number] for number in sorted(names))
