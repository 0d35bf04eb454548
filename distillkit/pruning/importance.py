"""How much each head, neuron and layer matters, measured on conversations.

The scores go to `student_from_layers(…, scores=…)`, which cuts the parts with the smallest ones. By
itself it goes by the size of weights, which says nothing of what they read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillkit.calibration import Encoded, Inputs, layer_by_layer
from distillkit.errors import UserError
from distillkit.evaluation import nll
from distillkit.features import After
from distillkit.inside import looking_inside
from distillkit.models import layer_stack, student_from_layers
from distillkit.narrowing import Scores, check_llama_style, strongest

__all__ = ["layer_changes", "layer_nlls", "most_important", "written_by_heads_and_neurons"]


def written_by_heads_and_neurons(
    model: PreTrainedModel, encoded: Sequence[Encoded], *, batch_tokens: int = 4096
) -> Scores:
    """What each attention head and each neuron adds to the hidden states: Σ over tokens of ‖·‖₂².

    A neuron f writes x_f · W[:, f], so its score is Σ x_f² · ‖W[:, f]‖², W being `down_proj`. A
    head h writes W_h x_h, W_h being its columns of `o_proj`: its score is the trace of
    W_h (Σ x_h x_hᵀ) W_hᵀ. Heads that share keys and values go together, so their scores are added.

    Raises UserError as `layer_by_layer` does, and for a model of another kind than Llama's.
    Source: Wanda's |W|·‖x‖₂ (Sun et al. 2023), summed over what goes together, as in Muralidharan
    et al. 2024, "Compact language models via pruning and knowledge distillation", section 2.2.
    """
    check_llama_style(model)
    heads: list[Tensor] = []
    neurons: list[Tensor] = []

    def score(name: str, linear: nn.Linear, inputs: Inputs) -> None:
        assert inputs.products is not None
        weight = linear.weight.detach().double()
        if name.endswith("o_proj"):
            count = model.config.num_attention_heads
            heads.append(_energy(weight, inputs.products, weight.shape[1] // count))
        elif name.endswith("down_proj"):
            neurons.append(_energy(weight, inputs.products, 1))

    layer_by_layer(model, encoded, score, products=True, batch_tokens=batch_tokens, again=False)
    return Scores(heads=heads, neurons=neurons)


def _energy(weight_DC: Tensor, products_CC: Tensor, width: int) -> Tensor:
    """Σ over tokens of ‖W_p x_p‖², for each part p of `width` columns."""
    parts = weight_DC.unflatten(1, (-1, width))  # (D, P, width)
    count = range(parts.shape[1])
    blocks = products_CC.unflatten(0, (-1, width)).unflatten(-1, (-1, width))[count, :, count]
    return torch.einsum("dpi,pij,dpj->p", parts, blocks, parts)


def layer_nlls(model: PreTrainedModel, encoded: Sequence[Encoded]) -> list[float]:
    """The NLL per assistant token of the model without each of its layers, one at a time.

    The layer whose absence costs least comes cheapest. After one is cut, ask again: layers stand in
    for each other. Raises UserError where the model has one layer only.
    """
    depth = _depth(model)
    return [
        nll(
            student_from_layers(model, [n for n in range(depth) if n != left_out]), encoded
        ).per_token
        for left_out in range(depth)
    ]


@torch.no_grad()
def layer_changes(model: PreTrainedModel, encoded: Sequence[Encoded]) -> list[float]:
    """How much each layer changes its input: 1 − mean cosine of what enters and what leaves it.

    Over all tokens. It costs one pass, whatever the number of layers. Source: Men et al. 2024,
    "ShortGPT: layers in large language models are more redundant than you expect", equation 1.
    """
    depth = _depth(model)
    places = [After(layer) for layer in range(depth + 1)]
    changes, tokens = torch.zeros(depth, dtype=torch.float64), 0
    for row in encoded:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        with looking_inside(model, places) as seen:
            model(ids, use_cache=False)
        hidden = [seen.hidden[place][0].double().cpu() for place in places]
        tokens += ids.shape[1]
        for layer in range(depth):
            cosine = torch.cosine_similarity(hidden[layer], hidden[layer + 1], dim=-1)
            changes[layer] += (1.0 - cosine).sum()
    if not tokens:
        raise UserError("found no conversation to measure the layers on: give at least one")
    return (changes / tokens).tolist()


def most_important(scores: Sequence[float], count: int) -> list[int]:
    """The places of the `count` largest scores, ascending: the layers to keep.

    >>> most_important([0.9, 0.1, 0.4, 0.8], 2)
    [0, 3]
    """
    if not 1 <= count <= len(scores):
        raise UserError(f"{count} of {len(scores)} cannot be kept: give 1 to {len(scores)}")
    return strongest(torch.tensor(list(scores), dtype=torch.float64), count)


def _depth(model: PreTrainedModel) -> int:
    depth = len(layer_stack(model)[1])
    if depth < 2:
        raise UserError(f"{type(model).__name__} has one layer: there is none to leave out")
    return depth
