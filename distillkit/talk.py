"""Chat with a model in the terminal, or watch it serve a visitor: `distillkit chat`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from distillkit.chat import CHAT_TEMPLATE, encode_prompt, read_reply
from distillkit.decoding import end_of_turn_ids, position_limit
from distillkit.dialogues import Visit
from distillkit.dialogues.world import draw_world
from distillkit.errors import UserError
from distillkit.models import load_model

Message = dict[str, Any]
Tool = Callable[[dict[str, Any]], str]  # {"name": …, "arguments": {…}} -> what the tool returns

HELLO = "You are talking to {name}. An empty line ends the conversation."
YOU, MODEL, TOOL = "you     ", "model   ", "tool    "
NO_TOOL = "(nothing runs the model's tools here; say what the tool would answer, or go on)"
SERVED, NOT_SERVED = "The visitor got all that was asked for.", "The visitor was not served: {why}."
MOST_CALLS = 5  # in one turn


class _Voice(TextStreamer):
    """Prints the reply while it is made, without its end token."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text.replace(self.tokenizer.eos_token or "\0", "")
        print(text, end="\n" if stream_end else "", flush=True)


@torch.inference_mode()
def reply(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: list[Message]
) -> Message:
    """The model's next message, decoded greedily and printed as it comes."""
    prompt, limit = torch.tensor([encode_prompt(tokenizer, messages)]), position_limit(model)
    room = 256 if limit is None else min(256, limit - prompt.shape[1])
    if room < 1:
        raise UserError(f"the conversation has filled the model's {limit:,} positions: start anew")
    print(MODEL, end="", flush=True)
    ids = model.generate(  # type: ignore[operator]
        prompt.to(model.device),
        attention_mask=torch.ones_like(prompt).to(model.device),
        max_new_tokens=room,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(end_of_turn_ids(model, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        streamer=_Voice(tokenizer, skip_prompt=True),
    )
    return read_reply(tokenizer, ids[0, prompt.shape[1] :].tolist())


def talk(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tool: Tool | None = None
) -> list[Message]:
    """You speak, the model answers; its calls go to `tool`, if there is one. The messages."""
    messages: list[Message] = []
    while said := _hear():
        messages.append({"role": "user", "content": said})
        for _ in range(MOST_CALLS):
            messages.append(reply(model, tokenizer, messages))
            calls = messages[-1].get("tool_calls")
            if not calls or tool is None:
                print(NO_TOOL) if calls else None
                break
            for call in calls:
                messages.append({"role": "tool", "content": tool(call["function"])})
                print(TOOL + messages[-1]["content"])
    return messages


def watch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, visit: Visit) -> bool:
    """Print how the model serves a simulated visitor; whether the visitor was served."""
    shown = 0
    while not visit.done:
        for message in visit.messages[shown:]:
            if message["role"] != "assistant":
                print((TOOL if message["role"] == "tool" else YOU) + message["content"])
        shown = len(visit.messages)
        visit.reply(reply(model, tokenizer, visit.messages))
    print(SERVED if visit.success else NOT_SERVED.format(why=visit.failure))
    return visit.success


def _hear() -> str:
    try:
        said = input(YOU).strip()
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
