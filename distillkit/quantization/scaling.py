"""Move scale between activations and weights before rounding: SmoothQuant and AWQ.

A layer that reads x/s with weights s·W gives what it gave. What s multiplies is rounded on a
coarser or a finer grid by that, and here the two methods differ: SmoothQuant shrinks activations
that eight bits would not hold, AWQ enlarges weights that large activations meet. The division is
folded into what writes the features (`rescaling.bonds`), so nothing is left to compute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillkit.calibration import Inputs, layer_by_layer
from distillkit.errors import UserError
from distillkit.quantization.grids import Grid, Limits, min_max, round_to_nearest
from distillkit.quantization.quantizing import is_quantized, stack_linears
from distillkit.rescaling import WRITERS, Bond, bonds, rescale

__all__ = [
    "activation_aware",
    "activation_aware_scale",
    "output_error",
    "smooth",
    "smoothing_scale",
]

NORMS = ("input_layernorm", "post_attention_layernorm")
Encoded = dict[str, list[int]]
Scaling = Callable[[Bond, list[Inputs]], Tensor]


def smooth(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    *,
    alpha: float = 0.5,
    kinds: Sequence[str] = NORMS,
    batch_tokens: int = 4096,
) -> PreTrainedModel:
    """A copy with the same function, in which outliers are smaller: before W8A8.

    Args:
        alpha: how much of the range moves to the weights; see `smoothing_scale`.
        kinds: at which bonds (`rescaling.WRITERS`). The paper's are the norms; what values and the
            up projection write can be smoothed as well.

    Raises UserError where the model is not Llama-style, or alpha is not in [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha is {alpha}: expected 0 (activations stay) to 1 (weights bear it)")

    def scale(bond: Bond, inputs: list[Inputs]) -> Tensor:
        weights = torch.cat([reader.weight.detach() for reader in bond.readers])
        return smoothing_scale(inputs[0].largest, weights, alpha)

    return _migrated(model, encoded, scale, kinds, batch_tokens)


def smoothing_scale(largest_I: Tensor, weight_OI: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1−α): activations are divided by s, weights multiplied: (I,).

    Features that were always 0, or that no weight reads, keep s = 1. In float64.
    Source: Xiao et al. 2023, "SmoothQuant", equation 4.

    >>> import torch
    >>> smoothing_scale(torch.tensor([16.0, 1.0]), torch.tensor([[1.0, 0.5], [-1.0, 0.25]]), 0.5)
    tensor([4.0000, 1.4142], dtype=torch.float64)
    """
    largest, weights = largest_I.double(), weight_OI.double().abs().amax(0)
    scale = largest**alpha / weights ** (1 - alpha)
    return torch.where((largest > 0) & (weights > 0), scale, torch.ones_like(scale))


def activation_aware(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    grid: Grid,
    *,
    steps: int = 20,
    limits: Limits = min_max,
    batch_tokens: int = 4096,
) -> PreTrainedModel:
    """A copy with the same function, whose weights lose less on `grid`: before rounding weights.

    At each of a layer's four bonds the scale is searched for that leaves the least squared error in
    what the readers give; see `activation_aware_scale`. The errors are those of the layers' own
    outputs on the inputs of the model as it was.

    Raises UserError where the model is not Llama-style, or a group does not divide a row.
    """

    def scale(bond: Bond, inputs: list[Inputs]) -> Tensor:
        return activation_aware_scale(bond, inputs, grid, steps=steps, limits=limits)

    return _migrated(model, encoded, scale, WRITERS, batch_tokens, products=True)


def activation_aware_scale(
    bond: Bond,
    inputs: list[Inputs],
    grid: Grid,
    *,
    steps: int = 20,
    limits: Limits = min_max,
) -> Tensor:
    """s = m^a, m_j being the mean |x_j|, with the a in {0, 1/steps, …, 1} of the least error: (F,).

    The error is ‖X Wᵀ − (X/s) Q(s·W)ᵀ‖², summed over the bond's readers. a = 0 is plain rounding,
    so the search never does worse than that on the calibration text. Only ratios of s matter; it is
    divided by √(max s · min s), which keeps the numbers in the middle of their range.

    Source: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization", equations 4 and 5.
    """
    size = _features(bond, inputs[0].means)
    size = torch.where(size > 0, size, torch.ones_like(size))
    best, least = torch.ones_like(size), torch.inf
    for step in range(steps + 1):
        scale = size ** (step / steps)
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = 0.0
        for reader, read in zip(bond.readers, inputs, strict=True):
            weight, columns = reader.weight.detach().double(), bond.columns(scale)
            back = round_to_nearest(weight * columns, grid, limits=limits).dequantized()
            error += output_error(weight - back.double() / columns, read)
        if error < least:
            best, least = scale, error
    return best


def output_error(difference_OI: Tensor, inputs: Inputs) -> float:
    """‖X Δᵀ‖² = Σ_o δ_o (Σ xxᵀ) δ_oᵀ of a change Δ of a layer's weights, over all tokens read.

    Raises UserError where the products were not kept.
    """
    if inputs.products is None:
        raise UserError("the products of the inputs are needed: measure with products=True")
    difference = difference_OI.double()
    return float(((difference @ inputs.products.double()) * difference).sum())


# How ------------------------------------------------------------------------------------------


def _migrated(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    scaling: Scaling,
    kinds: Sequence[str],
    batch_tokens: int,
    *,
    products: bool = False,
) -> PreTrainedModel:
    """A copy in which the scale of each bond has moved from what is written to the readers.

    The copy is changed while it is measured: its function stays, so the layers above do not notice.
    """
    if unknown := set(kinds) - set(WRITERS):
        raise UserError(f"kinds has {min(unknown)}: expected some of {', '.join(WRITERS)}")
    if is_quantized(model):
        raise UserError("the model is quantized already: move scale before, not after")
    changed = copy.deepcopy(model).eval()
    names = {id(linear): name for name, linear in stack_linears(changed).items()}
    waiting = {names[id(bond.readers[-1])]: bond for bond in bonds(changed) if bond.kind in kinds}
    seen: dict[str, Inputs] = {}

    def work(name: str, _: object, inputs: Inputs) -> None:
        seen[name] = inputs
        if (bond := waiting.get(name)) is not None:
            rescale(bond, 1 / scaling(bond, [seen[names[id(reader)]] for reader in bond.readers]))
            seen.clear()

    layer_by_layer(
        changed, encoded, work, products=products, batch_tokens=batch_tokens, again=False
    )
    return changed


def _features(bond: Bond, per_column: Tensor) -> Tensor:
    """A number of each of the readers' columns (copies · F,) as the mean of each feature's (F,)."""
    heads = per_column.unflatten(0, (-1, bond.copies, bond.width))
    return heads.mean(1).flatten()
