"""A model as one GGUF file, which llama.cpp runs: weights, sizes, tokenizer and chat template.

llama.cpp rotates neighbouring numbers of a head in models of Llama's kind, where transformers
rotates the two halves. So the rows of the queries' and keys' matrices change places on the way out,
and back on the way in. `read_gguf` rebuilds a model of torch from the file alone: what the file
says can be checked where llama.cpp is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from distillkit.errors import UserError
from distillkit.export.decoder import Decoder, Layer, Linear, decoder_of
from distillkit.export.gguf_tokenizer import add_tokenizer
from distillkit.export.needed import needed
from distillkit.manifest import check_manifest, whole_file

__all__ = ["GGUF_KINDS", "export_gguf", "gguf_types", "read_gguf"]

GGUF_KINDS = ("f32", "f16", "q8_0", "q4_0")
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
_BLOCK = 32  # numbers that share a scale in q8_0 and q4_0


def export_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | os.PathLike[str],
    kind: str = "q8_0",
    *,
    table_kind: str | None = None,
) -> Path:
    """Write a model as a GGUF file, whole or not at all; its manifest lies beside it.

    kind: of the matrices: "f32", "f16" (2 bytes a number), "q8_0" or "q4_0" (8 or 4 bits, and a
    scale in 16 for every 32 numbers of a row: 34 or 18 bytes). table_kind: of the table of
    embeddings, by default the same. Norms and biases stay in f32. A matrix whose rows 32 does not
    divide cannot be cut into blocks and is written in f16; `gguf_types` tells what became of each.
    Tied embeddings are stored once.

    Raises:
        UserError: another kind, an architecture or a rope scaling that is not covered, a missing
            package, or a disk that is full.
    """
    for each in (kind, table_kind or kind):
        if each not in GGUF_KINDS:
            raise UserError(f"kind is {each!r}: expected one of {', '.join(GGUF_KINDS)}")
    gguf = needed("gguf")
    decoder = decoder_of(model)
    _check_carried(decoder)
    target = Path(path).expanduser().resolve()
    with whole_file(target) as aside:
        writer = gguf.GGUFWriter(str(aside), _ARCHITECTURES[decoder.kind])
        _add_sizes(writer, gguf, decoder, kind)
        add_tokenizer(writer, gguf, tokenizer, model, len(decoder.table))
        for name, array in _tensors(decoder):
            wanted = (table_kind or kind) if name in ("token_embd", "output") else kind
            _add_tensor(writer, gguf, name, array, wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return target


def _check_carried(decoder: Decoder) -> None:
    if decoder.kind not in _ARCHITECTURES:
        raise UserError(
            f"a model of the kind {decoder.kind} is not covered by the GGUF export: expected one "
            f"of {', '.join(_ARCHITECTURES)}; export_onnx carries it"
        )
    if decoder.rope_type != "default":
        raise UserError(
            f"its rope scaling {decoder.rope_type!r} is not carried by the GGUF export, only plain "
            "rotations are; export_onnx carries it"
        )


def _add_sizes(writer: Any, gguf: Any, decoder: Decoder, kind: str) -> None:
    types = gguf.LlamaFileType
    file_types = (types.ALL_F32, types.MOSTLY_F16, types.MOSTLY_Q8_0, types.MOSTLY_Q4_0)
    writer.add_file_type(file_types[GGUF_KINDS.index(kind)])
    writer.add_context_length(decoder.positions)
    writer.add_embedding_length(decoder.table.shape[1])
    writer.add_block_count(len(decoder.layers))
    writer.add_feed_forward_length(len(decoder.layers[0].gate.weight))
    writer.add_head_count(decoder.heads)
    writer.add_head_count_kv(decoder.kv_heads)
    writer.add_key_length(decoder.head_width)
    writer.add_value_length(decoder.head_width)
    writer.add_layer_norm_rms_eps(decoder.epsilon)
    writer.add_rope_dimension_count(decoder.head_width)
    writer.add_rope_freq_base(decoder.rope_theta)
    writer.add_vocab_size(len(decoder.table))


def _tensors(decoder: Decoder) -> Iterator[tuple[str, np.ndarray]]:
    """Names without their ending, which says whether it is a weight or a bias."""
    yield "token_embd", decoder.table
    for number, layer in enumerate(decoder.layers):
        for name, part in _parts(decoder, layer).items():
            if isinstance(part, np.ndarray):
                yield f"blk.{number}.{name}", part
                continue
            yield f"blk.{number}.{name}", part.weight
            if part.bias is not None:
                yield f"blk.{number}.{name}.bias", part.bias
    yield "output_norm", decoder.norm
    if decoder.head is not None:
        yield "output", decoder.head


def _parts(decoder: Decoder, layer: Layer) -> dict[str, Linear | np.ndarray]:
    return {
        "attn_norm": layer.attention_norm,
        "attn_q": _turned(layer.query, decoder, decoder.heads),
        "attn_k": _turned(layer.key, decoder, decoder.kv_heads),
        "attn_v": layer.value,
        "attn_output": layer.output,
        "ffn_norm": layer.feed_forward_norm,
        "ffn_gate": layer.gate,
        "ffn_up": layer.up,
        "ffn_down": layer.down,
    }


def _turned(part: Linear, decoder: Decoder, heads: int) -> Linear:
    if _ARCHITECTURES[decoder.kind] != "llama":
        return part  # Qwen2's graph in llama.cpp rotates halves, as transformers does
    bias = None if part.bias is None else neighbours(part.bias, heads)
    return Linear(neighbours(part.weight, heads), bias)


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Of each head: rows 0, d/2, 1, d/2 + 1, … so that what is rotated together is adjacent."""
    split = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """What undoes `neighbours`."""
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def _add_tensor(writer: Any, gguf: Any, name: str, array: np.ndarray, kind: str) -> None:
    types = gguf.GGMLQuantizationType
    if array.ndim == 1:
        kind = "f32"
    elif kind.startswith("q") and array.shape[-1] % _BLOCK:
        kind = "f16"
    kept = types[kind.upper()]
    full = name if name.endswith(".bias") else f"{name}.weight"
    data = np.ascontiguousarray(array)
    writer.add_tensor(full, gguf.quants.quantize(data, kept), raw_dtype=kept)


