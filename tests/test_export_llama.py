"""llama.cpp behind the manners of a model: with a stand-in everywhere, and with the real one."""

import importlib.util
import sys

import fake_llama_cpp
import pytest
import torch
from exports import ROWS, ids_of, logits_of, student

from distillkit.benchmark import measure_speed
from distillkit.chat import encode_rows
from distillkit.errors import UserError
from distillkit.evaluation import agreement
from distillkit.export import check_export, export_gguf, load_llama_cpp, read_gguf

pytest.importorskip("gguf", reason="pip install 'gguf>=0.17' to test the export to GGUF")

REAL = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="pip install llama-cpp-python (it builds for minutes) to run GGUF files in llama.cpp",
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return export_gguf(*student(), tmp_path_factory.mktemp("gguf") / "student.gguf", "f32")


@pytest.fixture(params=["stand-in", pytest.param("llama.cpp", marks=REAL)])
def engine(request, monkeypatch):
    """What plays llama.cpp, and how near its logits come: its cache is in 16 bits."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "llama_cpp", fake_llama_cpp)
    return 1e-4 if request.param == "stand-in" else 0.1


def test_logits_in_blocks_steps_and_rows(file, engine):
    wanted, model = read_gguf(file), load_llama_cpp(file, sequences=3)
    ids = ids_of(wanted, 3, 20)
    logits, cache = logits_of(wanted, ids), model.new_cache()
    found = logits_of(model, ids[:, :15], past_key_values=cache)
    torch.testing.assert_close(found, logits[:, :15], atol=engine, rtol=0)
    found = logits_of(model, ids[:, 15:16], past_key_values=cache, logits_to_keep=1)
    torch.testing.assert_close(found, logits[:, 15:16], atol=engine, rtol=0)
    cache.batch_select_indices(torch.tensor([2, 0]))
    found = logits_of(model, ids[[2, 0], 16:], past_key_values=cache, logits_to_keep=2)
    torch.testing.assert_close(found, logits[[2, 0], 18:], atol=engine, rtol=0)
    assert cache.get_seq_length() == 20 and len(model.free) == 1
    del cache
    assert sorted(model.free) == [0, 1, 2]
    torch.testing.assert_close(logits_of(model, ids, use_cache=False), logits, atol=engine, rtol=0)


def test_it_is_measured_like_a_model(file, engine):
    original, tokenizer = student()
    model = load_llama_cpp(file)
    assert check_export(original, model, tokenizer, ROWS[:1], bound=engine).require().same_text == 1
    assert agreement(model, original, encode_rows(tokenizer, ROWS[:1])) > 0.99
    speed = measure_speed(model, tokenizer, ROWS[:1], repeats=1)
    assert speed.tokens > 10 and speed.threads == 1
    assert model.eval() is model and model.train(False) is model
    with pytest.raises(UserError, match="does not learn"):
        model.train()


def test_what_does_not_fit_is_refused(file, engine):
    model = load_llama_cpp(file, sequences=2, positions=16)
    assert model.config.max_position_embeddings == 16
    with pytest.raises(UserError, match="3 conversations and 2 free sequences"):
        model(ids_of(model, 3, 4))
    with pytest.raises(UserError, match="load the model with more positions"):
        model(ids_of(model, 1, 600), logits_to_keep=1)
    with pytest.raises(UserError, match="must be at least 1"):
        load_llama_cpp(file, threads=0)


def test_a_file_that_llama_cpp_refuses(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", fake_llama_cpp)
    monkeypatch.setattr(fake_llama_cpp, "refused", True)
    with pytest.raises(UserError, match=r"llama\.cpp refuses the file"):
        load_llama_cpp(file)


def test_without_llama_cpp_it_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match="llama_cpp is not installed: pip install 'llama-cpp"):
        load_llama_cpp(file)
