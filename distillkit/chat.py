"""From messages to token ids and back: labels for every assistant turn, batches, replies."""

import json
import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from distillkit.assistant_turns import Messages, Span, Tokenizer, render, render_with_turns
from distillkit.errors import UserError
from distillkit.vocabulary import CALL, CHAT_TEMPLATE, check_same_tokenizer, train_tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "IGNORE_INDEX",
    "Collator",
    "check_same_tokenizer",
    "encode",
    "encode_prompt",
    "encode_rows",
    "read_reply",
    "render",
    "train_tokenizer",
]

log = logging.getLogger(__name__)

IGNORE_INDEX = -100

_HERMES_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_BATCH = 1_000

Features = dict[str, list[int]]
Encoded = tuple[Features, bool]  # and whether a prompt would end in other ids


# --- Messages to ids ----------------------------------------------------------------------------


def encode(tokenizer: Tokenizer, messages: Messages, *, max_length: int | None = None) -> Features:
    """Token ids of a conversation, and labels on every token that the assistant speaks.

    ``labels`` equal ``input_ids`` on each assistant turn, its end-of-turn token included, and are
    −100 elsewhere. They are *not* shifted: the loss shifts them, as Hugging Face models do. The
    tokens of the text are those of the whole conversation; a token that stands across the border
    of a turn counts as the assistant's. An assistant message with ``"weight": 0`` is read and not
    learned, as in OpenAI's format for fine-tuning.

    Raises:
        UserError: no chat template, a template that refuses the conversation, or one that rewrites
            a turn beyond recognition (the message is named).
    """
    features, _ = _encode_batch(tokenizer, [_learned(tokenizer, messages)])[0]
    return {name: ids[:max_length] for name, ids in features.items()}


def encode_rows(
    tokenizer: Tokenizer, rows: Iterable[Mapping[str, Any]], *, max_length: int | None = None
) -> list[Features]:
    """``encode`` for many conversations, in batches.

    Conversations longer than ``max_length`` keep their beginning; one that is left without any
    label is dropped. Both are counted in one warning to the log of this module.
    """
    features: list[Features] = []
    seen = shortened = ids_cut = differing = 0
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH)):
        rendered = [_render_row(tokenizer, row) for row in batch]
        for encoded, differs in _encode_batch(tokenizer, rendered):
            seen += 1
            differing += differs
            length = len(encoded["input_ids"])
            if max_length is not None and length > max_length:
                shortened, ids_cut = shortened + 1, ids_cut + length - max_length
                encoded = {name: ids[:max_length] for name, ids in encoded.items()}
            if any(label != IGNORE_INDEX for label in encoded["labels"][1:]):
                features.append(encoded)
    _report(seen, shortened, ids_cut, seen - len(features), differing, max_length)
    return features


def _render_row(tokenizer: Tokenizer, row: Mapping[str, Any]) -> tuple[str, list[Span]]:
    try:
        return _learned(tokenizer, row["messages"])
    except UserError as error:
        raise UserError(f"dialogue {row.get('id', '?')}: {error}") from error


def _learned(tokenizer: Tokenizer, messages: Messages) -> tuple[str, list[Span]]:
    """The text, and the spans of the assistant's messages whose weight is not 0."""
    text, spans = render_with_turns(tokenizer, messages)
    said = [message for message in messages if message["role"] == "assistant"]
    return text, [span for span, one in zip(spans, said, strict=True) if one.get("weight", 1)]


def _report(
    seen: int, shortened: int, ids_cut: int, dropped: int, differing: int, max_length: int | None
) -> None:
    if shortened or dropped:
        log.warning(
            "of %s dialogues, %s were cut to %s ids (%s ids left out) and %s were dropped, "
            "because no assistant token was left in them",
            *(f"{number:,}" for number in (seen, shortened, max_length or 0, ids_cut, dropped)),
        )
    if differing:
        log.warning(
            "in %s of %s dialogues a prompt, tokenized alone, ends in other ids than those trained "
            "on: let the template's generation prompt end in a special token, or without a blank",
            f"{differing:,}",
            f"{seen:,}",
        )
    if seen and dropped == seen:
        raise UserError(
            f"none of {seen:,} dialogues has an assistant token within max_length={max_length}: "
            "raise max_length, or look at the data"
        )


