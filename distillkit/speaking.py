"""A model in conversation: its reply piece by piece as it comes, and the time it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import encode_prompt, read_reply
from distillkit.decoding import (
    end_of_turn_ids,
    evaluating,
    new_cache,
    next_logits,
    position_limit,
    sayable_ids,
)
from distillkit.dialogues import Visit
from distillkit.errors import UserError

__all__ = ["Speaker", "Spoken", "Tool", "Turn", "serve_visitor", "take_turn"]

Message = dict[str, Any]
Hear = Callable[[str, str], object]  # the role that speaks, and the next piece of what it says
Tool = Callable[[dict[str, Any]], str]  # {"name": …, "arguments": {…}} -> what the tool returns

MOST_CALLS = 5  # in one turn


@dataclass(frozen=True)
class Spoken:
    """One message of the model: how many tokens it wrote, and the seconds it took."""

    message: Message
    tokens: int
    first: float  # until the first token, so the time of reading what is new
    seconds: float  # until the last one


@dataclass(frozen=True)
class Turn:
    """All that happened between two messages of the visitor; tools' own time is not counted."""

    messages: list[Message] = field(default_factory=list)
    tokens: int = 0
    first: float = 0.0  # seconds until the model wrote something
    seconds: float = 0.0
    open_call: bool = False  # it ended with a call that nobody runs


class Speaker:
    """A model that answers greedily, and keeps in its cache what it has read so far.

    A speaker belongs to one conversation. When the messages do not go on from those of the last
    call, it reads them anew.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._ends = end_of_turn_ids(model, tokenizer)
        self._sayable = sayable_ids(tokenizer)
        self._forget()

    def reply(
        self,
        messages: list[Message],
        hear: Callable[[str], object] = lambda text: None,
        *,
        max_tokens: int = 256,
    ) -> Spoken:
        """The model's next message. `hear` is called with each piece of its text.

        Raises UserError when the conversation has filled the model's positions.
        """
        begin = time.perf_counter()
        prompt, limit = encode_prompt(self.tokenizer, messages), position_limit(self.model)
        room = max_tokens if limit is None else min(max_tokens, limit - len(prompt))
        if room < 1:
            raise UserError(
                f"the conversation has filled the model's {limit:,} positions: start anew"
            )
        written, told, first = [], "", 0.0
        for token in self._tokens(prompt, room):
            first = first or time.perf_counter() - begin
            written.append(token)
            spoken = written[:-1] if token in self._ends else written
            text = str(self.tokenizer.decode(spoken))
            if not text.endswith("\ufffd"):  # else half a character: wait for its other half
                hear(text[len(told) :])
                told = text
        message = read_reply(self.tokenizer, written)
        return Spoken(message, len(written), first, time.perf_counter() - begin)

    def _tokens(self, prompt: list[int], room: int) -> Iterator[int]:
        if prompt[: len(self._read)] != self._read or len(prompt) == len(self._read):
            self._forget()
        new = prompt[len(self._read) :]
        for _ in range(room):
            token = self._next(new)
            yield token
            if token in self._ends:
                return
            new = [token]

    @torch.inference_mode()
    def _next(self, new: list[int]) -> int:
        ids = torch.tensor([new], device=self.model.device)
        with evaluating(self.model):
            logits = next_logits(self.model, ids, self._cache)
        self._read += new
        return int(logits[:, : self._sayable].argmax())

    def _forget(self) -> None:
        self._read: list[int] = []
        self._cache = new_cache(self.model)


def take_turn(
    speaker: Speaker,
    messages: list[Message],
    tool: Tool | None = None,
    hear: Hear = lambda role, text: None,
) -> Turn:
    """Let the model answer `messages`, which grow by its message, its calls and their results.

    Calls go to `tool`, at most five in a turn; without a tool the turn ends with the call.
    """
    start, said = len(messages), []
    for _ in range(MOST_CALLS):
        said.append(speaker.reply(messages, lambda text: hear("assistant", text)))
        messages.append(said[-1].message)
        calls = messages[-1].get("tool_calls")
        if not calls or tool is None:
            break
        for call in calls:
            messages.append({"role": "tool", "content": tool(call["function"])})
            hear("tool", messages[-1]["content"])
    return Turn(
        messages=messages[start:],
        tokens=sum(spoken.tokens for spoken in said),
        first=said[0].first,
        seconds=sum(spoken.seconds for spoken in said),
        open_call=messages[-1]["role"] == "tool" or bool(messages[-1].get("tool_calls")),
    )


def serve_visitor(
    speaker: Speaker, visit: Visit, hear: Hear = lambda role, text: None
) -> list[Spoken]:
    """Let the model serve a simulated visitor to the end; `visit` then says how it went."""
    said: list[Spoken] = []
    shown = 0
    while not visit.done:
        for message in visit.messages[shown:]:
            hear(message["role"], message["content"])
        shown = len(visit.messages) + 1  # the reply is heard while it is made
        said.append(speaker.reply(visit.messages, lambda text: hear("assistant", text)))
        visit.reply(said[-1].message)
    return said
