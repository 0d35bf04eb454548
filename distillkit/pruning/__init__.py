"""Pruning: what can be cut out of a model, and what it does to the rest.

Unstructured (zeros, which are neither bytes nor speed): `prune` with `Magnitude`, `Wanda` or
`SparseGPT`, as `Unstructured(0.5)` or `NofM(2, 4)`; `prune_globally`; `KeepZeros` in training;
`sensitivity` and `weigh`. Structured (smaller for any tool): `student_from_layers` with scores of
heads, neurons and layers that are measured here, and `smaller_vocabulary`.
"""

from distillkit.narrowing import Scores, check_llama_style
from distillkit.pruning.importance import (
    layer_changes,
    layer_nlls,
    most_important,
    written_by_heads_and_neurons,
)
from distillkit.pruning.masks import KeepZeros, Masks, prunable, prune, prune_globally, zeros_of
from distillkit.pruning.methods import Magnitude, Method, Wanda, magnitude_mask, wanda_mask
from distillkit.pruning.patterns import NofM, Pattern, Unstructured
from distillkit.pruning.sensitivity import (
    Sensitivity,
    by_kind,
    by_layer,
    by_linear,
    sensitivity,
)
from distillkit.pruning.sparsegpt import SparseGPT, inverse_hessian_rows, sparsegpt_update
from distillkit.pruning.vocabulary import smaller_vocabulary, token_counts
from distillkit.pruning.weighing import Weight, weigh

__all__ = [
    "KeepZeros",
    "Magnitude",
    "Masks",
    "Method",
    "NofM",
    "Pattern",
    "Scores",
    "Sensitivity",
    "SparseGPT",
    "Unstructured",
    "Wanda",
    "Weight",
    "by_kind",
    "by_layer",
    "by_linear",
    "check_llama_style",
    "inverse_hessian_rows",
    "layer_changes",
    "layer_nlls",
    "magnitude_mask",
    "most_important",
    "prunable",
    "prune",
    "prune_globally",
    "sensitivity",
    "smaller_vocabulary",
    "sparsegpt_update",
    "token_counts",
    "wanda_mask",
    "weigh",
    "written_by_heads_and_neurons",
    "zeros_of",
]
