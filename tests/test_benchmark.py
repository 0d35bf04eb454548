"""What is measured is what was meant: these files, this work, this function's memory."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distillkit import benchmark
from distillkit.benchmark import bytes_on_disk, machine, measure_speed, peak_memory
from distillkit.chat import encode, train_tokenizer
from distillkit.dialogues import front_desk
from distillkit.errors import UserError
from distillkit.models import ModelSize, build_model, save_model


@pytest.fixture(scope="module")
def rows():
    return front_desk(3)


@pytest.fixture(scope="module")
def tokenizer(rows):
    return train_tokenizer(rows, vocab_size=300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(ModelSize(16, 1, 2, 16), tokenizer)


def test_bytes_are_those_of_the_files_that_loading_reads(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "model", card="# A card")
    folder = tmp_path / "model"
    alone = bytes_on_disk(folder)
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed <= {path.name for path in folder.iterdir()}
    assert alone == sum(p.stat().st_size for p in folder.iterdir() if p.name != "README.md")
    for name in ("optimizer.pt", "optimizer.bin", "trainer_state.json", "training_args.bin"):
        (folder / name).write_bytes(b"x" * 999)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes(b"x" * 999)
    assert bytes_on_disk(folder) == alone
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"x" * 7)
    assert bytes_on_disk(str(folder)) == alone + 7


def test_a_folder_without_a_model_has_no_size(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        bytes_on_disk(tmp_path)


def test_speed_counts_what_the_assistant_wrote(model, tokenizer, rows):
    speed = measure_speed(model, tokenizer, rows, repeats=2)
    encoded = [encode(tokenizer, row["messages"])["labels"] for row in rows]
    assert speed.tokens == sum(label != -100 for labels in encoded for label in labels)
    assert speed.turns == sum(m["role"] == "user" for row in rows for m in row["messages"])
    assert 0 < speed.latency_p50 <= speed.latency_p95
    assert (speed.threads, speed.repeats) == (1, 2)


def test_every_model_does_the_same_work_in_the_same_turns():
    """Two visitor's messages, the first answered by a call and a text."""
    roles = ["user", "assistant", "tool", "assistant", "user", "assistant"]
    messages = [{"role": role} for role in roles]
    labels = [-100, -100, 1, 1, -100, -100, 1, 1, 1, -100, 1]
    plan = benchmark._turns(labels, messages)
    assert plan == [[(2, 4), (6, 9)], [(10, 11)]]

    fed = []

    class Recorder(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, ids, **_):
            fed.append(ids[0].tolist())
            time.sleep(0.01)
            return SimpleNamespace(logits=torch.zeros(1, 1, 5))

    first, second = benchmark._serve(Recorder(), range(20, 31), plan)
    assert fed == [[20, 21], [22], [23, 24, 25], [26], [27], [28, 29]]
    assert first == pytest.approx(0.05, abs=0.03) and second == pytest.approx(0.01, abs=0.02)


def test_the_number_of_threads_is_set_and_restored(model, tokenizer, rows, monkeypatch):
    before, seen = torch.get_num_threads(), set()
    monkeypatch.setattr(
        benchmark, "_serve", lambda *_: seen.add(torch.get_num_threads()) or [0.5, 1.5]
    )
    speed = measure_speed(model, tokenizer, rows[:1], threads=2, repeats=1)
    assert seen == {2} and torch.get_num_threads() == before
    assert (speed.latency_p50, speed.latency_p95) == pytest.approx((1.0, 1.45))
    assert speed.tokens_per_second == speed.tokens / 2


def test_nothing_to_time_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="no assistant turn"):
        measure_speed(model, tokenizer, [{"messages": [{"role": "user", "content": "hello"}]}])


def test_peak_memory_is_that_of_the_function_alone():
    here = np.ones(40_000_000)  # 320 MB in this process do not count
    small, large = peak_memory(np.ones, 1000), peak_memory(np.ones, 25_000_000)
    assert small.added < 20e6
    assert large.added == pytest.approx(200e6, rel=0.1)
    assert large.peak > large.before > 5e6
    assert here.nbytes == 320_000_000


def test_a_function_that_cannot_be_sent_or_fails_is_said_so():
    with pytest.raises(UserError, match="function of a module"):
        peak_memory(lambda: None)
    local = SimpleNamespace(__module__="__main__")
    with pytest.raises(UserError, match="notebook"):
        peak_memory(local)
    with pytest.raises(UserError, match=r"failed in the fresh process: .*JSONDecodeError"):
        peak_memory(json.loads, "{")


def test_the_machine_is_described_without_its_name():
    found = machine()
    assert found["cores"] >= 1 and found["torch"] == torch.__version__ and found["cpu"]
    assert json.loads(json.dumps(found)) == found
    wanted = {"cpu", "cores", "memory_gb", "gpu", "system", "python", "torch", "transformers"}
    assert set(found) == wanted
