"""How the trainer learns from what is inside the teacher: projections, masks, checkpoints.

The losses and what they read are in `features.py`. Each of them is divided by the real tokens of
the whole optimiser step (of everything that was said, not of the assistant's words alone), over
micro-batches and processes. The projections are learned with the student's optimiser and belong to
a checkpoint's training state, in a file of their own; the student's weights never hold them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from distillkit.errors import UserError
from distillkit.features import After, Hidden, Inside, Match
from distillkit.inside import looking_inside
from distillkit.logits import valid_tokens
from distillkit.saving import WholeCheckpoints

_FILE = "projections.safetensors"


class Features(nn.Module):
    """Which losses, between which places of student and teacher, with which weights.

    `matches` are `Hidden`, `Attention` and `Relations` objects. A `Hidden` between models of
    different width gets a learned matrix, without bias, from the student's width to the teacher's;
    as a module this object holds these and nothing else. Their first values depend on `seed` alone.

    An optimizer of your own must learn them too:
    `muon(torch.nn.ModuleList([student, features]), …)`.

    Raises UserError where nothing is to be matched, or places and layers are confused.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        matches: Sequence[Match],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(matches)
        self.matches = tuple(matches)
        mine, its = (m.config.get_text_config().hidden_size for m in (student, teacher))
        self.projections = nn.ModuleDict()
        random = torch.Generator().manual_seed(seed)
        for number, match in enumerate(self.matches):
            if isinstance(match, Hidden) and mine != its:
                layer = nn.Linear(mine, its, bias=False, dtype=_dtype(student))
                nn.init.normal_(layer.weight, std=mine**-0.5, generator=random)
                self.projections[str(number)] = layer

    def wanted(self, whose: int) -> dict[str, set]:
        """The places and layers to look at: of the student (0) or of the teacher (1)."""
        places: set = set()
        layers: set = set()
        for match in self.matches:
            kind = places if isinstance(match, Hidden) else layers
            kind |= {pair[whose] for pair in match.pairs}
        return {"places": places, "layers": layers}

    def forward(self, student: Inside, teacher: Inside, valid: Tensor) -> list[Tensor]:
        """For each match the sum of its loss over the valid tokens; `valid` is (B, S)."""

        def visible(causal: bool) -> Tensor:
            pairs = valid.unsqueeze(1) & valid.unsqueeze(2)
            return pairs.tril() if causal else pairs

        sums = []
        with torch.autocast(valid.device.type, enabled=False):
            for number, match in enumerate(self.matches):
                project = self._project(number)
                losses = match.per_token(student, teacher, project, visible)
                sums.append(losses.masked_fill(~valid, 0.0).sum())
        return sums

    def _project(self, number: int) -> Any:
        if str(number) not in self.projections:
            return lambda states: states
        layer = self.projections[str(number)]
        return lambda states: layer(states.to(layer.weight.dtype))


def _dtype(student: PreTrainedModel) -> torch.dtype:
    """At least float32: the projections are not part of a half-precision student."""
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def _check(matches: Sequence[Match]) -> None:
    if not isinstance(matches, list | tuple) or not all(isinstance(m, Match) for m in matches):
        raise UserError(
            f"features are {matches!r:.80}: expected a list of Hidden, Attention and Relations, "
            "such as [Hidden([(After(1), After(2))])]"
        )
    if not matches:
        raise UserError("features are empty: give at least one Hidden, Attention or Relations")
    for match in matches:
        kind = After if isinstance(match, Hidden) else int
        wanted = (
            "places, such as (After(1), After(2))" if kind is After else "layers, such as (1, 2)"
        )
        if not match.pairs or not all(
            isinstance(pair, list | tuple)
            and [isinstance(each, kind) for each in pair] == [True] * 2
            for pair in match.pairs
        ):
            raise UserError(
                f"the pairs of {type(match).__name__} are {list(match.pairs)}: expected pairs of "
                f"{wanted}, at least one"
            )
        if not math.isfinite(match.weight):
            raise UserError(
                f"the weight of {type(match).__name__} is {match.weight}: give a number"
            )


