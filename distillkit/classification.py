"""How good a classifier is: accuracy in scope, recall out of scope, likelihood and calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.decoding import evaluating
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
    Raises UserError where there is no row, or the model is no classifier.
    """
    if not encoded:
        raise UserError("there is no text to classify: pass at least one row")
    if (kind := alignment_of(model)) is not CLASSIFIER:
        raise UserError(f"{type(model).__name__} is {kind.name}: expected a classifier")
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


def class_names(model: Any) -> tuple[str, ...]:
    """The names of a classifier's logits, in their order.

    `id2label` need not be: many configurations on the hub name class 10 right after class 1.
    """
    names = model.config.id2label
    return tuple(names[number] for number in sorted(names))
