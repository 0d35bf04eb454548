"""A GGUF file in llama.cpp, called like a model of transformers, where llama-cpp-python is there.

Ids go in and logits come out, as from any model of this library; the file's own tokenizer is not
used. Each conversation is a sequence of llama.cpp's cache.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit.errors import UserError
from distillkit.export.gguf_files import config_of
from distillkit.export.needed import needed
from distillkit.manifest import check_manifest

__all__ = ["LlamaCache", "LlamaModel", "load_llama_cpp"]

_AT_ONCE = 512  # tokens in a batch of llama.cpp


def load_llama_cpp(
    path: str | os.PathLike[str], *, threads: int = 1, sequences: int = 1, positions: int = 2048
) -> LlamaModel:
    """Load a file of `export_gguf` into llama.cpp, on the CPU.

    Args:
        threads: on how many threads it computes.
        sequences: how many conversations may be open at once: the largest `batch_size` to measure
            with. Rows of a batch are read one after another.
        positions: tokens of each conversation, at most; its memory is taken at once.

    Raises:
        UserError: the file is missing, cut off or altered, llama.cpp refuses it, or
            llama-cpp-python is not installed.
    """
    if min(threads, sequences, positions) < 1:
        raise UserError("threads, sequences and positions must be at least 1")
    engine = needed("llama_cpp")
    file = Path(path).expanduser().resolve()
    check_manifest(file)
    return LlamaModel(engine, file, threads, sequences, positions)


class LlamaModel:
    """llama.cpp with the manners of a model of transformers."""

    training = False
    device = torch.device("cpu")
    generation_config = None

    def __init__(
        self, engine: Any, file: Path, threads: int, sequences: int, positions: int
    ) -> None:
        self.config = config_of(file)
        self.engine, self.threads = engine, threads
        self._weights, self.context = _opened(engine, file, threads, sequences, positions)
        self.batch = engine.llama_batch_init(_AT_ONCE, 0, 1)
        self.config.max_position_embeddings = min(positions, self.config.max_position_embeddings)
        self.free = list(range(sequences))

    def __del__(self) -> None:
        if hasattr(self, "batch"):
            self.engine.llama_batch_free(self.batch)
            self.engine.llama_free(self.context)
            self.engine.llama_model_free(self._weights)

    @property
    def base_model(self) -> LlamaModel:
        return self

    def eval(self) -> LlamaModel:
        return self

    def train(self, mode: bool = True) -> LlamaModel:
        if mode:
            raise UserError("an exported model does not learn: train the model it was made from")
        return self

    def new_cache(self) -> LlamaCache:
        """An empty cache: it takes one of the model's sequences for each conversation."""
        return LlamaCache(self)

    def __call__(
        self,
        input_ids: Tensor,
        *,
        past_key_values: LlamaCache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> Any:
        """Read ids (B, S) that go on from the cache: `.logits` (B, S or logits_to_keep, V)."""
        width = input_ids.shape[1]
        keep = min(logits_to_keep, width) or width
        if use_cache:
            cache = self.new_cache() if past_key_values is None else past_key_values
            return SimpleNamespace(
                logits=torch.from_numpy(cache.read(input_ids.numpy(), keep)), past_key_values=cache
            )
        rows = []
        for row in input_ids.numpy():  # one after another, so that one free sequence is enough
            rows.append(self.new_cache().read(row[None], keep))
        return SimpleNamespace(logits=torch.from_numpy(np.concatenate(rows)), past_key_values=None)


class LlamaCache:
    """Which sequences of llama.cpp's memory hold the rows of a batch; freed with this object."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self.length = 0
        self._rows: list[int] = []

    def __del__(self) -> None:
        self._release(self._rows)

    def get_seq_length(self) -> int:
        """How many tokens of each conversation have been read."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these conversations, in this order."""
        kept = [self._rows[at] for at in indices.tolist()]
        self._release([row for row in self._rows if row not in kept])
        self._rows = kept

    def read(self, ids: np.ndarray, keep: int) -> np.ndarray:
        """Logits (B, keep, V) after the last `keep` of the ids (B, S)."""
        if not self._rows:
            free = self._model.free
            if len(free) < len(ids):
                raise UserError(
                    f"found {len(ids)} conversations and {len(free)} free sequences: load the "
                    "model with more sequences, or pass a smaller batch_size"
                )
            self._rows = [free.pop() for _ in ids]
        logits = [self._read_row(row, new, keep) for row, new in zip(self._rows, ids, strict=True)]
        self.length += ids.shape[1]
        return np.stack(logits)

    def _read_row(self, row: int, ids: np.ndarray, keep: int) -> np.ndarray:
        engine, context, batch = self._model.engine, self._model.context, self._model.batch
        vocabulary, first, found = self._model.config.vocab_size, len(ids) - keep, []
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE].tolist()
            batch.n_tokens = len(part)
            for at, token in enumerate(part):
                batch.token[at], batch.pos[at] = token, self.length + start + at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                batch.logits[at] = start + at >= first
            if status := engine.llama_decode(context, batch):
                raise UserError(
                    f"llama.cpp could not read {len(part)} tokens (status {status}): load the "
                    "model with more positions"
                )
            for at in range(max(0, first - start), len(part)):
                pointer = engine.llama_get_logits_ith(context, at)
                found.append(np.ctypeslib.as_array(pointer, shape=(vocabulary,)).copy())
        return np.stack(found)

    def _release(self, rows: list[int]) -> None:
        engine = self._model.engine
        memory = engine.llama_get_memory(self._model.context)
        for row in rows:
            engine.llama_memory_seq_rm(memory, row, -1, -1)
        self._model.free += rows


def _opened(engine: Any, file: Path, threads: int, sequences: int, positions: int) -> Any:
    engine.llama_backend_init()
    weights = engine.llama_model_load_from_file(
        str(file).encode(), engine.llama_model_default_params()
    )
    if not weights:
        raise UserError(f"{file}: llama.cpp refuses the file; its own messages say why")
    settings = engine.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = positions * sequences, _AT_ONCE, _AT_ONCE
    settings.n_seq_max, settings.kv_unified = sequences, True
    settings.n_threads = settings.n_threads_batch = threads
    context = engine.llama_init_from_model(weights, settings)
    if not context:
        raise UserError(f"{file}: llama.cpp has no memory for {positions * sequences:,} tokens")
    return weights, context
