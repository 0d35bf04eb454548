"""What is timed is what was meant, and the memory that is weighed is the memory that is there."""

import time

import pytest
import torch

from distillkit import timing
from distillkit.arithmetic import (
    Shape,
    kv_cache_bytes,
    logit_bytes,
    parameters,
    shape_of,
    training_bytes,
)
from distillkit.benchmark import peak_memory
from distillkit.errors import UserError
from distillkit.models import build_shape
from distillkit.timing import (
    cache_bytes,
    copy_bandwidth,
    decode_time,
    matmul_speed,
    prefill_time,
    products_time,
    saved_bytes,
    spread,
    thin_twin,
    train_one_step,
)

SHAPE = Shape(64, 24, 3, 6, 2, 40, tied=True)


@pytest.fixture(scope="module")
def model():
    return build_shape(SHAPE)


def test_a_spread_is_the_median_and_the_quartiles():
    times = spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (times.low, times.median, times.high, times.repeats) == (2, 3, 4, 5)
    assert f"{times.scaled(10):.0f}" == "30 [20, 40]"
    with pytest.raises(UserError, match="no values"):
        spread([])


@pytest.fixture
def clock(monkeypatch):
    """Every piece of work takes two seconds; what was timed and on how many threads is noted."""
    seen = []

    def times(work, repeats, device, threads):
        seen.append((repeats, device, threads))
        work()
        return [2.0] * repeats

    monkeypatch.setattr(timing, "_times", times)
    return seen


def test_rates_are_bytes_and_operations_over_seconds(clock):
    assert copy_bandwidth(1000, repeats=3, threads=2).median == 2 * 4 * 1000 / 2
    assert matmul_speed(10, repeats=4).median == 2 * 10**3 / 2
    assert clock == [(3, "cpu", 2), (4, "cpu", 1)]


def fed(model, monkeypatch):
    """(tokens read, tokens in the cache before) of every step."""
    steps, real = [], timing._step

    def step(model, ids, cache):
        steps.append((tuple(ids.shape), cache.get_seq_length()))
        return real(model, ids, cache)

    monkeypatch.setattr(timing, "_step", step)
    return steps


def test_decoding_reads_a_context_and_then_one_token_a_step(model, monkeypatch):
    steps = fed(model, monkeypatch)
    times = decode_time(model, 7, batch=2, steps=3)
    assert steps == [((2, 7), 0), ((2, 1), 7), ((2, 1), 8), ((2, 1), 9), ((2, 1), 10)]
    assert times.repeats == 3 and 0 < times.low <= times.median <= times.high


def test_prefill_reads_everything_anew_each_time(model, monkeypatch):
    steps = fed(model, monkeypatch)
    prefill_time(model, 9, repeats=2)
    assert steps == [((1, 9), 0)] * 3


def test_products_are_those_of_every_weight_once(model, monkeypatch):
    seen, real = [], torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w: seen.append(w.numel()) or real(x, w)
    )
    products_time(model, repeats=1)
    vectors = (2 * SHAPE.layers + 1) * SHAPE.width
    assert sum(seen) == 2 * (parameters(SHAPE) - vectors)  # the warm-up, and one that counts


def test_a_thin_twin_has_the_layers_and_no_weights_to_speak_of(model):
    twin = shape_of(thin_twin(model).config)
    assert (twin.layers, twin.heads, twin.kv_heads, twin.tied) == (3, 6, 2, True)
    assert parameters(twin) < parameters(SHAPE)
    assert thin_twin(build_shape(SHAPE).half()).dtype == torch.float16


def test_the_cache_weighs_what_the_formula_says(model):
    for tokens, batch in ((1, 1), (100, 3)):
        told = kv_cache_bytes(SHAPE, tokens, batch=batch, bits=32)
        assert cache_bytes(model, tokens, batch=batch) == told


def test_activations_grow_with_tokens_and_hold_the_logits(model):
    few, many = saved_bytes(model, 10), saved_bytes(model, 20)
    assert logit_bytes(SHAPE, 10) < few < many
    assert many == pytest.approx(2 * few, rel=0.15)
    assert saved_bytes(model, 10, batch=2) == pytest.approx(2 * few, rel=0.15)
    wide = build_shape(Shape(6400, 24, 3, 6, 2, 40, tied=True))
    gained = saved_bytes(wide, 10) - few
    assert gained >= logit_bytes(Shape(6336, 24, 3, 6, 2, 40), 9)


@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="Linux and macOS only")
def test_a_step_of_training_takes_sixteen_bytes_a_parameter():
    shape = Shape(2048, 384, 8, 6, 6, 1024)
    told = sum(training_bytes(parameters(shape)).values())
    assert told == 16 * parameters(shape)
    assert 1.0 <= peak_memory(train_one_step, shape, 16).added / told < 1.3


def test_the_seconds_are_real_and_the_threads_are_put_back():
    before = torch.get_num_threads()
    seen = []
    seconds = timing._times(lambda: seen.append(torch.get_num_threads()), 3, "cpu", 2)
    assert seen == [2, 2, 2, 2] and len(seconds) == 3 and min(seconds) >= 0
    assert torch.get_num_threads() == before


@pytest.mark.skipif("sys.platform == 'win32'", reason="its clock of threads is too coarse")
def test_on_one_thread_of_a_cpu_waiting_is_not_counted():
    assert max(timing._times(lambda: time.sleep(0.05), 2, "cpu", 1)) < 0.04
    assert min(timing._times(lambda: time.sleep(0.05), 2, "cpu", 2)) >= 0.05


BAD = {
    "numbers is 0": lambda model: copy_bandwidth(0),
    "size is 0": lambda model: matmul_speed(0),
    "repeats is 0": lambda model: matmul_speed(4, repeats=0),
    "threads is 0": lambda model: matmul_speed(4, threads=0),
    "context is 0": lambda model: decode_time(model, 0),
    "batch is 0": lambda model: decode_time(model, 1, batch=0),
    "tokens is 0": lambda model: prefill_time(model, 0),
    "tokens is 1: expected at least 2": lambda model: saved_bytes(model, 1),
}


@pytest.mark.parametrize("sentence", BAD)
def test_what_cannot_be_timed_is_refused(sentence, model):
    with pytest.raises(UserError, match=sentence):
        BAD[sentence](model)
