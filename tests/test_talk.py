"""Chatting in the terminal, with a small random model."""

import pytest
import tiny

from distillkit import cli, talk
from distillkit.chat import encode_prompt
from distillkit.dialogues import Visit
from distillkit.errors import UserError
from distillkit.models import save_model

CALL = {"function": {"name": "search", "arguments": {"domain": "hotel"}}}


@pytest.fixture
def says(monkeypatch):
    """What you type, line by line; then the end of the input."""

    def type_in(*lines):
        waiting = iter(lines)
        monkeypatch.setattr("builtins.input", lambda _: next(waiting, ""))

    return type_in


def test_a_reply_is_the_likeliest_and_is_printed_as_it_comes(capsys):
    model, messages = tiny.teacher(), [{"role": "user", "content": "the cheap hotel"}]
    message = talk.reply(model, tiny.TOKENIZER, messages)
    assert message["role"] == "assistant"
    printed = capsys.readouterr().out
    assert printed.startswith(talk.MODEL)
    assert message["content"] in printed
    assert "<|end|>" not in printed


def test_a_call_goes_to_the_tool(says, monkeypatch, capsys):
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    replies = iter([called, {"role": "assistant", "content": "here it is"}])
    monkeypatch.setattr(talk, "reply", lambda *_: next(replies))
    says("a hotel please")
    messages = talk.talk(None, None, tool=lambda call: f"found by {call['name']}")
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[2]["content"] == "found by search"
    assert "found by search" in capsys.readouterr().out


def test_without_a_tool_the_call_is_only_shown(says, monkeypatch, capsys):
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    monkeypatch.setattr(talk, "reply", lambda *_: called)
    says("a hotel please")
    assert len(talk.talk(None, None)) == 2
    assert talk.NO_TOOL in capsys.readouterr().out


def test_a_conversation_that_fills_the_model_ends_in_a_sentence():
    model, messages = tiny.student(), [{"role": "user", "content": "the cheap hotel"}]
    model.config.max_position_embeddings = len(encode_prompt(tiny.TOKENIZER, messages))
    with pytest.raises(UserError, match="start anew"):
        talk.reply(model, tiny.TOKENIZER, messages)


def test_watching_a_visitor(monkeypatch, capsys):
    goodbye = {"role": "assistant", "content": "goodbye"}
    monkeypatch.setattr(talk, "reply", lambda *_: goodbye)
    visit = Visit(0, split="development")
    assert talk.watch(None, None, visit) is False
    printed = capsys.readouterr().out
    assert visit.messages[0]["content"] in printed
    assert "not served" in printed


def test_the_command(tmp_path, says, capsys):
    save_model(tiny.teacher(), tiny.TOKENIZER, tmp_path / "mine")
    says("the hotel")
    assert cli.main(["chat", "--model", str(tmp_path / "mine")]) == 0
    assert cli.main(["chat", "--model", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
