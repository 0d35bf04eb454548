"""An exported folder in ONNX Runtime, called like a model of transformers.

`evaluation`, `benchmark`, `decoding` and `speaking` measure and serve it as they do a model of
torch: there is one way to measure. What a step costs is the runtime's own work and little more:
keys and values stay where they are (`OnnxCache`), inputs and outputs are bound once, and a step
writes one number into each of two arrays.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from distillkit.errors import UserError
from distillkit.export.needed import needed
from distillkit.export.onnx_files import GRAPH
from distillkit.manifest import check_manifest

__all__ = ["OnnxCache", "OnnxModel", "load_onnx"]

_SLOTS = 64  # a room grows by so many
_SCORES_AT_ONCE = 2**24  # 64 MiB of attention in float32


def load_onnx(folder: str | os.PathLike[str], *, threads: int = 1, spin: bool = True) -> OnnxModel:
    """Load a folder of `export_onnx` or `quantize_onnx` for use on the CPU.

    Args:
        threads: on how many threads a product is computed. It is fixed for the session.
        spin: whether waiting threads keep their cores busy (faster alone, a nuisance to others).

    Raises:
        UserError: a file of the folder is missing, cut off or altered, or a package is missing.
    """
    if threads < 1:
        raise UserError(f"threads is {threads}: expected at least 1")
    runtime = needed("onnxruntime")
    path = Path(folder).expanduser().resolve()
    check_manifest(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(
            str(path / GRAPH), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: ONNX Runtime cannot load the graph: {reason}") from error
    return OnnxModel(path, session, threads)


class OnnxModel:
    """A session with the manners of a model of transformers: what measuring and serving ask for."""

    training = False
    device = torch.device("cpu")

    def __init__(self, folder: Path, session: Any, threads: int) -> None:
        self.folder, self.session, self.threads = folder, session, threads
        self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.generation_config = None
        if (folder / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_pretrained(folder)
        rooms = [each for each in session.get_inputs() if each.name.startswith(("keys", "values"))]
        self.rooms = [each.name for each in rooms]  # keys.0, values.0, keys.1, …
        _, self.kv_heads, _, self.head_width = rooms[0].shape
        self.heads = self.config.num_attention_heads

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that was exported with the model."""
        tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        return tokenizer

    @property
    def base_model(self) -> OnnxModel:
        return self

    def eval(self) -> OnnxModel:
        return self

    def train(self, mode: bool = True) -> OnnxModel:
        if mode:
            raise UserError("an exported model does not learn: train the model it was made from")
        return self

    def new_cache(self) -> OnnxCache:
        """An empty cache, of the kind that this model reads and fills."""
        return OnnxCache(self)

    def __call__(
        self,
        input_ids: Tensor,
        *,
        past_key_values: OnnxCache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> Any:
        """Read ids (B, S) that go on from the cache: `.logits` (B, S or logits_to_keep, V)."""
        cache = self.new_cache() if past_key_values is None else past_key_values
        if not isinstance(cache, OnnxCache):
            raise UserError(
                f"found a {type(cache).__name__} as cache: expected one of the model's new_cache()"
            )
        logits = cache.read(input_ids.numpy(), logits_to_keep, grow=use_cache)
        return SimpleNamespace(logits=torch.from_numpy(logits), past_key_values=cache)


class OnnxCache:
    """Keys and values of B conversations, in rooms with free slots.

    room (2·L, B, KV heads, M, d): keys of layer 0, values of layer 0, keys of layer 1, …; the first
    `length` of the M slots are filled. The session reads the rooms where they are.
    """

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.length = 0
        self.room = self._slots(0, 1)
        self._step: _Step | None = None

    def get_seq_length(self) -> int:
        """How many tokens of each conversation have been read."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these conversations, in this order, and give the rooms of the others back."""
        self.room = np.ascontiguousarray(self.room[:, indices.cpu().numpy()])
        self._step = None

    def read(self, ids: np.ndarray, keep: int, *, grow: bool = True) -> np.ndarray:
        """Logits of the last `keep` of the ids (B, S), or of all for 0, and remember them.

        A long block is read in parts that hold the attention's scores near 64 MiB. With `grow`
        off, what no later part needs is not remembered.
        """
        batch, width = ids.shape
        if not self.length:
            self.room = self._slots(batch, 1)
        if batch != self.room.shape[1]:
            raise UserError(
                f"found {batch} conversations and a cache of {self.room.shape[1]}: pass as many, "
                "or select rows of the cache"
            )
        if width == 1 and self.length:
            return self._one(ids)
        first = max(0, width - keep) if keep else 0
        logits, start = [], 0
        while start < width:
            scores = batch * self._model.heads * (self.length + _SLOTS)
            end = min(width, start + max(1, min(_SCORES_AT_ONCE // scores, width)))
            end = min(
                end, start + max(1, int((_SCORES_AT_ONCE / batch / self._model.heads) ** 0.5))
            )
            wanted = np.arange(max(first, start), max(first, end)) - start
            part, new = self._run(ids[:, start:end], wanted)
            logits.append(part)
            if grow or end < width:
                self._remember(new)
            start = end
        return np.concatenate(logits, axis=1) if len(logits) > 1 else logits[0]

    def _one(self, ids: np.ndarray) -> np.ndarray:
        self._make_room(1)
        if self._step is None:
            self._step = _Step(self._model, self.room)
        logits, new = self._step.run(ids, self.length)
        self.room[:, :, :, self.length] = new
        self.length += 1
        return logits

    def _run(self, ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(self.length, self.length + ids.shape[1])
        feed = {"ids": np.ascontiguousarray(ids), "positions": positions, "wanted": wanted}
        feed |= dict(zip(self._model.rooms, self.room, strict=True))
        logits, new = self._model.session.run(["logits", "new"], feed)
        return logits, new.reshape(len(self.room), -1, *new.shape[1:])

    def _remember(self, new: np.ndarray) -> None:
        count = new.shape[3]
        self._make_room(count)
        self.room[:, :, :, self.length : self.length + count] = new
        self.length += count

    def _make_room(self, count: int) -> None:
        needed_slots = self.length + count
        if needed_slots <= self.room.shape[3]:
            return
        roomier = self._slots(self.room.shape[1], -(-needed_slots // _SLOTS) * _SLOTS)
        roomier[:, :, :, : self.length] = self.room[:, :, :, : self.length]
        self.room, self._step = roomier, None

    def _slots(self, batch: int, slots: int) -> np.ndarray:
        model = self._model
        shape = (len(model.rooms), batch, model.kv_heads, slots, model.head_width)
        return np.zeros(shape, np.float32)


class _Step:
    """One token for each conversation, with all inputs and outputs bound to arrays once."""

    def __init__(self, model: OnnxModel, room: np.ndarray) -> None:
        value = needed("onnxruntime").OrtValue.ortvalue_from_numpy
        batch = room.shape[1]
        self.session, self.binding = model.session, model.session.io_binding()
        self.ids = np.zeros((batch, 1), np.int64)
        self.position, wanted = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.logits = np.zeros((batch, 1, model.config.vocab_size), np.float32)
        self.new = np.zeros((len(room), batch, model.kv_heads, model.head_width), np.float32)
        shape = (len(room) * batch, model.kv_heads, 1, model.head_width)
        inputs = {"ids": self.ids, "positions": self.position, "wanted": wanted}
        inputs |= dict(zip(model.rooms, room, strict=True))
        outputs = {"logits": self.logits, "new": self.new.reshape(shape)}
        self._held = {name: value(array) for name, array in (inputs | outputs).items()}
        for name in inputs:
            self.binding.bind_ortvalue_input(name, self._held[name])
        for name in outputs:
            self.binding.bind_ortvalue_output(name, self._held[name])

    def run(self, ids: np.ndarray, position: int) -> tuple[np.ndarray, np.ndarray]:
        self.ids[:] = ids
        self.position[0] = position
        self.session.run_with_iobinding(self.binding)
        return self.logits.copy(), self.new
