"""Which of the assistant's words are copied, and how well they are predicted.

Names, prices and references differ in every town: they cannot be known, only copied from what a
tool or the visitor has said. A model learns that all at once, and its likelihood shows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import encode, encode_rows
from distillkit.evaluation import scored_batches

Message = dict[str, Any]

_EDGES = ".,;:!?"
_NAME_OR_NUMBER = re.compile(r"[A-Z0-9]")


def copied_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[bool | None]:
    """For each token of `chat.encode`: is it part of a name or a number that was said before?

    True inside words with a capital letter or a digit that stand in an earlier message of the
    visitor or a tool; None where the assistant does not speak. Words are what stands between
    blanks, without the punctuation around them.
    """
    encoded = encode(tokenizer, list(messages))
    ids, labels = encoded["input_ids"], encoded["labels"]
    heard = iter(_heard(messages))
    result: list[bool | None] = [None] * len(ids)
    end = 0
    for place, label in enumerate(labels):
        if label == -100 or place < end:
            continue
        end = place + 1
        while end < len(ids) and labels[end] != -100:
            end += 1
        result[place:end] = _copied(tokenizer, ids[place:end], next(heard))
    return result


def nll_by_origin(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """The model's NLL in nats per token, of the assistant's "copied" tokens and of its "own"."""
    marks = [copied_tokens(tokenizer, row["messages"]) for row in rows]
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for batch in scored_batches(model, encode_rows(tokenizer, list(rows))):
        losses = torch.nn.functional.cross_entropy(batch.logits, batch.labels, reduction="none")
        places = zip(batch.rows.tolist(), batch.columns.tolist(), losses.tolist(), strict=True)
        for row, column, loss in places:
            copied = bool(marks[row][column])
            sums[copied] += loss
            counts[copied] += 1
    names = {True: "copied", False: "own"}
    return {names[kind]: sums[kind] / counts[kind] for kind in sums if counts[kind]}


def _heard(messages: Sequence[Message]) -> list[frozenset[str]]:
    """For each message of the assistant, the names and numbers that others have said before it."""
    said: set[str] = set()
    found = []
    for message in messages:
        if message["role"] == "assistant":
            found.append(frozenset(said))
        else:
            words = (word.strip(_EDGES) for word in message["content"].split())
            said |= {word for word in words if _NAME_OR_NUMBER.search(word)}
    return found


def _copied(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], words: frozenset[str]
) -> list[bool]:
    special = set(tokenizer.all_special_ids)  # the end of a turn is no part of its last word
    texts = [" " if token in special else str(tokenizer.decode([token])) for token in ids]
    result = [False] * len(ids)
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or texts[stop][:1].isspace():
            word = "".join(texts[start:stop]).strip()
            if word.strip(_EDGES) in words:
                result[start:stop] = [
                    bool(text.strip().strip(_EDGES)) for text in texts[start:stop]
                ]
            start = stop
    return result
