"""A model as a folder that ONNX Runtime reads: graph, weights, configuration, tokenizer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.errors import UserError
from distillkit.export.decoder import decoder_of
from distillkit.export.needed import needed
from distillkit.export.onnx_graph import HEAD, TABLE, build_graph
from distillkit.export.onnx_rounding import ONNX_KINDS, rounded
from distillkit.manifest import MANIFEST, check_manifest, whole_folder

__all__ = ["export_onnx", "onnx_parts", "quantize_onnx"]

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
_MOST_INLINE = 2**30  # bytes; a file of protobuf cannot hold 2 GiB


def export_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    *,
    most_inline: int = _MOST_INLINE,
) -> Path:
    """Write a model as ONNX in float32, whole or not at all; `load_onnx` runs it.

    The folder holds all that is needed: `model.onnx` (see `onnx_graph` for its inputs and outputs),
    `config.json`, the tokenizer with its chat template, and `manifest.json`. One graph serves any
    batch, any length, prompts and single steps. Tied embeddings are stored once. Weights of more
    than `most_inline` bytes go into `model.onnx.data` beside the graph.

    Raises:
        UserError: an architecture that is not covered (see `decoder.decoder_of`), a missing
            package, a folder that holds other things, or a disk that is full.
    """
    onnx = needed("onnx")
    graph = build_graph(decoder_of(model))
    target = Path(folder).expanduser().resolve()
    with whole_folder(target) as aside:
        model.config.save_pretrained(aside)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        _save(onnx, graph, aside, most_inline)
    return target


def quantize_onnx(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    kind: str = "int8",
    *,
    block: int = 32,
    most_inline: int = _MOST_INLINE,
) -> Path:
    """Round the matrices of an exported folder to fewer bits; the table among them.

    kind:
        "int8"          dynamic: a scale for each output of a matrix; what it reads is rounded to 8
                        bits at run time, so the product is one of whole numbers
        "int8_weights"  a scale for each `block` numbers of a row; what it reads is rounded to 8
                        bits in such blocks as well, inside the kernel
        "int4_weights"  the same with weights of 4 bits
    Norms and biases stay in float32. The table of embeddings is rounded with the rest, and stays
    one where it is the head as well: in a small model it is a third of the weights, and a recipe
    that leaves it in float32 ends about twice as large.

    Raises UserError for another kind, a folder that was cut off, altered or is rounded already, and
    for a table whose width `block` does not divide (the runtime's look-up has no part blocks).
    """
    if kind not in ONNX_KINDS:
        raise UserError(f"kind is {kind!r}: expected one of {', '.join(ONNX_KINDS)}")
    onnx = needed("onnx")
    source = Path(folder).expanduser().resolve()
    check_manifest(source)
    graph = onnx.load(str(source / GRAPH))
    smaller = rounded(graph, kind, block)
    target = Path(out).expanduser().resolve()
    if target == source:
        raise UserError(f"{target} is the folder to read from: choose another one to write to")
    with whole_folder(target) as aside:
        for file in source.iterdir():
            if file.is_file() and file.name not in (GRAPH, WEIGHTS, MANIFEST):
                shutil.copyfile(file, aside / file.name)
        _save(onnx, smaller, aside, most_inline)
    return target


def onnx_parts(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of an exported graph by part: the table (and head), the layers, and all that is left.

    What is left are the names of nodes, norms, biases and small constants.
    """
    onnx = needed("onnx")
    source = Path(folder)
    check_manifest(source)
    graph = onnx.load(str(source / GRAPH)).graph
    parts = {"table": 0, "layers": 0}
    for stored in graph.initializer:
        if stored.name.split(".")[0] in (TABLE, HEAD):
            parts["table"] += len(stored.raw_data)
        elif stored.name.startswith("layer."):
            parts["layers"] += len(stored.raw_data)
    files = (source / GRAPH, source / WEIGHTS)
    total = sum(file.stat().st_size for file in files if file.exists())
    return parts | {"rest": total - sum(parts.values())}


def _save(onnx: Any, graph: Any, folder: Path, most_inline: int) -> None:
    size = sum(len(stored.raw_data) for stored in graph.graph.initializer)
    if size <= most_inline:
        onnx.save(graph, str(folder / GRAPH))
        return
    onnx.save(
        graph,
        str(folder / GRAPH),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS,
    )
