"""Chat with a model in the terminal, or watch it serve a visitor: `distillkit chat`."""

from __future__ import annotations

import argparse

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import CHAT_TEMPLATE
from distillkit.dialogues import Visit
from distillkit.dialogues.world import draw_world
from distillkit.models import load_model
from distillkit.speaking import Message, Speaker, Tool, serve_visitor, take_turn

HELLO = "You are talking to {name}. An empty line ends the conversation."
LABELS = {"user": "you     ", "assistant": "model   ", "tool": "tool    "}
NO_TOOL = "(nothing runs the model's tools here; say what the tool would answer, or go on)"
SERVED, NOT_SERVED = "The visitor got all that was asked for.", "The visitor was not served: {why}."


class _Voice:
    """Prints who speaks and what they say, while it is said."""

    def __init__(self) -> None:
        self._role: str | None = None

    def hear(self, role: str, text: str) -> None:
        if role != self._role:
            self.stop()
            print(LABELS[role], end="")
            self._role = role
        print(text, end="", flush=True)

    def stop(self) -> None:
        if self._role is not None:
            print()
        self._role = None


def talk(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tool: Tool | None = None
) -> list[Message]:
    """You speak, the model answers; its calls go to `tool`, if there is one. The messages."""
    messages: list[Message] = []
    speaker, voice = Speaker(model, tokenizer), _Voice()
    while said := _hear():
        messages.append({"role": "user", "content": said})
        turn = take_turn(speaker, messages, tool, voice.hear)
        voice.stop()
        if turn.open_call and tool is None:
            print(NO_TOOL)
    return messages


def watch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, visit: Visit) -> bool:
    """Print how the model serves a simulated visitor; whether the visitor was served."""
    voice = _Voice()
    serve_visitor(Speaker(model, tokenizer), visit, voice.hear)
    voice.stop()
    print(SERVED if visit.success else NOT_SERVED.format(why=visit.failure))
    return visit.success


def _hear() -> str:
    try:
        said = input(LABELS["user"]).strip()
        return said.encode("utf-8", "replace").decode("utf-8")  # a terminal may send other bytes
    except EOFError:
        return ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `distillkit chat`."""
    parser.add_argument(
        "--model",
        default="front-desk-teacher",
        help="a shipped model, a folder, or a hub name (default: %(default)s)",
    )
    parser.add_argument(
        "--visitor",
        type=int,
        metavar="SEED",
        help="watch it serve a simulated visitor of the front desk instead, drawn by this seed",
    )


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    model, tokenizer = load_model(args.model)
    if args.visitor is not None:
        watch(model, tokenizer, Visit(args.visitor, split="development"))
        return 0
    print(HELLO.format(name=args.model))
    town = draw_world("development", 0)
    talk(model, tokenizer, town.call if tokenizer.chat_template == CHAT_TEMPLATE else None)
    return 0
