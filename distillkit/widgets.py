"""What a notebook shows beside figures: a chat, the token microscope, and figures with sliders.

Each widget has a static twin for GitHub, paper and tests: `transcript` for `chat`, for `microscope`
the figures of `plots`, and for `sliders` the function that draws. The widgets work with ipywidgets
7 and 8; only they need it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.dialogues import Visit
from distillkit.errors import UserError
from distillkit.microscope import Examined
from distillkit.plots import ROLES, token_bars
from distillkit.speaking import Message, Speaker, Spoken, Tool, Turn, serve_visitor, take_turn
from distillkit.words import WORDS

__all__ = ["chat", "microscope", "sliders", "transcript", "transcript_of_visit"]

MILLISECONDS = 1000


class Html(str):
    """Text that a notebook shows as HTML."""

    def _repr_html_(self) -> str:
        return str(self)


# A conversation ---------------------------------------------------------------------------------


@dataclass
class _Line:
    role: str
    text: str


@dataclass
class _Column:
    """What has been said in one conversation, and how long its model took."""

    title: str
    lines: list[_Line] = field(default_factory=list)
    note: str = ""

    def hear(self, role: str, text: str) -> None:
        """Go on with the last line, or begin one where somebody else speaks."""
        if not self.lines or self.lines[-1].role != role:
            self.lines.append(_Line(role, ""))
        self.lines[-1].text += text

    def html(self) -> str:
        """As HTML without a style sheet, so that GitHub shows it, too."""
        lines = [
            f"<b>{WORDS[line.role]}</b> {escape(line.text.strip())}<br>" for line in self.lines
        ]
        return "\n".join([*lines, f"<i>{escape(self.note)}</i>"])


def transcript_of_visit(
    models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, visitor: int
) -> Html:
    """How each model serves the same simulated visitor, side by side: role -> model.

    The visitor answers what the model says, so the conversations may part. Under each stands how it
    ended, and the time of a message as measured now.
    """
    columns = []
    for role, model in _named(models).items():
        visit, column = Visit(visitor, split="development"), _Column(role)
        said = serve_visitor(Speaker(model, tokenizer), visit, column.hear)
        why = (
            WORDS["visit_served"]
            if visit.success
            else WORDS["not_served"].format(why=visit.failure)
        )
        column.note = f"{why} {_pace(said)}"
        columns.append(column)
    return _side_by_side(columns)


def transcript(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    tool: Tool | None = None,
) -> Html:
    """What each model answers to your lines, side by side, as in `chat`: role -> model."""
    talks = [_Talk(title, model, tokenizer, tool) for title, model in _named(models).items()]
    for talk in talks:
        for line in lines:
            talk.hear(line)
            talk.answer(lambda: None)
    return _side_by_side([talk.column for talk in talks])


def _side_by_side(columns: Sequence[_Column]) -> Html:
    # GitHub drops styles, and Jupyter's own style overrules attributes: so both.
    left = 'valign="top" align="left" style="text-align: left; vertical-align: top"'
    heads = "".join(f"<th {left}>{escape(column.title)}</th>" for column in columns)
    cells = "".join(f"<td {left}>{column.html()}</td>" for column in columns)
    return Html(f"<table><tr>{heads}</tr><tr>{cells}</tr></table>")


def _pace(said: list[Spoken]) -> str:
    middle = median(spoken.seconds for spoken in said) * MILLISECONDS
    return WORDS["messages"].format(count=len(said), median=middle)


def _named(models: Mapping[str, PreTrainedModel]) -> dict[str, PreTrainedModel]:
    if not models:
        raise UserError("found no model to talk to: expected at least one role")
    return {ROLES[role].name if role in ROLES else role: model for role, model in models.items()}


def chat(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tool: Tool | None = None,
) -> Any:
    """A widget in which you say something, and every model answers, one column each.

    models: role -> model. tool: runs their calls, such as `draw_world("development", 0).call` for
    the front desk. Words appear while they are made; under each column stands the time it took.
    """
    import ipywidgets as widgets

    talks = [_Talk(title, model, tokenizer, tool) for title, model in _named(models).items()]
    boxes = [widgets.HTML(layout=widgets.Layout(width="48%", padding="0 1% 0 0")) for _ in talks]
    line = widgets.Text(
        description=WORDS["say"], placeholder=WORDS["placeholder"], continuous_update=False
    )
    anew = widgets.Button(description=WORDS["anew"])

    def show() -> None:
        for box, talk in zip(boxes, talks, strict=True):
            box.value = f"<h4>{escape(talk.column.title)}</h4>{talk.column.html()}"

    def say(change: Mapping[str, Any]) -> None:
        text = change["new"].strip()
        if text:
            line.value = ""
            for talk in talks:
                talk.hear(text)
            for talk in talks:
                talk.answer(show)

    def forget(_: Any) -> None:
        for talk in talks:
            talk.begin()
        show()

    line.observe(say, names="value")
    anew.on_click(forget)
    show()
    return widgets.VBox([widgets.HBox(boxes), widgets.HBox([line, anew])])


class _Talk:
    """One column of the chat: a model, what was said to it, and what it answered."""

    def __init__(
        self,
        title: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tool: Tool | None,
    ) -> None:
        self.speaker, self.tool, self.title = Speaker(model, tokenizer), tool, title
        self.begin()

    def begin(self) -> None:
        self.messages: list[Message] = []
        self.column = _Column(self.title)

    def hear(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        self.column.hear("user", text)

    def answer(self, show: Callable[[], None]) -> None:
        def hear(role: str, text: str) -> None:
            self.column.hear(role, text)
            show()

        try:
            turn = take_turn(self.speaker, self.messages, self.tool, hear)
            self.column.note = _latency(turn)
        except UserError as problem:  # the conversation has grown too long, say
            self.column.note = f"{problem}"
        show()


def _latency(turn: Turn) -> str:
    note = WORDS["latency"].format(
        tokens=turn.tokens, first=turn.first * MILLISECONDS, all=turn.seconds * MILLISECONDS
    )
    return f"{note} {WORDS['open_call']}" if turn.open_call else note


# The microscope ---------------------------------------------------------------------------------


def microscope(examined: Examined, *, at: int = 0, top: int = 8) -> Any:
    """A widget that shows the distributions of a picked token, with their KL to the first one.

    at: the number of the assistant's token to begin with. The same picture without a widget is
    `plots.token_bars(examined.distributions(at), kl=…)`.
    """
    import ipywidgets as widgets

    turns = examined.turns()
    if not turns:
        raise UserError("the assistant says nothing in this conversation: nothing to look at")
    turn_of = {number: turn for turn, numbers in enumerate(turns) for number in numbers}
    texts = ["".join(examined.said(number) for number in numbers).strip() for numbers in turns]
    turn = widgets.Dropdown(
        options=[(f"{place + 1}. {text[:60]}", place) for place, text in enumerate(texts)],
        value=turn_of[at],
        description=WORDS["turn"],
        layout=widgets.Layout(width="34em"),
    )
    token = widgets.IntSlider(
        value=turns[turn_of[at]].index(at),
        min=0,
        max=len(turns[turn_of[at]]) - 1,
        description=WORDS["token"],
    )
    context, picture = widgets.HTML(), widgets.Image(format="png")

    def show(_: Any = None) -> None:
        number = turns[turn.value][token.value]
        so_far = WORDS["so_far"].format(text=examined.before(number))
        context.value = f"<code>{escape(so_far)}</code>"
        picture.value = _token_png(examined, number, top)

    def choose(_: Any) -> None:
        if token.value:
            token.value = 0  # which shows it
        else:
            show()
        token.max = len(turns[turn.value]) - 1

    turn.observe(choose, names="value")
    token.observe(show, names="value")
    show()
    return widgets.VBox([turn, token, context, picture])


def _token_png(examined: Examined, number: int, top: int) -> bytes:
    figure = token_bars(
        examined.distributions(number, top),
        title=repr(examined.said(number).strip()),
        said=examined.said(number),
        top=top,
        kl=examined.kls(number),
    )
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# A figure with sliders --------------------------------------------------------------------------


def sliders(
    draw: Callable[..., Figure], ranges: Mapping[str, tuple[float, float, float, float]]
) -> Any:
    """A widget with a slider for each number of a figure: `draw` by itself is its static twin.

    draw: takes the numbers by name, and returns a figure of `plots`. ranges: name -> (first value,
    least, greatest, step). The figure is drawn anew when a slider is let go.
    """
    import ipywidgets as widgets

    knobs = {
        name: widgets.FloatSlider(
            value=first,
            min=least,
            max=greatest,
            step=step,
            description=WORDS.get(name, name),
            continuous_update=False,
        )
        for name, (first, least, greatest, step) in ranges.items()
    }
    picture = widgets.Image(format="png")

    def show(_: Any = None) -> None:
        picture.value = _png(draw(**{name: knob.value for name, knob in knobs.items()}))

    for knob in knobs.values():
        knob.observe(show, names="value")
    show()
    return widgets.VBox([*knobs.values(), picture])
