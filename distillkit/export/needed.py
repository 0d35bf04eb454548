"""Packages that only an export needs: imported when asked for, named when they are absent."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from distillkit.errors import UserError

WANTED = {
    "onnx": "onnx>=1.18,<1.23",
    "onnxruntime": "onnxruntime>=1.20",
    "gguf": "gguf>=0.17",
    "llama_cpp": "llama-cpp-python",
}


def needed(name: str) -> ModuleType:
    """The package, or a UserError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"the package {name} is not installed: pip install '{WANTED.get(name, name)}'"
        ) from error
