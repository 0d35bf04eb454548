"""On-policy distillation: the student speaks, and the teacher scores what it said.

A rollout takes the batch of a step and gives rows of `input_ids` and `labels` back, whose labels
are the student's own words. There are two:

- `OneTurn` answers one assistant turn of each conversation, with the true history before it, as GKD
  does with its prompts. The turn is chosen by seed. All turns of a conversation would be read by
  the teacher once each, a history grows with every turn, and one conversation would cost as much as
  a batch; the student's own words put into the true conversation would make histories in which the
  visitor answers what nobody asked.
- `WholeVisits` lets the student serve simulated visitors from the first word to the last. So the
  history, too, is its own: what goes wrong early is met again later.

Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models" (GKD); that the teacher
should be asked where the student goes: Ross et al. 2011, "A Reduction of Imitation Learning and
Structured Prediction to No-Regret Online Learning" (DAgger).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from random import Random
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import IGNORE_INDEX, read_reply
from distillkit.decoding import (
    Conversation,
    decode,
    end_of_turn_ids,
    generate_replies,
    position_limit,
    sayable_ids,
)
from distillkit.dialogues import Visit
from distillkit.errors import UserError
from distillkit.evaluation import prompt_reader
from distillkit.sampling import Sampling

Row = dict[str, list[int]]
Rollout = Callable[[PreTrainedModel, Mapping[str, Any], int], list[Row]]
"""(student, batch, number of the step) -> rows whose labels are the student's words."""


def is_on_policy(lmbda: float, seed: int, step: int) -> bool:
    """Whether this step learns from the student's own words: the same in every process.

    >>> sum(is_on_policy(0.25, 0, step) for step in range(1000))
    232
    """
    return Random(f"{seed}/on-policy/{step}").random() < lmbda


@dataclass(frozen=True)
class OneTurn:
    """One assistant turn of each conversation, continued from the true history.

    Which turn, and the random numbers of the reply, depend on the seed, the step and the prompt
    alone: not on the reference answer, on the other conversations of a batch, or on the process.
    """

    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    max_reply_tokens: int = 64

    def __call__(self, student: PreTrainedModel, batch: Mapping[str, Any], step: int) -> list[Row]:
        limit = position_limit(student)
        room = None if limit is None else limit - self.max_reply_tokens
        seed = f"{self.sampling.seed}/{step}"
        prompts = [_prompt(ids, labels, room, seed) for ids, labels in _conversations(batch)]
        asked = [prompt for prompt in prompts if prompt]
        replies = iter(
            generate_replies(
                student,
                self.tokenizer,
                asked,
                max_reply_tokens=self.max_reply_tokens,
                sampling=self.sampling,
                keys=[f"{step}/{_name(prompt)}" for prompt in asked],
            )
        )
        return [_row(prompt, next(replies)) if prompt else _row([0, 0], []) for prompt in prompts]


@dataclass(frozen=True)
class WholeVisits:
    """As many simulated visitors as the batch has conversations, served by the student to the end.

    They are drawn from `visitors`, names for `Visit(name, split)`, by the seed, the step and the
    batch's conversations. A visit ends where it fails; what the student has said until then is what
    it learns from. UserError where there are no visitors.
    """

    tokenizer: PreTrainedTokenizerBase
    visitors: Sequence[int | str]
    sampling: Sampling
    max_reply_tokens: int = 64
    split: str = "train"

    def __call__(self, student: PreTrainedModel, batch: Mapping[str, Any], step: int) -> list[Row]:
        if not self.visitors:
            raise UserError("there are no visitors to serve: give at least one name")
        keys = [
            f"{step}/{_name(ids)}"
            for ids, labels in _conversations(batch)
            if any(label != IGNORE_INDEX for label in labels)
        ]
        drawn = [
            Random(f"{self.sampling.seed}/visitor/{key}").choice(self.visitors) for key in keys
        ]
        return self.serve(student, drawn, keys) or [_row([0, 0], [])]

    def serve(
        self, student: PreTrainedModel, visitors: Sequence[int | str], keys: Sequence[Hashable]
    ) -> list[Row]:
        """What the student says to these visitors; `keys` name the random numbers."""
        return [row for rows in self.serve_each(student, visitors, keys) for row in rows]

    def serve_each(
        self, student: PreTrainedModel, visitors: Sequence[int | str], keys: Sequence[Hashable]
    ) -> list[list[Row]]:
        """The rows of `serve`, those of each visitor in a list of their own."""
        heard: list[list[Row]] = [[] for _ in visitors]
        decode(
            student,
            (
                self._converse(student, Visit(visitor, self.split), rows)
                for visitor, rows in zip(visitors, heard, strict=True)
            ),
            end_ids=end_of_turn_ids(student, self.tokenizer),
            max_reply_tokens=self.max_reply_tokens,
            sampling=self.sampling,
            keys=keys,
            vocabulary=sayable_ids(self.tokenizer),
        )
        return heard

    def _converse(self, student: PreTrainedModel, visit: Visit, rows: list[Row]) -> Conversation:
        """Serve one visit. A row goes on as long as each prompt begins with what it holds."""
        limit, read = position_limit(student), prompt_reader(self.tokenizer, {})
        while not visit.done:
            prompt = read(visit.messages)
            if limit is not None and len(prompt) + self.max_reply_tokens > limit:
                break
            reply = yield prompt
            if rows and rows[-1]["input_ids"] == prompt[: len(rows[-1]["input_ids"])]:
                _extend(rows[-1], prompt, reply)
            else:
                rows.append(_row(prompt, reply))
            visit.reply(read_reply(self.tokenizer, reply))


def _row(prompt: list[int], reply: list[int]) -> Row:
    return {
        "input_ids": [*prompt, *reply],
        "labels": [*([IGNORE_INDEX] * len(prompt)), *reply],
    }


def _extend(row: Row, prompt: list[int], reply: list[int]) -> None:
    row["labels"] += [IGNORE_INDEX] * (len(prompt) - len(row["labels"])) + reply
    row["input_ids"][:] = [*prompt, *reply]


def _conversations(batch: Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each conversation of a batch, without its padding."""
    ids, labels, mask = batch["input_ids"], batch["labels"], batch.get("attention_mask")
    kept = (ids == ids) if mask is None else mask.bool()
    return [
        (row[keep].tolist(), label[keep].tolist())
        for row, label, keep in zip(ids, labels, kept, strict=True)
    ]


def _prompt(ids: list[int], labels: list[int], room: int | None, seed: str) -> list[int]:
    """What stands before one assistant turn; nothing where there is none that fits."""
    spoken = [label != IGNORE_INDEX for label in labels]
    starts = [place + 1 for place, (before, now) in enumerate(pairwise(spoken)) if now > before]
    starts = [start for start in starts if room is None or start <= room]
    if not starts:
        return []
    return ids[: Random(f"{seed}/{_name(ids[: starts[0]])}").choice(starts)]


def _name(ids: list[int]) -> str:
    return sha256(repr(ids).encode()).hexdigest()[:16]
