"""Chatting: a model that speaks piece by piece, in the terminal, with a small random model."""

import pytest
import tiny
import torch

from distillkit import cli, talk
from distillkit.chat import encode_prompt
from distillkit.decoding import generate_replies
from distillkit.dialogues import Visit
from distillkit.errors import UserError
from distillkit.models import save_model
from distillkit.speaking import MOST_CALLS, Speaker, Spoken, serve_visitor, take_turn

CALL = {"function": {"name": "search", "arguments": {"domain": "hotel"}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ASKED = [{"role": "user", "content": "the cheap hotel"}]


class Actor(Speaker):
    """A speaker that has learned its lines."""

    def __init__(self, *lines):
        self.lines = iter(lines)

    def reply(self, messages, hear=lambda text: None, *, max_tokens=256):
        message = next(self.lines)
        hear(message["content"] or "a call")
        return Spoken(message, tokens=3, first=0.25, seconds=0.5)


@pytest.fixture
def says(monkeypatch):
    """What you type, line by line; then the end of the input."""

    def type_in(*lines):
        waiting = iter(lines)
        monkeypatch.setattr("builtins.input", lambda _: next(waiting, ""))

    return type_in


def casts(monkeypatch, *lines):
    monkeypatch.setattr(talk, "Speaker", lambda *_: Actor(*lines))


# --- A model speaks -------------------------------------------------------------------------------


def test_a_reply_is_the_likeliest_and_is_heard_as_it_comes():
    model, heard = tiny.teacher(), []
    prompt = encode_prompt(tiny.TOKENIZER, ASKED)
    [ids] = generate_replies(model, tiny.TOKENIZER, [prompt], max_reply_tokens=40)
    spoken = Speaker(model, tiny.TOKENIZER).reply(ASKED, heard.append, max_tokens=40)
    text = tiny.TOKENIZER.decode(ids)
    assert "".join(heard) == text.removesuffix(tiny.TOKENIZER.eos_token)
    assert len(heard) >= len(ids) - 1
    assert spoken.tokens == len(ids)
    assert 0 < spoken.first <= spoken.seconds


def test_a_speaker_reads_only_what_is_new():
    model, read = tiny.teacher(), []
    speaker, messages = Speaker(model, tiny.TOKENIZER), list(ASKED)
    model.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    first = speaker.reply(messages, max_tokens=8)
    written = speaker._read[len(encode_prompt(tiny.TOKENIZER, ASKED)) :]
    assert len(read) == first.tokens and read[1:] == [1] * (first.tokens - 1)
    said = {"role": "assistant", "content": tiny.TOKENIZER.decode(written)}
    messages += [said, {"role": "user", "content": "and a train"}]
    anew = Speaker(tiny.teacher(), tiny.TOKENIZER).reply(messages, max_tokens=8)
    assert speaker.reply(messages, max_tokens=8).message == anew.message
    other = [{"role": "user", "content": "a table for two"}]  # another conversation: all is read
    assert speaker.reply(other, max_tokens=8).message == (
        Speaker(tiny.teacher(), tiny.TOKENIZER).reply(other, max_tokens=8).message
    )


def test_the_same_question_twice_has_the_same_answer():
    speaker = Speaker(tiny.teacher(), tiny.TOKENIZER)
    assert speaker.reply(ASKED, max_tokens=8).message == speaker.reply(ASKED, max_tokens=8).message


def test_half_a_character_is_not_heard(monkeypatch):
    speaker, heard = Speaker(tiny.teacher(), tiny.TOKENIZER), []
    texts = iter(["a", "a\ufffd", "a\u00e4"])
    monkeypatch.setattr(speaker, "_tokens", lambda prompt, room: iter([5, 6, 7]))
    monkeypatch.setattr(tiny.TOKENIZER, "decode", lambda *_, **__: next(texts, ""))
    speaker.reply(ASKED, heard.append)
    assert heard == ["a", "\u00e4"]


def test_a_conversation_that_fills_the_model_ends_in_a_sentence():
    model = tiny.student()
    model.config.max_position_embeddings = len(encode_prompt(tiny.TOKENIZER, ASKED))
    with pytest.raises(UserError, match="start anew"):
        Speaker(model, tiny.TOKENIZER).reply(ASKED)


def test_speaking_leaves_the_model_and_torch_as_they_were():
    model = tiny.student().train()
    Speaker(model, tiny.TOKENIZER).reply(ASKED, max_tokens=3)
    assert model.training and torch.is_grad_enabled()


def test_a_turn_runs_calls_and_adds_up():
    messages, heard = list(ASKED), []
    speaker = Actor(CALLED, {"role": "assistant", "content": "here it is"})
    turn = take_turn(
        speaker, messages, lambda call: f"found by {call['name']}", lambda *said: heard.append(said)
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert turn.messages == messages[1:]
    assert (turn.tokens, turn.first, turn.seconds, turn.open_call) == (6, 0.25, 1.0, False)
    assert heard[1:] == [("tool", "found by search"), ("assistant", "here it is")]


def test_a_turn_of_calls_alone_comes_to_an_end():
    turn = take_turn(Actor(*[CALLED] * 99), list(ASKED), lambda call: "nothing")
    assert turn.open_call and len(turn.messages) == 2 * MOST_CALLS


def test_serving_a_visitor_lets_everything_be_heard_once():
    visit, heard = Visit(0, split="development"), []
    goodbye = {"role": "assistant", "content": "goodbye"}
    said = serve_visitor(Actor(*[goodbye] * 9), visit, lambda *said: heard.append(said))
    expected = [(message["role"], message["content"]) for message in visit.messages]
    assert heard == expected[: len(heard)] and len(heard) >= len(expected) - 1
    assert len(said) == sum(message["role"] == "assistant" for message in visit.messages)
    assert visit.done and not visit.success


# --- In the terminal ------------------------------------------------------------------------------


def test_a_call_goes_to_the_tool(says, monkeypatch, capsys):
    casts(monkeypatch, CALLED, {"role": "assistant", "content": "here it is"})
    says("a hotel please")
    messages = talk.talk(None, None, tool=lambda call: f"found by {call['name']}")
    assert messages[2]["content"] == "found by search"
    lines = capsys.readouterr().out.splitlines()
    labels = talk.LABELS
    assert lines == [
        f"{labels['assistant']}a call",
        f"{labels['tool']}found by search",
        f"{labels['assistant']}here it is",
    ]


def test_without_a_tool_the_call_is_only_shown(says, monkeypatch, capsys):
    casts(monkeypatch, CALLED)
    says("a hotel please")
    assert len(talk.talk(None, None)) == 2
    assert talk.NO_TOOL in capsys.readouterr().out


def test_watching_a_visitor(monkeypatch, capsys):
    casts(monkeypatch, *[{"role": "assistant", "content": "goodbye"}] * 9)
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
