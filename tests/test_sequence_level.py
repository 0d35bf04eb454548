"""Text that a teacher writes once: what is left out, what it depends on, and a kill in between."""

import json
import signal
import sys

import pytest
import tiny
import torch
from trainers import run_here

from distillkit.chat import encode_prompt, encode_rows
from distillkit.decoding import generate_replies
from distillkit.dialogues import Visit
from distillkit.errors import UserError
from distillkit.models import load_model
from distillkit.sampling import Sampling
from distillkit.sequence_level import read_written, write_replies, write_visits

torch.set_num_threads(1)

ROWS = tiny.dialogues(6, seed=4)
TURNS = sum(len(row["messages"]) // 2 for row in ROWS)
SAMPLED = {"samples": 3, "sampling": Sampling(seed=7), "max_reply_tokens": 60, "batch_size": 4}


def write(file, teacher=None, **options):
    return write_replies(teacher or tiny.teacher(), tiny.TOKENIZER, ROWS, file, **SAMPLED | options)


def test_every_turn_is_answered_and_only_the_answer_is_learned(tmp_path):
    text = write(tmp_path / "text.jsonl")
    assert len(text.rows) + sum(text.left_out.values()) == 3 * TURNS
    assert len(text.rows) > 5
    histories = [row["messages"][:at] for row in ROWS for at in range(1, len(row["messages"]), 2)]
    for row, encoded in zip(text.rows, encode_rows(tiny.TOKENIZER, text.rows), strict=True):
        *history, reply = row["messages"]
        plain = [{k: v for k, v in message.items() if k != "weight"} for message in history]
        assert plain in histories and reply["role"] == "assistant"
        prompt = len(encode_prompt(tiny.TOKENIZER, plain))
        labels = encoded["labels"]
        assert set(labels[:prompt]) == {-100} and labels[prompt:] == encoded["input_ids"][prompt:]
        assert labels[-1] == tiny.TOKENIZER.eos_token_id


def test_replies_without_an_end_are_dropped_and_counted(tmp_path):
    text = write_replies(
        tiny.teacher(), tiny.TOKENIZER, ROWS, tmp_path / "text.jsonl", max_reply_tokens=5
    )
    prompts = [
        encode_prompt(tiny.TOKENIZER, row["messages"][:at])
        for row in ROWS
        for at in range(1, len(row["messages"]), 2)
    ]
    replies = generate_replies(tiny.teacher(), tiny.TOKENIZER, prompts, max_reply_tokens=5)
    open_ended = sum(reply[-1] != tiny.TOKENIZER.eos_token_id for reply in replies)
    assert text.left_out.get("came to no end", 0) == open_ended > 0
    assert text.rows == read_lines(tmp_path / "text.jsonl")


def test_doubles_are_dropped_and_counted(tmp_path):
    teacher, tokenizer = load_model("front-desk-teacher")
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "x"}]
    hello = {"messages": talk}
    text = write_replies(teacher, tokenizer, [hello] * 5, tmp_path / "text.jsonl", batch_size=2)
    assert len(text.rows) == 1 and text.left_out == {"doubles": 4}


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow  # starts another Python process: 15 s each
@pytest.mark.parametrize("batches", [0, 2])
def test_a_kill_in_the_middle_loses_one_batch_and_the_end_is_the_same(tmp_path, batches):
    write(tmp_path / "whole.jsonl")
    file = tmp_path / "text.jsonl"
    killed = run_here([sys.executable, "killed_writing.py", str(file), str(batches)])
    assert killed.returncode == -signal.SIGKILL
    state = json.loads((tmp_path / "text.jsonl.manifest.json").read_text())["state"]
    assert state["done"] == 4 * batches
    text = write(file)
    assert file.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert text.rows == read_lines(file)
    manifests = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("*.manifest.json"))]
    for manifest in manifests:
        manifest["state"].pop("seconds")
    assert manifests[0] == manifests[1]


def test_what_is_written_is_not_written_again(tmp_path):
    first = write(tmp_path / "text.jsonl")
    teacher = tiny.teacher()
    teacher.forward = None
    assert write(tmp_path / "text.jsonl", teacher) == first


def test_text_of_another_teacher_or_setting_is_refused(tmp_path):
    file = tmp_path / "text.jsonl"
    write(file)
    other = tiny.teacher()
    other.lm_head.weight.data[0, 0] += 1e-3
    for options in ({"teacher": other}, {"samples": 2}, {"sampling": Sampling(seed=8)}):
        with pytest.raises(UserError, match="was written with"):
            write(file, **options)
    file.write_text("")
    with pytest.raises(UserError, match="shorter"):
        write(file)


def test_several_greedy_samples_are_refused(tmp_path):
    with pytest.raises(UserError, match="greedy"):
        write(tmp_path / "text.jsonl", sampling=None)


def test_whole_visits_end_well_or_are_left_out(tmp_path):
    teacher, tokenizer = load_model("front-desk-student-small")
    visitors = [f"3/{number}" for number in range(6)]
    text = write_visits(teacher, tokenizer, visitors, tmp_path / "text.jsonl", batch_size=4)
    assert len(text.rows) + text.left_out.get("failed visits", 0) == 6 and len(text.rows) >= 2
    first = {Visit(visitor, "train").messages[0]["content"] for visitor in visitors}
    assert all(row["messages"][0]["content"] in first for row in text.rows)
    assert all(row["messages"][-1]["role"] == "assistant" for row in text.rows)


# --- A black box --------------------------------------------------------------------------------


def test_a_black_boxs_file_is_read(tmp_path):
    file = tmp_path / "text.jsonl"
    talk = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "no"}]
    lines = [
        {"messages": talk},
        {"prompt": "book", "text": "two nights"},
        {"prompt": [*talk, {"role": "user", "content": "book"}], "text": "in the north"},
        {"prompt": "book", "text": "two nights"},
        {"prompt": "book", "text": "two", "finish_reason": "length"},
        {"prompt": "book", "text": ""},
        {"prompt": "book"},
        {"other": 1},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not json\n\n")
    text = read_written(file)
    assert [len(row["messages"]) for row in text.rows] == [2, 2, 4]
    assert text.left_out["doubles"] == 1 and text.left_out["came to no end"] == 1
    assert sum(text.left_out.values()) == 6
    encoded = encode_rows(tiny.TOKENIZER, text.rows)
    said = [
        tiny.TOKENIZER.decode([label for label in row["labels"] if label != -100])
        for row in encoded
    ]
    assert ["no" in said[0], "two nights" in said[1], "in the north" in said[2]] == [True] * 3
    assert "no" not in said[2].replace("north", "")


def test_a_file_with_nothing_in_it_is_refused(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"prompt": "book", "text": ""}\n')
    with pytest.raises(UserError, match="no reply"):
        read_written(tmp_path / "text.jsonl")
