"""Which weights go: the smallest, or those whose loss is felt least (Wanda)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from distillkit.calibration import Inputs
from distillkit.errors import UserError
from distillkit.pruning.patterns import Pattern

__all__ = ["Magnitude", "Method", "Wanda", "magnitude_mask", "wanda_mask"]


class Method(Protocol):
    """A way to prune one weight: a callable with a name, and what it must know of the inputs."""

    @property
    def name(self) -> str: ...

    @property
    def reads_inputs(self) -> bool: ...

    @property
    def reads_products(self) -> bool: ...

    def __call__(
        self, weight_RC: Tensor, inputs: Inputs | None, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        """The new weight (R, C), and True (R, C) where it was kept."""
        ...


def magnitude_mask(weight_RC: Tensor, pattern: Pattern) -> Tensor:
    """Keep the weights of largest |W|, compared within the whole matrix.

    Returns True (R, C) where a weight stays. This is the layer-wise baseline of Wanda's paper.
    Source: Han et al. 2015, "Learning both weights and connections for efficient neural networks".

    >>> import torch
    >>> from distillkit.pruning.patterns import Unstructured
    >>> magnitude_mask(torch.tensor([[4.0, -1.0], [-3.0, 2.0]]), Unstructured(0.5)).tolist()
    [[True, False], [True, False]]
    """
    pattern.check(weight_RC.shape[1])
    return pattern.keep(weight_RC.abs().reshape(1, -1)).view(weight_RC.shape)


def wanda_mask(weight_RC: Tensor, norms_C: Tensor, pattern: Pattern) -> Tensor:
    """Keep the weights of largest |W_rc|·‖x_c‖₂, compared within each output row.

    norms_C: ‖x_c‖₂ of each input feature over the calibration tokens (`Inputs.norms`). Returns True
    (R, C) where a weight stays. Source: Sun et al. 2023, "A simple and effective pruning approach
    for large language models", equation 1.

    >>> import torch
    >>> from distillkit.pruning.patterns import Unstructured
    >>> weight, norms = torch.tensor([[4.0, -1.0], [-3.0, 2.0]]), torch.tensor([1.0, 8.0])
    >>> wanda_mask(weight, norms, Unstructured(0.5)).tolist()
    [[False, True], [False, True]]
    """
    return pattern.keep(weight_RC.abs() * norms_C.to(weight_RC))


@dataclass(frozen=True)
class Magnitude:
    """`magnitude_mask` as a method: it asks for no calibration."""

    name: str = "magnitude"
    reads_inputs: bool = False
    reads_products: bool = False

    def __call__(
        self, weight_RC: Tensor, inputs: Inputs | None, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        keep = magnitude_mask(weight_RC, pattern)
        return weight_RC * keep, keep


@dataclass(frozen=True)
class Wanda:
    """`wanda_mask` as a method: weights that stay are not changed."""

    name: str = "Wanda"
    reads_inputs: bool = True
    reads_products: bool = False

    def __call__(
        self, weight_RC: Tensor, inputs: Inputs | None, pattern: Pattern
    ) -> tuple[Tensor, Tensor]:
        if inputs is None:
            raise UserError("Wanda weighs weights by what they read: give it inputs")
        keep = wanda_mask(weight_RC, inputs.norms, pattern)
        return weight_RC * keep, keep
