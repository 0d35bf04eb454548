"""Muon for the hidden matrices, AdamW for the rest, with one schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Combined(Optimizer):
    """Several optimizers that step as one; schedules and checkpoints see one."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # A schedule writes into our groups and the parts read theirs: they must be the same.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Let every part take a step."""
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self._share_groups()


def muon(
    model: torch.nn.Module,
    *,
    steps: int,
    learning_rate: float,
    warmup: int = 50,
    decay: float = 0.4,
) -> tuple[Combined, LambdaLR]:
    """The pair that `Trainer(optimizers=…)` takes: an optimizer and its schedule.

    The hidden matrices are trained with Muon, which orthogonalises each update; embeddings, norms
    and biases with AdamW at the same rate. The rate rises over `warmup` steps, stays level, and
    falls in a line over the last `decay` share of the steps.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the rate is matched to
    AdamW's as in Liu et al. 2025, "Muon is scalable for LLM training". Needs torch 2.9.
    """
    outer = {id(p) for p in _outer(model)}
    hidden = [p for p in model.parameters() if p.ndim == 2 and id(p) not in outer]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizer = Combined(
        torch.optim.Muon(
            hidden, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        AdamW(rest, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    )
    last = max(1, int(decay * steps))

    def share(step: int) -> float:
        return min((step + 1) / warmup, max(0.02, (steps - step) / last), 1.0)

    return optimizer, LambdaLR(optimizer, share)


def _outer(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The matrices at both ends: embeddings, of positions too, and the output head."""
    parts: list[Any] = list(model.modules())
    heads = [p.get_output_embeddings() for p in parts if hasattr(p, "get_output_embeddings")]
    embeddings = [part for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    return [p for part in (*heads, *embeddings) if part is not None for p in part.parameters()]