# Reading -------------------------------------------------------------------------------------


def gguf_types(path: str | os.PathLike[str]) -> dict[str, str]:
    """The type of every tensor of a GGUF file by name, "F16" say."""
    return {each.name: each.tensor_type.name for each in _reader(path).tensors}


def read_gguf(path: str | os.PathLike[str]) -> PreTrainedModel:
    """A model of torch with the numbers of a GGUF file, in float32: what llama.cpp computes from.

    The weights are the rounded ones. llama.cpp also rounds what a product reads, to 8 bits in
    blocks, so its own logits differ a little from these.

    Raises UserError when the file is missing, cut off or altered, or is not of `export_gguf`.
    """
    reader, config = _reader(path), config_of(path)
    dequantize = needed("gguf").quants.dequantize
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for each in reader.tensors:
        array = np.array(dequantize(each.data, each.tensor_type), np.float32)
        part = each.name.split(".")[-2]
        if part in heads and config.model_type == "llama":
            array = halves(array, heads[part])
        state[_name_in_torch(each.name)] = torch.from_numpy(array)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    kind: Any = LlamaForCausalLM if config.model_type == "llama" else Qwen2ForCausalLM
    model = kind(config).float()
    model.load_state_dict(state)
    return model.eval()


def _reader(path: str | os.PathLike[str]) -> Any:
    file = Path(path).expanduser().resolve()
    check_manifest(file)
    try:
        return needed("gguf").GGUFReader(str(file))
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{file} is no GGUF file that can be read: {error}") from error


def _field(reader: Any, name: str) -> Any:
    if name not in reader.fields:
        raise UserError(f"the GGUF file does not say {name}: read only what export_gguf wrote")
    return reader.fields[name].contents()


def config_of(path: str | os.PathLike[str]) -> Any:
    """The configuration of transformers that a GGUF file describes."""
    reader = _reader(path)
    kind = _field(reader, "general.architecture")
    names = {each.name for each in reader.tensors}
    rope = {"rope_type": "default", "rope_theta": _field(reader, f"{kind}.rope.freq_base")}
    settings = {name: _field(reader, f"{kind}.{theirs}") for name, theirs in _SIZES.items()}
    settings |= {
        "tie_word_embeddings": "output.weight" not in names,
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "bos_token_id": None,
        "rope_parameters": rope,
    }
    if kind == "llama":
        settings["attention_bias"] = "blk.0.attn_q.bias" in names
        settings["mlp_bias"] = "blk.0.ffn_up.bias" in names
    return (LlamaConfig if kind == "llama" else Qwen2Config)(**settings)


_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}

_IN_TORCH = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _name_in_torch(name: str) -> str:
    *layer, part, ending = name.split(".")
    if part == "output":
        return f"lm_head.{ending}"
    where = f"layers.{layer[1]}." if layer else ""
    return f"model.{where}{_IN_TORCH[part]}.{ending}"
