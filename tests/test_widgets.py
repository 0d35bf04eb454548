"""Widgets of the notebooks, driven as a reader's clicks would, and their static twins."""

import re

import pytest
import tiny

from distillkit import widgets
from distillkit.errors import UserError
from distillkit.microscope import examine
from distillkit.plots import ROLES, lines
from distillkit.widgets import chat, microscope, sliders, transcript, transcript_of_visit
from distillkit.words import WORDS

pytest.importorskip("ipywidgets")


@pytest.fixture
def models():
    return {"teacher": tiny.teacher(), "distilled": tiny.student()}


class Chat:
    """The parts of the chat, as the reader finds them."""

    def __init__(self, models, tool=None):
        self.widget = chat(models, tiny.TOKENIZER, tool)
        self.columns = self.widget.children[0].children
        self.line, self.anew = self.widget.children[1].children

    def say(self, text):
        self.line.value = text


def test_every_model_answers_in_its_own_column(models):
    talk = Chat(models)
    talk.say("the cheap hotel")
    assert talk.line.value == ""
    for column, role in zip(talk.columns, models, strict=True):
        assert f"<h4>{ROLES[role].name}</h4>" in column.value
        assert f"<b>{WORDS['user']}</b> the cheap hotel" in column.value
        assert f"<b>{WORDS['assistant']}</b>" in column.value
        assert re.search(r"\d+ tokens; first after \d+ ms", column.value)


def test_words_appear_while_they_are_made(models):
    talk, seen = Chat({"teacher": models["teacher"]}), []
    talk.columns[0].observe(lambda change: seen.append(change["new"]), names="value")
    talk.say("the cheap hotel")
    assert len(seen) > 3
    assert len(seen[0]) < len(seen[-1])


def test_a_new_conversation_begins_empty(models):
    talk = Chat(models)
    talk.say("please")
    talk.anew.click()
    assert all(WORDS["user"] not in column.value for column in talk.columns)
    talk.say("please")
    assert all(column.value.count("please") >= 1 for column in talk.columns)


def test_blank_lines_are_not_said(models):
    talk = Chat(models)
    before = [column.value for column in talk.columns]
    talk.say("   ")
    assert [column.value for column in talk.columns] == before


def test_what_is_said_cannot_become_markup(models):
    talk = Chat(models)
    talk.say("<script>alert(1)</script>")
    assert "<script" not in talk.columns[0].value


def test_a_conversation_that_grows_too_long_says_so(models):
    models["teacher"].config.max_position_embeddings = 3
    talk = Chat(models)
    talk.say("the cheap hotel")
    assert "start anew" in talk.columns[0].value
    assert "tokens; first" in talk.columns[1].value


def test_the_transcript_is_the_chats_twin(models):
    lines = ["the cheap hotel", "book <two> nights"]
    page = transcript(models, tiny.TOKENIZER, lines)
    assert page._repr_html_() == page
    assert page.count("<td") == page.count("<th ") == 2
    talk = Chat(models)
    for line in lines:
        talk.say(line)
    for column in talk.columns:
        said, _, _ = column.value.partition("<i>")
        assert said.partition("</h4>")[2] in page
    assert "&lt;two&gt;" in page
    with pytest.raises(UserError, match="no model"):
        transcript({}, tiny.TOKENIZER, lines)


def test_the_same_visitor_meets_every_model(models):
    page = transcript_of_visit(models, tiny.TOKENIZER, visitor=3)
    assert page.count("<td") == page.count("<th ") == 2
    assert page.count("The visitor was not served") == page.count("median") == 2


def test_the_microscope_shows_the_picked_token(models, monkeypatch):
    [messages] = [row["messages"] for row in tiny.dialogues(9) if len(row["messages"]) == 6][:1]
    seen = examine(tiny.TOKENIZER, messages, models, with_truth=False)
    turns = seen.turns()
    assert len(turns) > 1
    widget = microscope(seen, at=turns[1][0])
    turn, token, context, picture = widget.children
    assert (turn.value, token.value) == (1, 0)
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG")
    token.value = 1
    assert bytes(picture.value) != first
    assert seen.said(turns[1][0]) in context.value
    drawn = []
    draw = widgets._token_png
    monkeypatch.setattr(
        widgets, "_token_png", lambda *args: (drawn.append(args[1]), draw(*args))[1]
    )
    turn.value = 0
    assert (token.value, token.max) == (0, len(turns[0]) - 1)
    assert drawn == [turns[0][0]]  # once, where the slider moved with it, too
    turn.value = 1
    assert drawn == [turns[0][0], turns[1][0]]


def test_a_slider_redraws_the_figure_and_draw_is_its_static_twin():
    asked = []

    def draw(T, alpha):
        asked.append((T, alpha))
        return lines({"teacher": ([0, 1], [T, alpha])}, title="A title", xlabel="x", ylabel="y")

    widget = sliders(draw, {"T": (2.0, 1.0, 20.0, 0.5), "alpha": (0.5, 0.0, 1.0, 0.05)})
    temperature, alpha, picture = widget.children
    assert (temperature.min, temperature.max, alpha.description) == (1.0, 20.0, WORDS["alpha"])
    first = bytes(picture.value)
    assert first == widgets._png(draw(T=2.0, alpha=0.5))
    temperature.value = 4.0
    assert bytes(picture.value) != first
    alpha.value = 0.9
    assert asked[0] == (2.0, 0.5) and asked[-2:] == [(4.0, 0.5), (4.0, 0.9)]
    temperature.value, alpha.value = 2.0, 0.5
    assert bytes(picture.value) == first
