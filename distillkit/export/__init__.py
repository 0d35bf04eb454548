"""Models in the formats that other runtimes read: ONNX for ONNX Runtime, GGUF for llama.cpp.

What is written is checked when it is read: a file that is missing, cut off or altered is refused.
What is not covered is refused before anything is written.
"""

from distillkit.export.checking import ExportCheck, check_export
from distillkit.export.gguf_files import GGUF_KINDS, export_gguf, gguf_types, read_gguf
from distillkit.export.llama_engine import LlamaCache, LlamaModel, load_llama_cpp
from distillkit.export.onnx_files import ONNX_KINDS, export_onnx, onnx_parts, quantize_onnx
from distillkit.export.onnx_model import OnnxCache, OnnxModel, load_onnx

__all__ = [
    "GGUF_KINDS",
    "ONNX_KINDS",
    "ExportCheck",
    "LlamaCache",
    "LlamaModel",
    "OnnxCache",
    "OnnxModel",
    "check_export",
    "export_gguf",
    "export_onnx",
    "gguf_types",
    "load_llama_cpp",
    "load_onnx",
    "onnx_parts",
    "quantize_onnx",
    "read_gguf",
]
