"""The arithmetic of chapter 01 against transformers, published counts, and counts by hand."""

import ast
import doctest
import math
import re
from dataclasses import replace

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from distillkit import arithmetic
from distillkit.arithmetic import (
    DEVICES,
    GPT3_PARAMETERS,
    SHAPES,
    Shape,
    active_parameters,
    cost_per_million_tokens,
    decode_bytes,
    kv_cache_bytes,
    logit_bytes,
    operations,
    pace,
    parameters,
    parameters_by_part,
    shape_of,
    step_seconds,
    training_bytes,
    weight_bytes,
)
from distillkit.course.notebooks import ROOT
from distillkit.errors import UserError
from distillkit.models import build_shape, count_parameters, load_model

# What the hub says of each checkpoint's safetensors (for the two Llamas, total_size / 2).
PUBLISHED = {
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
}
TINY = Shape(50, 12, 2, 3, 1, 20, tied=True)


@st.composite
def shapes(draw):
    few = st.integers(1, 4)
    kv_heads, heads = draw(few), draw(few)
    heads *= kv_heads
    return Shape(
        vocabulary=draw(st.integers(1, 60)),
        width=heads * draw(few),
        layers=draw(few),
        heads=heads,
        kv_heads=kv_heads,
        feed_forward=draw(st.integers(1, 30)),
        tied=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        head_width=2 * draw(few),
    )


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_counts_are_the_published_ones_to_the_last_digit(name):
    model = build_shape(SHAPES[name], device="meta")
    assert parameters(SHAPES[name]) == PUBLISHED[name] == count_parameters(model)
    assert shape_of(model.config) == SHAPES[name]


@settings(max_examples=25, deadline=None)
@given(shapes())
def test_any_shape_has_as_many_parameters_as_its_model(shape):
    model = build_shape(shape, device="meta")
    assert parameters(shape) == count_parameters(model)
    assert shape_of(model.config) == shape
    parts = parameters_by_part(shape)
    own = {"attention": "self_attn", "feed-forward": "mlp", "norms": "norm", "head": "lm_head"}
    names = dict(model.named_parameters())
    for part, word in own.items():
        assert parts[part] == sum(p.numel() for name, p in names.items() if word in name), part


def test_the_shipped_models_have_the_parameters_of_their_shapes():
    for name in ("front-desk-teacher", "front-desk-student"):
        model, _ = load_model(name)
        assert parameters(shape_of(model.config)) == count_parameters(model)


def test_a_tied_table_is_read_whole_and_another_is_not():
    assert active_parameters(TINY) == parameters(TINY)
    assert active_parameters(replace(TINY, tied=False)) == parameters(TINY)
    assert parameters(replace(TINY, tied=False)) == parameters(TINY) + 50 * 12


# --- bytes ----------------------------------------------------------------------------------------


def test_bytes_of_the_cache_by_hand():
    # 2 (key, value) · 32 layers · 8 heads · 128 numbers · 2 bytes = 128 KiB a token
    assert kv_cache_bytes(SHAPES["Llama-3.1-8B"], 1) == 2 * 32 * 8 * 128 * 2 == 128 * 1024
    assert kv_cache_bytes(SHAPES["Llama-3.1-8B"], 8192) == 2**30
    assert kv_cache_bytes(SHAPES["SmolLM2-135M"], 10, batch=3, bits=32) == 3 * 10 * 2 * 30 * 192 * 4
    ungrouped = replace(SHAPES["Llama-3.1-8B"], kv_heads=32)
    assert kv_cache_bytes(ungrouped, 1) == 4 * kv_cache_bytes(SHAPES["Llama-3.1-8B"], 1)


def test_bytes_by_hand():
    assert weight_bytes(8e9, 4.5) == 4.5e9
    assert weight_bytes(GPT3_PARAMETERS) == 350e9
    assert training_bytes(10) == {"weights": 40, "gradient": 40, "moments": 80}
    assert logit_bytes(TINY, 7) == 50 * 7 * 4
    cache = 6 * 4 * 2 * 2 * 4 * 1  # tokens, bytes, key and value, layers, head width, heads
    assert decode_bytes(TINY, 6, bits=8, cache_bits=32) == parameters(TINY) + cache
    two = decode_bytes(TINY, 6, batch=2, bits=8, cache_bits=32)
    assert two == parameters(TINY) + 2 * cache  # the weights once, a cache each