def encode_prompt(tokenizer: Tokenizer, messages: Messages) -> list[int]:
    """Token ids of a conversation up to the point where the assistant speaks next."""
    text = render(tokenizer, messages, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _encode_batch(tokenizer: Tokenizer, rendered: list[tuple[str, list[Span]]]) -> list[Encoded]:
    """(features, whether a prompt would end in other ids) of each rendered conversation."""
    texts = [text for text, _ in rendered]
    if not tokenizer.is_fast:
        return [_encode_by_pieces(tokenizer, text, spans) for text, spans in rendered]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    triples = zip(batch["input_ids"], batch["offset_mapping"], rendered, strict=True)
    prompts = _PromptEnds(tokenizer)
    return [_label(ids, offsets, turns, prompts) for ids, offsets, turns in triples]


def _label(
    ids: list[int],
    offsets: Sequence[Span],
    turns: tuple[str, list[Span]],
    prompts: "_PromptEnds",
) -> Encoded:
    text, spans = turns
    starts = [start for start, _ in offsets]
    ends = [end for _, end in offsets]
    labels = [IGNORE_INDEX] * len(ids)
    differs = False
    for start, end in spans:
        first, behind = bisect_right(ends, start), bisect_left(starts, end)
        labels[first:behind] = ids[first:behind]
        differs |= prompts.differ(text[:start], ids[:first], starts)
    return {"input_ids": ids, "labels": labels}, differs


class _PromptEnds:
    """Whether a prompt, tokenized alone, ends in the ids that the whole conversation has there.

    It is enough to look from the last added token on: no token reaches across one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = set(tokenizer.added_tokens_decoder)
        self._ids: dict[str, list[int]] = {}

    def differ(self, text: str, ids: list[int], starts: Sequence[int]) -> bool:
        since = len(ids) - 1
        while since > 0 and ids[since] not in self._added:
            since -= 1
        if since < 0:
            return False
        tail = text[starts[since] :]
        if tail not in self._ids:
            self._ids[tail] = self._tokenizer(tail, add_special_tokens=False)["input_ids"]
        return self._ids[tail] != ids[since:]


def _encode_by_pieces(tokenizer: Tokenizer, text: str, spans: Sequence[Span]) -> Encoded:
    """For tokenizers that know no offsets: a border is where the ids of the text before it end."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    labels = [IGNORE_INDEX] * len(ids)
    for span in spans:
        before = [tokenizer(text[:at], add_special_tokens=False)["input_ids"] for at in span]
        if any(ids[: len(part)] != part for part in before):
            raise UserError(
                "a token stands across the border of an assistant turn, and this tokenizer tells "
                "no offsets: use a fast tokenizer (tokenizer.json)"
            )
        first, behind = map(len, before)
        labels[first:behind] = ids[first:behind]
    return {"input_ids": ids, "labels": labels}, False


# --- Ids to a message ---------------------------------------------------------------------------


def read_reply(tokenizer: Tokenizer, ids: Iterable[int]) -> dict[str, Any]:
    """The assistant's message in the ids that a model generated after a prompt.

    The reply ends before the first special token other than ``<|call|>`` and ``<|unk|>``. It is a
    tool call if it can be read as one, in this module's form or as ``<tool_call>{…}</tool_call>``;
    else it is text, whatever the ids are.
    """
    pieces = [
        str(tokenizer.decode(piece, skip_special_tokens=True)).strip()
        for piece in _split_at_calls(tokenizer, ids)
    ]
    calls = [_read_call(piece) for piece in pieces[1:]]
    content = pieces[0]
    if not calls and "<tool_call>" in content:
        calls = [_read_hermes(found) for found in _HERMES_CALL.findall(content)]
        content = _HERMES_CALL.sub("", content).strip() if None not in calls else content
    elif None in calls:
        content = f" {CALL} ".join(pieces).strip()
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls and None not in calls:
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


def _split_at_calls(tokenizer: Tokenizer, ids: Iterable[int]) -> list[list[int]]:
    call = tokenizer.get_added_vocab().get(CALL)
    stops = set(tokenizer.all_special_ids) - {call, tokenizer.unk_token_id}
    pieces: list[list[int]] = [[]]
    for token in map(int, ids):
        if token in stops:
            break
        if token == call:
            pieces.append([])
        elif 0 <= token < len(tokenizer):  # a model's head may be wider than its tokenizer
            pieces[-1].append(token)
    return pieces


def _read_call(text: str) -> dict[str, Any] | None:
    name, _, rest = text.partition(" ")
    if not _NAME.fullmatch(name):
        return None
    if rest.startswith("{"):
        arguments = _read_json(rest)
        return None if arguments is None else {"name": name, "arguments": arguments}
    arguments = {}
    for pair in rest.split(", ") if rest else []:
        key, _, value = pair.partition(" ")
        if not key or not value.strip() or key in arguments or "," in pair or "\n" in pair:
            return None
        arguments[key] = value.strip()
    return {"name": name, "arguments": arguments}


def _read_hermes(text: str) -> dict[str, Any] | None:
    call = _read_json(text)
    if call is None or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments") or {}
    return {"name": call["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _read_json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- Batches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collator:
    """Pad features into a batch: input_ids, attention_mask, position_ids and labels, all (B, S).

    Positions are counted over the tokens that are there, so padding on the left moves no logits.
    UserError for a row without ids, or with another number of labels than ids.
    """

    tokenizer: Tokenizer
    padding_side: str = "right"
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.padding_side not in ("left", "right"):
            raise UserError(f"padding_side is {self.padding_side!r}, expected 'left' or 'right'")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        for feature in features:
            _check_row(feature)
        width = max(len(feature["input_ids"]) for feature in features)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        mask = self._pad([[1] * len(feature["input_ids"]) for feature in features], width, 0)
        batch = {
            "input_ids": self._pad([f["input_ids"] for f in features], width, self._pad_id()),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        }
        if all("labels" in feature for feature in features):
            batch["labels"] = self._pad([f["labels"] for f in features], width, IGNORE_INDEX)
        return batch

    def _pad_id(self) -> int:
        # Any id will do where the mask is 0: GPT-2 and Llama tokenizers have none for padding.
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        return 0

    def _pad(self, sequences: Iterable[Sequence[int]], width: int, value: int) -> torch.Tensor:
        padded = []
        for sequence in sequences:
            filling = [value] * (width - len(sequence))
            ids = list(sequence)
            padded.append(filling + ids if self.padding_side == "left" else ids + filling)
        return torch.tensor(padded, dtype=torch.long)


def _check_row(row: Mapping[str, Any]) -> None:
    if "input_ids" not in row or len(row["input_ids"]) == 0:  # they may be tensors
        raise UserError(
            f"a row has no input_ids (found {', '.join(row) or 'nothing'}): encode conversations "
            "with encode_rows, or give the trainer rows of messages and processing_class=tokenizer"
        )
    if len(row.get("labels", row["input_ids"])) != len(row["input_ids"]):
        raise UserError(
            f"a row has {len(row['input_ids'])} input_ids and {len(row['labels'])} labels: "
            f"expected one label for each token, {IGNORE_INDEX} where there is nothing to learn"
        )
