"""Text that a teacher writes once: what is left out, what it depends on, and a kill in between."""

import json
import signal
import sys

import hub_models
import pytest
import tiny
import torch
from trainers import run_here

from distillkit.chat import encode_prompt, encode_rows
from distillkit.decoding import generate_replies
from distillkit.dialogues import Visit
from distillkit.errors import UserError
from distillkit.evaluation import serve
from distillkit.models import build_model, load_model
from distillkit.sampling import Sampling
from distillkit.sequence_level import read_written, write_replies, write_visits
from distillkit.speaking import Speaker

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


def test_a_file_that_was_changed_is_refused(tmp_path):
    file = tmp_path / "text.jsonl"
    write(file)
    content = file.read_bytes()
    for other in (b"x" * len(content), b"\xff" * len(content), content.replace(b"hotel", b"motel")):
        assert len(other) == len(content) and other != content
        file.write_bytes(other)
        with pytest.raises(UserError, match="was changed"):
            write(file)
    for length in range(0, len(content), len(content) // 5):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match="shorter"):
            write(file)
    file.write_bytes(content + b"what a kill leaves")
    write(file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"depends_on": 5, "state": 5}'])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / "text.jsonl").touch()
    (tmp_path / "text.jsonl.manifest.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        write(tmp_path / "text.jsonl")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"max_reply_tokens": 0}])
def test_settings_that_write_nothing_are_refused_and_leave_nothing_in_the_way(tmp_path, wrong):
    with pytest.raises(UserError, match="at least 1"):
        write(tmp_path / "text.jsonl", **wrong)
    assert write(tmp_path / "text.jsonl").rows


def test_a_prompt_that_is_too_long_is_left_out(tmp_path):
    teacher = build_model(tiny.TEACHER, tiny.TOKENIZER, max_positions=60, seed=1)
    options = {"sampling": Sampling(), "max_reply_tokens": 20}
    text = write_replies(teacher, tiny.TOKENIZER, ROWS, tmp_path / "text.jsonl", **options)
    prompts = [row["messages"][:at] for row in ROWS for at in range(1, len(row["messages"]), 2)]
    lengths = [len(encode_prompt(tiny.TOKENIZER, prompt)) for prompt in prompts]
    too_long = sum(length > 40 for length in lengths)
    assert text.left_out["prompt too long for the teacher"] == too_long > 0
    assert too_long < len(lengths)


def test_a_teacher_whose_head_is_wider_says_nothing_that_its_tokenizer_lacks(tmp_path):
    teacher, tokenizer = load_model(hub_models.qwen2(tmp_path / "wide"))
    lacking = slice(len(tokenizer), None)
    with torch.no_grad():
        teacher.lm_head.weight[lacking] = 50.0 * teacher.lm_head.weight[lacking]
    prompts = [encode_prompt(tokenizer, row["messages"][:1]) for row in ROWS]
    asked = torch.tensor(prompts[0]).unsqueeze(0)
    assert teacher(asked).logits[0, -1].argmax() >= len(tokenizer)  # what it would say
    replies = generate_replies(teacher, tokenizer, prompts, max_reply_tokens=8)
    assert max(map(max, replies)) < len(tokenizer)
    visit, speaker = Visit("0/1", "train"), Speaker(teacher, tokenizer)
    serve(teacher, tokenizer, [visit], max_reply_tokens=8)
    [said] = [message for message in visit.messages if message["role"] == "assistant"][:1]
    [same] = [speaker.reply(visit.messages[:1], max_tokens=8).message]
    assert said == same and said["content"]


def test_an_empty_reply_is_left_out_and_counted(tmp_path):
    teacher = tiny.teacher()
    with torch.no_grad():  # it ends every reply at once
        teacher.lm_head.weight[tiny.TOKENIZER.eos_token_id] = 0.0
        others = torch.arange(len(tiny.TOKENIZER)) != tiny.TOKENIZER.eos_token_id
    forward = teacher.forward

    def ending(*given, **named):
        output = forward(*given, **named)
        output.logits[..., others] = -1e4
        return output

    teacher.forward = ending
    text = write_replies(teacher, tiny.TOKENIZER, ROWS, tmp_path / "text.jsonl")
    assert text.rows == [] and text.left_out == {"empty replies": TURNS}


@pytest.mark.parametrize(
    "row",
    [{"text": "yes"}, ROWS[0]["messages"], {"messages": "yes"}, {"messages": [{"from": "x"}]}],
)
def test_a_conversation_without_messages_is_named_and_leaves_nothing_in_the_way(tmp_path, row):
    with pytest.raises(UserError, match=r'conversation 1 is .*: expected \{"messages"'):
        write_replies(tiny.teacher(), tiny.TOKENIZER, [ROWS[0], row], tmp_path / "text.jsonl")
    assert not list(tmp_path.iterdir())


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


def test_a_reply_that_did_not_end_by_itself_is_left_out_by_its_reason(tmp_path):
    whole = [None, "stop", "STOP", "end_turn", "tool_calls", "COMPLETE"]
    cut = ["length", "max_tokens", "MAX_TOKENS", "content_filter", "content_filter", ["odd"], 7]
    lines = [
        {"prompt": "book", "text": f"night {number}", "finish_reason": reason}
        for number, reason in enumerate([*whole, *cut])
    ]
    lines.append({"prompt": "book", "text": "night one", "stop_reason": "max_tokens"})
    lines.append({"prompt": "book", "text": "night two", "stop_reason": "end_turn"})
    lines.append({"prompt": "book", "text": "3", "stop_reason": "###", "finish_reason": "stop"})
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    text = read_written(file)
    said = [row["messages"][-1]["content"] for row in text.rows]
    assert said == [f"night {number}" for number in range(len(whole))] + ["night two", "3"]
    assert text.left_out == {
        "came to no end": 4,
        "ended by 'content_filter'": 2,
        "ended by \"['odd']\"": 1,
        "ended by '7'": 1,
    }


def test_lines_of_any_kind_are_read_or_counted(tmp_path):
    file = tmp_path / "text.jsonl"
    odd = [
        b'{"prompt": "caf\xe9", "text": "no"}',
        b'{"prompt": ["hi"], "text": "no"}',
        b"[" * 99_999,
    ]
    odd += [b'{"prompt": [[]], "text": "no"}', b'{"prompt": "half \\ud83d", "text": "no"}', b"\x00"]
    good = b'\xef\xbb\xbf{"prompt": "book", "text": "two"}\r\n'
    file.write_bytes(good + b"\n".join(odd))
    text = read_written(file)
    assert [row["messages"][0]["content"] for row in text.rows] == ["book"]
    assert sum(text.left_out.values()) == len(odd)


@pytest.mark.parametrize("name", ["nothing.jsonl", "."])
def test_a_file_that_cannot_be_opened_is_named(tmp_path, name):
    with pytest.raises(UserError, match="cannot be opened"):
        read_written(tmp_path / name)


def test_a_file_with_nothing_in_it_is_refused(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"prompt": "book", "text": ""}\n')
    with pytest.raises(UserError, match="no reply"):
        read_written(tmp_path / "text.jsonl")
