"""Plays the part of llama-cpp-python's C interface, with a model of torch behind it.

What it proves is that batches, positions and sequences are kept as that interface wants them:
tokens of a sequence must come in the order of their positions, and a sequence that was removed
begins anew. Whether llama.cpp computes the same is tested where it is installed.
"""

import ctypes
from types import SimpleNamespace

import numpy as np
import torch

from distillkit.export import read_gguf

llama_model_default_params = llama_context_default_params = SimpleNamespace
refused = False  # whether a file is


def llama_backend_init():
    pass


def llama_model_load_from_file(path, _):
    return None if refused else read_gguf(path.decode())


def llama_init_from_model(model, settings):
    return SimpleNamespace(model=model, settings=settings, read={}, rows={})


def llama_batch_init(tokens, _, sequences):
    lists = {name: [0] * tokens for name in ("token", "pos", "n_seq_id", "logits")}
    return SimpleNamespace(n_tokens=0, seq_id=[[0] * sequences for _ in range(tokens)], **lists)


def llama_decode(context, batch):
    context.rows = {}
    for at in range(batch.n_tokens):
        (sequence,) = batch.seq_id[at][: batch.n_seq_id[at]]
        assert 0 <= sequence < context.settings.n_seq_max
        read = context.read.setdefault(sequence, [])
        assert batch.pos[at] == len(read)
        read.append(batch.token[at])
        if sum(map(len, context.read.values())) > context.settings.n_ctx:
            return 1
        if batch.logits[at]:
            with torch.inference_mode():
                logits = context.model(torch.tensor([read])).logits[0, -1]
            context.rows[at] = np.ascontiguousarray(logits.numpy())
    return 0


def llama_get_logits_ith(context, at):
    return context.rows[at].ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def llama_get_memory(context):
    return context.read


def llama_memory_seq_rm(memory, sequence, first, last):
    assert (first, last) == (-1, -1)
    memory.pop(sequence, None)
    return True


def llama_batch_free(_):
    pass


llama_free = llama_model_free = llama_batch_free