# --- time and money -------------------------------------------------------------------------------


def test_operations_are_those_that_torch_counts():
    """Everything in a product of matrices; what torch counts of attention depends on its kernel."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_shape(TINY).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.long))
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    attention = 5 * 4 * 2 * 3 * 4 * 5  # tokens, 4, layers, heads, head width, context
    assert operations(TINY, 5, 5) == products + attention
    head = 2 * 50 * 12
    assert operations(TINY, 5, 5, predicted=1) == operations(TINY, 5, 5) - 4 * head


def test_a_step_takes_the_longer_of_reading_and_computing():
    assert step_seconds(100, 1, bandwidth=10, speed=1) == 10
    assert step_seconds(1, 100, bandwidth=10, speed=1) == 100
    assert step_seconds(1, 100, bandwidth=10, speed=1, overhead=0.5) == 100.5


def test_pace_and_cost_by_hand():
    assert pace(60, 2) == 0.5
    assert cost_per_million_tokens(3.6, 1000) == pytest.approx(1.0)


def test_devices_are_those_of_their_data_sheets():
    assert DEVICES["Raspberry Pi 5, 8 GB"].bandwidth == pytest.approx(17.1e9, rel=0.01)
    assert DEVICES["T4 (Colab)"].memory == pytest.approx(16.1e9, rel=0.01)


# --- what cannot be -------------------------------------------------------------------------------

BAD = {
    "vocabulary is 0": lambda: replace(TINY, vocabulary=0),
    "layers is -1": lambda: replace(TINY, layers=-1),
    "3 heads cannot share 2": lambda: replace(TINY, kv_heads=2),
    "width 13 does not split into 3 heads": lambda: replace(TINY, width=13, head_width=0),
    "count is 0": lambda: weight_bytes(0),
    "bits is -4": lambda: weight_bytes(8, -4),
    "tokens is 0": lambda: kv_cache_bytes(TINY, 0),
    "batch is 0": lambda: decode_bytes(TINY, 3, batch=0),
    "context is -1": lambda: operations(TINY, 1, -1),
    "bandwidth is 0": lambda: step_seconds(1, 1, bandwidth=0, speed=1),
    "speed is nan": lambda: step_seconds(1, 1, bandwidth=1, speed=math.nan),
    "words_per_minute is 0": lambda: pace(0, 1),
    "tokens_per_second is 0": lambda: cost_per_million_tokens(1, 0),
    "price_per_hour is -1": lambda: cost_per_million_tokens(-1, 1),
    "a gpt2 model": lambda: shape_of(GPT2Config()),
}


@pytest.mark.parametrize("sentence", BAD)
def test_what_cannot_be_is_refused_in_a_sentence(sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        BAD[sentence]()


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(arithmetic, optionflags=doctest.ELLIPSIS)
    assert result.attempted >= 10 and not result.failed


# --- the chapter ----------------------------------------------------------------------------------


def defined_in_chapter():
    """The functions that chapter 01 defines by hand."""
    notebook = nbformat.read(ROOT / "chapters" / "01_why_compress.ipynb", as_version=4)
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            exec(compile(tree, "01_why_compress", "exec"), found)
    return found


@settings(max_examples=25, deadline=None)
@given(shapes(), st.integers(1, 50), st.integers(1, 5))
def test_what_the_chapter_counts_by_hand_is_what_the_library_counts(shape, tokens, batch):
    chapter = defined_in_chapter()
    s = replace(shape, qkv_bias=False)
    widths = (s.vocabulary, s.width, s.layers, s.feed_forward)
    heads = (s.heads, s.kv_heads, s.head_width)
    assert chapter["count_by_hand"](*widths, *heads, s.tied) == parameters(s)
    by_hand = chapter["cache_by_hand"](s.layers, s.kv_heads, s.head_width, tokens, batch, 2)
    assert by_hand == kv_cache_bytes(s, tokens, batch=batch)
