"""The ecosystem's own engine beside ours: torchao's int8, weights only, one scale a row.

On a CPU it becomes fast only where `torch.compile` works; without it, it saves bytes as ours does.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel

from distillkit.errors import UserError
from distillkit.models import layer_stack
from distillkit.quantization.quantizing import is_quantized

__all__ = ["torchao_int8"]


def torchao_int8(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose layers' linear weights are torchao's int8; embeddings and head stay floats.

    `save_model` saves it, and `load_model` reads it again where torchao is installed.

    Raises UserError where torchao is not installed, or the model is quantized already.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
        from transformers import TorchAoConfig
        from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer
    except ImportError as error:
        raise UserError('torchao is not installed: pip install "distillkit[quant]"') from error
    if is_quantized(model):
        raise UserError("the model is quantized already: quantize the one with floats")
    changed: Any = copy.deepcopy(model).eval()
    how = Int8WeightOnlyConfig(set_inductor_config=False)
    quantize_(layer_stack(changed)[1], how)
    changed.config.quantization_config = TorchAoConfig(how)
    changed.hf_quantizer = TorchAoHfQuantizer(changed.config.quantization_config)
    changed.is_quantized, changed.quantization_method = True, "torchao"
    return changed
