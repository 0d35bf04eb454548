"""Quantized models on disk: read by `load_model` and by transformers, once this was imported.

A folder has an ordinary config.json, in which `quantization_config` says how the model is
quantized; model.safetensors with the integers; and manifest.json with the SHA-256 of every file
that is loaded, so that a cut or altered one is refused and not spoken with. A transformers that has
not imported `distillkit.quantization` refuses the folder as well: the tensors have other shapes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from distillkit.errors import UserError
from distillkit.manifest import MANIFEST, check_manifest, manifest_of, write_manifest
from distillkit.quantization.layers import Integers, QuantizedEmbedding, QuantizedLinear
from distillkit.quantization.quantizing import QUANT_METHOD, Plan, put_table, stack_linears

__all__ = ["check_seal", "seal"]

_DTYPES = {torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}
_UNSEALED = {MANIFEST, "README.md"}  # a card may be edited


def seal(folder: str | os.PathLike[str]) -> None:
    """Write the bytes and the SHA-256 of every file of a saved model into its manifest.json."""
    files = (path for path in Path(folder).iterdir() if path.is_file())
    loaded = sorted(path for path in files if path.name not in _UNSEALED)
    write_manifest(manifest_of(Path(folder)), loaded)


def check_seal(folder: str | os.PathLike[str]) -> None:
    """Raises UserError where a file is missing, cut off or altered since `seal`, or no seal is."""
    known = check_manifest(Path(folder))
    for end in ("config.json", ".safetensors"):
        if not any(name.endswith(end) for name in known):
            raise UserError(f"{Path(folder) / MANIFEST} lists no {end}: save the model again")


class DistillkitConfig(QuantizationConfigMixin):
    """What config.json says of a quantized model, for transformers: the words of a `Plan`."""

    def __init__(self, **words: Any) -> None:
        self.quant_method = words.pop("quant_method", QUANT_METHOD)
        self.__dict__.update(words)

    @property
    def plan(self) -> Plan:
        return Plan.from_json(self.to_dict())


class DistillkitQuantizer(HfQuantizer):
    """Lets `from_pretrained` build the layers of integers before it reads their tensors."""

    requires_calibration = True  # it loads; to quantize is `quantize`'s work

    def _process_model_before_weight_loading(self, model: Any, **given: Any) -> Any:
        for folder in {Path(file).parent for file in given.get("checkpoint_files") or ()}:
            check_seal(folder)
        config: Any = self.quantization_config
        _build(model, config.plan)
        _check_tensors(model, given.get("checkpoint_files") or ())
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Scales stay in the dtype of their grid, whatever the floats of the model are read in."""
        return dtype

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _check_tensors(model: Any, files: Sequence[str]) -> None:
    """Raises UserError where a tensor of a quantized layer is missing or of another form.

    transformers would fill a missing one with what the empty layer holds, and say so in a table.
    """
    found: dict[str, tuple[list[int], str]] = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in list(tensors.keys()):  # it is no dictionary, whatever it looks like
                held = tensors.get_slice(name)
                found[name] = held.get_shape(), held.get_dtype()
    for name, part in model.named_modules():
        own = part.state_dict() if isinstance(part, Integers) else {}
        for key, expected in own.items():
            given = found.get(f"{name}.{key}")
            if given is None:
                raise UserError(f"{files[0]} lacks {name}.{key}: get the file again")
            asked = list(expected.shape), _DTYPES.get(expected.dtype)
            if given != asked and (key != "bias" or given[0] != asked[0]):  # biases may be cast
                raise UserError(
                    f"{files[0]}: {name}.{key} is {given}, in another form than the "
                    f"{asked} that config.json asks for: get the files again"
                )


def _build(model: Any, plan: Plan) -> None:
    """Put layers without content in the place of those that the plan has quantized."""
    for name, linear in stack_linears(model).items():
        if (grid := plan.grid_of(name)) is not None:
            model.set_submodule(name, _empty_linear(linear, grid, plan.activations))
    if plan.embeddings is not None:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        own = None if head is None else _empty_linear(head, plan.embeddings, None)
        # Before its weights are read, a model is not tied yet: its configuration says whether.
        tied = head is not None and model.config.tie_word_embeddings
        if tied:
            head.weight = table.weight
        shape = table.num_embeddings, table.embedding_dim
        put_table(model, QuantizedEmbedding(*shape, plan.embeddings), own)


def _empty_linear(linear: nn.Linear, grid: Any, activations: str | None) -> QuantizedLinear:
    return QuantizedLinear(
        linear.in_features,
        linear.out_features,
        grid,
        bias=linear.bias is not None,
        activations=activations,
    )


if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:  # not when the module is reloaded
    register_quantization_config(QUANT_METHOD)(DistillkitConfig)
    register_quantizer(QUANT_METHOD)(DistillkitQuantizer)
