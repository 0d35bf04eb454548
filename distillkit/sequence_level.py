"""Sequence-level distillation: the teacher writes text once, and students learn it as labels.

`write_replies` lets the teacher answer every assistant turn of given conversations; `write_visits`
lets it serve simulated visitors from the first word to the last; `read_written` reads what a
teacher wrote that answers nothing but text, such as a model behind an interface. All three give
rows of `messages`, and count what they left out: replies without an end or without a word, doubles.

The text lies in a file of JSON lines, with a manifest beside it of all that it depends on: weights,
prompts, settings. It grows in whole batches. A writer that was killed has lost the batch it was at,
and when it is called again it goes on and ends with the same bytes.

Source: Kim and Rush 2016, "Sequence-Level Knowledge Distillation".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import encode_prompt, read_reply
from distillkit.decoding import end_of_turn_ids, generate_replies, position_limit
from distillkit.dialogues import Visit
from distillkit.dialogues.rows import check_row
from distillkit.errors import UserError
from distillkit.evaluation import serve
from distillkit.sampling import Sampling

# How servers say that a reply has ended by itself, or was cut where no more tokens were allowed:
# OpenAI's interface and vLLM, TGI, Anthropic's, Gemini's, Cohere's and Mistral's, in small letters.
_SAYS_WHY = ("finish_reason", "stop_reason")
_WHOLE = {"stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"}
_WHOLE |= {"tool_calls", "function_call", "tool_use", "tool_call"}
_TOO_LONG = {"length", "max_tokens", "model_length", "max_output_tokens"}

Row = dict[str, Any]
Found = Iterable[Row | str]  # rows, and in place of one left out the reason


@dataclass(frozen=True)
class Written:
    """What a teacher wrote: rows of `messages`, and how many were left out for each reason."""

    rows: list[Row]
    left_out: dict[str, int] = field(default_factory=dict)


def write_replies(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Mapping[str, Any]],
    file: str | os.PathLike[str],
    *,
    samples: int = 1,
    sampling: Sampling | None = None,
    max_reply_tokens: int = 64,
    batch_size: int = 64,
    progress: bool = False,
) -> Written:
    """The teacher's replies at every assistant turn of `conversations`, `samples` of them each.

    A row holds the messages before the turn, and the teacher's reply. The assistant's words in the
    history are not the teacher's: they have `"weight": 0`, so that `encode_rows` gives them no
    labels. Without `sampling` the replies are greedy.

    Raises UserError when `file` holds text of another teacher, of other prompts or settings, or was
    changed by another hand; and for a conversation without messages that have roles.
    """
    if samples < 1 or (samples > 1 and sampling is None):
        raise UserError(
            f"samples is {samples}: give at least 1, and more than 1 with sampling=Sampling(…) "
            "alone, as greedy replies are all the same"
        )
    prompts = [
        _as_history(messages[:place])
        for messages in map(_messages, count(), conversations)
        for place, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    tasks = [(number, sample) for number in range(len(prompts)) for sample in range(samples)]
    ends = end_of_turn_ids(teacher, tokenizer)

    room = (position_limit(teacher) or math.inf) - max_reply_tokens

    def write(part: list[tuple[int, int]]) -> Iterator[Row | str]:
        asked = {task: encode_prompt(tokenizer, prompts[task[0]]) for task in part}
        fitting = [task for task in part if len(asked[task]) <= room]
        yield from ["prompt too long for the teacher"] * (len(part) - len(fitting))
        replies = generate_replies(
            teacher,
            tokenizer,
            [asked[task] for task in fitting],
            max_reply_tokens=max_reply_tokens,
            batch_size=batch_size,
            sampling=sampling,
            keys=fitting,
        )
        for (number, _), reply in zip(fitting, replies, strict=True):
            message = read_reply(tokenizer, reply)
            if reply[-1] not in ends:
                yield "came to no end"
            elif not message["content"] and not message.get("tool_calls"):
                yield "empty replies"
            else:
                yield {"messages": [*prompts[number], message]}

    settings = {"samples": samples, "sampling": sampling, "max_reply_tokens": max_reply_tokens}
    manifest = _manifest(teacher, tokenizer, prompts, batch_size=batch_size, **settings)
    return _Book(Path(file), manifest).fill(tasks, batch_size, write, progress)


def write_visits(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    visitors: Sequence[int | str],
    file: str | os.PathLike[str],
    *,
    split: str = "train",
    sampling: Sampling | None = None,
    max_reply_tokens: int = 64,
    batch_size: int = 250,
    progress: bool = False,
) -> Written:
    """The visits of these simulated visitors (`Visit(visitor, split)`), served by the teacher.

    A row is a whole visit, and each of its assistant turns is the teacher's. A visit that failed is
    left out: the visitor breaks it off, so it teaches nothing about how a visit ends.
    """

    def write(part: list[int | str]) -> Iterator[Row | str]:
        visits = [Visit(visitor, split) for visitor in part]
        serve(
            teacher,
            tokenizer,
            visits,
            batch_size=batch_size,
            max_reply_tokens=max_reply_tokens,
            sampling=sampling,
            keys=part,
        )
        for visit in visits:
            yield {"messages": visit.messages} if visit.success else "failed visits"

    settings = {"split": split, "sampling": sampling, "max_reply_tokens": max_reply_tokens}
    manifest = _manifest(teacher, tokenizer, visitors, batch_size=batch_size, **settings)
    return _Book(Path(file), manifest).fill(list(visitors), batch_size, write, progress)


def read_written(file: str | os.PathLike[str]) -> Written:
    """What a black-box teacher wrote: JSON lines of `messages`, or of `prompt` and `text`.

    `prompt` may be a text or a list of messages. A line that says in `finish_reason` (or, as some
    do, `stop_reason`) that its reply did not come to an end of its own, such as "length" or
    "content_filter", is left out like a double or a line that cannot be read.

    Raises UserError when the file cannot be opened, or nothing is left of it.
    """
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    try:
        lines = open(file, "rb")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise UserError(f"{file} cannot be opened: {error.strerror}") from error
    with lines:
        for found in map(_read_line, filter(bytes.strip, lines)):
            _note(found, rows, left_out, seen)
    if not rows:
        raise UserError(
            f"{file} holds no reply to learn from ({dict(left_out) or 'it is empty'}): expected "
            'lines like {"messages": […]} or {"prompt": "…", "text": "…"}'
        )
    return Written(rows, dict(left_out))


def _read_line(line: bytes) -> Row | str:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return "not JSON in UTF-8"
    if isinstance(value, dict) and (reason := _cut(value)):
        return reason
    if isinstance(value, dict) and "messages" not in value and "prompt" in value:
        prompt = value["prompt"]
        history = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        reply = {"role": "assistant", "content": value.get("text")}
        if not isinstance(history, list):
            return "the prompt is neither text nor messages"
        value = {"messages": [*_as_history(history), reply]}
    row, reason = check_row(value)
    return {"messages": row["messages"]} if row else reason


def _cut(line: Mapping[str, Any]) -> str | None:
    """Why a reply is not whole, by what its server says; None where it is, or nothing is said."""
    said = next((line[key] for key in _SAYS_WHY if line.get(key) is not None), "stop")
    name = str(said).casefold()
    if name in _WHOLE:
        return None
    return "came to no end" if name in _TOO_LONG else f"ended by {str(said)[:40]!r}"


def _messages(number: int, row: Any) -> Sequence[Mapping[str, Any]]:
    """The messages of a conversation that a teacher is to answer."""
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list | tuple) or not all(
        isinstance(message, Mapping) and "role" in message for message in messages
    ):
        raise UserError(
            f"conversation {number} is {row!r:.80}: expected "
            '{"messages": [{"role": …, "content": …}, …]}'
        )
    return messages


def _as_history(messages: Sequence[Any]) -> list[Any]:
    """Messages that are read and not learned."""
    return [
        {**message, "weight": 0}
        if isinstance(message, Mapping) and message.get("role") == "assistant"
        else message
        for message in messages
    ]


def _note(found: Row | str, rows: list[Row], left_out: Counter[str], seen: set[str]) -> None:
    if isinstance(found, str):
        left_out[found] += 1
        return
    name = _digest(found["messages"])
    if name in seen:
        left_out["doubles"] += 1
    else:
        seen.add(name)
        rows.append(found)


class _Book:
    """A file of JSON lines and its manifest, which says how much of the file is whole."""

    def __init__(self, file: Path, depends_on: dict[str, Any]) -> None:
        self.file, self.manifest = file, file.with_name(file.name + ".manifest.json")
        self.depends_on = depends_on
        self.state: dict[str, Any] = {"done": 0, "bytes": 0, "left_out": {}, "seconds": 0.0}
        self.content = sha256()  # of what the file holds

    def fill(
        self, tasks: list, batch_size: int, write: Callable[[list], Found], progress: bool
    ) -> Written:
        """Write what is missing, batch by batch; all rows, those that were there among them."""
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give at least 1")
        rows = self._open()
        seen, left_out = {_digest(row["messages"]) for row in rows}, Counter(self.state["left_out"])
        bar = tqdm(
            total=len(tasks), initial=self.state["done"], desc="written", disable=not progress
        )
        with bar, open(self.file, "ab") as lines:
            while (done := self.state["done"]) < len(tasks):
                part, new, began = tasks[done : done + batch_size], len(rows), time.perf_counter()
                for found in write(part):
                    _note(found, rows, left_out, seen)
                for row in rows[new:]:
                    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
                    self.content.update(line)
                    lines.write(line)
                lines.flush()
                os.fsync(lines.fileno())
                seconds = round(self.state["seconds"] + time.perf_counter() - began, 2)
                self.state = {"done": done + len(part), "bytes": lines.tell(), "seconds": seconds}
                self.state |= {"left_out": dict(left_out), "sha256": self.content.hexdigest()}
                self._keep()
                bar.update(len(part))
        return Written(rows, dict(left_out))

    def _open(self) -> list[Row]:
        """The rows that were written whole; what stands behind them is cut off."""
        if not self.manifest.exists():
            if self.file.exists():
                raise UserError(f"{self.file} is there without {self.manifest.name}: move it away")
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._keep()
            self.file.touch()
            return []
        kept = self._kept()
        for name, mine in self.depends_on.items():
            if kept["depends_on"].get(name) != mine and kept["state"]["done"]:
                raise UserError(
                    f"{self.file} was written with {name} {kept['depends_on'].get(name)}, now it "
                    f"is {mine}: give another file, or remove this one and its manifest"
                )
        self.state = kept["state"]
        self.file.touch()
        if self.file.stat().st_size < self.state["bytes"]:
            raise UserError(f"{self.file} is shorter than its manifest says: remove both")
        content = self.file.read_bytes()[: self.state["bytes"]]
        self.content.update(content)
        if self.state.get("sha256", self.content.hexdigest()) != self.content.hexdigest():
            raise UserError(
                f"{self.file} was changed since it was written: remove it and its manifest"
            )
        os.truncate(self.file, len(content))
        return [json.loads(line) for line in content.decode().split("\n")[:-1]]

    def _kept(self) -> dict[str, Any]:
        """The manifest that is there."""
        try:
            kept = json.loads(self.manifest.read_text(encoding="utf-8"))
            dict(kept["depends_on"]), kept["state"]["done"] + kept["state"]["bytes"] + 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.manifest} is damaged or not of this library: remove it and "
                f"{self.file.name}, or give another file"
            ) from error
        return kept

    def _keep(self) -> None:
        aside = self.manifest.with_suffix(".part")
        content = {"depends_on": self.depends_on, "state": self.state}
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, self.manifest)


def _manifest(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Any, **settings: Any
) -> dict[str, Any]:
    weights = sha256()
    for name, tensor in teacher.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    drawn = settings.pop("sampling")
    return {
        "teacher": weights.hexdigest()[:16],
        "tokenizer": _digest([tokenizer.get_vocab(), tokenizer.chat_template]),
        "prompts": _digest(list(prompts)),
        "sampling": None if drawn is None else asdict(drawn),
        **settings,
    }


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return sha256(text.encode()).hexdigest()[:16]
