"""Fewer bits for each weight: grids, layers of integers, and what makes rounding hurt less.

Read it in this order: `grids` (integers for weights), `packing` (into bytes), `activations` and
`layers` (products of them), `quantizing` (a whole model), `gptq` and `scaling` (what is better than
the nearest integer), `fake` (training for it), `files` (saving, loading), `torchao_engine` (the
ecosystem's own, beside ours). Importing this makes transformers read our folders.
"""

from distillkit.quantization.activations import (
    activation_codes,
    activation_scale,
    has_integer_product,
    integer_product,
    static_scale,
)
from distillkit.quantization.fake import (
    FakeQuantizedEmbedding,
    FakeQuantizedLinear,
    convert,
    fake_quantize,
    straight_through,
)
from distillkit.quantization.files import check_seal, seal
from distillkit.quantization.gptq import gptq, inverse_root
from distillkit.quantization.grids import (
    EIGHT_BITS,
    Grid,
    Quantized,
    dequantize,
    least_squares,
    min_max,
    quantize_to,
    round_to_nearest,
    scale_and_zero,
)
from distillkit.quantization.layers import QuantizedEmbedding, QuantizedLinear, TiedHead
from distillkit.quantization.packing import pack, unpack
from distillkit.quantization.quantizing import (
    Plan,
    count_weights,
    is_quantized,
    memory_bytes,
    plan_of,
    quantize,
)
from distillkit.quantization.scaling import (
    activation_aware,
    activation_aware_scale,
    output_error,
    smooth,
    smoothing_scale,
)
from distillkit.quantization.torchao_engine import torchao_int8

__all__ = [
    "EIGHT_BITS",
    "FakeQuantizedEmbedding",
    "FakeQuantizedLinear",
    "Grid",
    "Plan",
    "Quantized",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "TiedHead",
    "activation_aware",
    "activation_aware_scale",
    "activation_codes",
    "activation_scale",
    "check_seal",
    "convert",
    "count_weights",
    "dequantize",
    "fake_quantize",
    "gptq",
    "has_integer_product",
    "integer_product",
    "inverse_root",
    "is_quantized",
    "least_squares",
    "memory_bytes",
    "min_max",
    "output_error",
    "pack",
    "plan_of",
    "quantize",
    "quantize_to",
    "round_to_nearest",
    "scale_and_zero",
    "seal",
    "smooth",
    "smoothing_scale",
    "static_scale",
    "straight_through",
    "torchao_int8",
    "unpack",
]