class FeatureTrainer(WholeCheckpoints):
    """The part of `DistillationTrainer` that matches features; without any it does nothing."""

    features: Features | None = None
    teacher: PreTrainedModel | None

    def use_features(self, features: Features | None) -> None:
        """Take them, on the trainer's device. Raises UserError where something is missing."""
        self.features, self._tokens = features, torch.tensor(0)
        if features is None:
            return
        if self.teacher is None:
            raise UserError("features need a teacher to read them from: pass one")
        for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
            if (getattr(self.args, name, None) or {}).get("use_reentrant"):
                raise UserError(
                    f"{name} has use_reentrant: the inside of the network would get no gradient, "
                    'so give {"use_reentrant": False}'
                )
        features.to(self.accelerator.device)
        if self.optimizer is not None and not _learned(features) <= _learned(self.optimizer):
            raise UserError(
                "the optimizer does not learn the projections of features: make it for "
                "torch.nn.ModuleList([student, features])"
            )

    def looking_inside(self, model: Any, whose: int) -> AbstractContextManager:
        """Read the student (0) or the teacher (1) in its next pass."""
        if self.features is None:
            return nullcontext()
        return looking_inside(model, **self.features.wanted(whose))

    def feature_losses(
        self, student: Any, teacher: Any, inputs: dict[str, Any], *, whole_step: bool
    ) -> list[Tensor]:
        """Each match's weighted share in the loss of the step, or of this batch alone."""
        if self.features is None:
            return []
        valid = valid_tokens(self.model, inputs)
        count = self._tokens if whole_step else valid.sum()
        sums = self.features(student, teacher, valid)
        return [
            match.weight * self._note(name, total / count.to(total.device).clamp(min=1))
            for name, match, total in zip(self.names, self.features.matches, sums, strict=True)
        ]

    @property
    def names(self) -> list[str]:
        """What the log calls each match; several of a kind are numbered."""
        kinds = [match.name for match in self.features.matches] if self.features else []
        return [
            kind if kinds.count(kind) == 1 else f"{kind}_{kinds[:number].count(kind) + 1}"
            for number, kind in enumerate(kinds)
        ]

    def begin_step(self, batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Note how many real tokens all processes have in the step.

        The base class sets the gradients of its model to zero, and knows nothing of projections.
        """
        if self.features is not None:
            self.features.zero_grad()
            mine = torch.stack([valid_tokens(self.model, each).sum() for each in batches]).sum()
            self._tokens = self.accelerator.reduce(mine.to(device), "sum")

    # --- the projections --------------------------------------------------------------------------

    def create_optimizer(self, *args: Any, **named: Any) -> Optimizer:
        """As in the base class; it learns the projections too, without decay."""
        optimizer = super().create_optimizer(*args, **named)
        if self.features is not None and not _learned(self.features) <= _learned(optimizer):
            new = {"params": list(self.features.parameters()), "weight_decay": 0.0}
            optimizer.add_param_group(new)
        return optimizer

    def training_step(self, *args: Any, **named: Any) -> Tensor:
        """As in the base class. The projections are in no wrapper that would average gradients."""
        loss = super().training_step(*args, **named)
        if self.features is not None and self.accelerator.sync_gradients:
            for parameter in self.features.parameters():
                if parameter.grad is not None and self.accelerator.num_processes > 1:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.features is not None and self.args.should_save:
            save_model(self.features, str(Path(output_dir) / _FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._check_projections(Path(checkpoint) / _FILE)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.features is not None and self.features.projections:
            load_model(self.features, str(Path(checkpoint) / _FILE))

    def _check_projections(self, file: Path) -> None:
        """Refuse a checkpoint that was made with other projections, before torch trips over it."""
        mine = self.features.state_dict() if self.features is not None else {}
        wanted = {name: list(weight.shape) for name, weight in mine.items()}
        found = {}
        if file.exists():
            with safe_open(file, "pt") as weights:
                names = list(weights.keys())  # it is no dict
                found = {name: weights.get_slice(name).get_shape() for name in names}
        if found != wanted:
            raise UserError(
                f"{file.parent} was made with other features (its projections are {found or 'none'}"
                f", those of this run {wanted or 'none'}): give the same ones, or start anew"
            )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The projections are clipped together with the student: one gradient, one norm."""
        learned = list(self.features.parameters()) if self.features is not None else []
        if not learned:
            return super()._clip_grad_norm(model)
        together = [*model.parameters(), *learned]
        return self.accelerator.clip_grad_norm_(together, self.args.max_grad_norm)

    def _note(self, name: str, value: Tensor) -> Tensor:
        raise NotImplementedError


def _learned(owner: nn.Module | Optimizer) -> set[int]:
    if isinstance(owner, nn.Module):
        return {id(parameter) for parameter in owner.parameters()}
    return {id(parameter) for group in owner.param_groups for parameter in group["params"]}
