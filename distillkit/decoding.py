"""Decoding of many conversations at once, greedy or sampled, without a single padding token.

Step t feeds the t-th token of *every* conversation. Where that token is known already (a prompt,
the visitor's words, a tool's result) it is fed as it is; where it is not, it is the model's own
choice of the step before. So all rows always have the same length: the cache has no holes, no mask
and no position ids are needed, and each reply is what decoding that conversation alone would give.
A conversation that has ended leaves the batch, and its rows of the cache are given back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from distillkit.errors import UserError
from distillkit.sampling import Sampling

Conversation = Generator[list[int], list[int], None]
"""Yields the ids of each prompt and is sent the ids of the reply to it."""

_KEEP = 0.85  # the batch is compacted when less than this share of its rows is still alive


def decode(
    model: PreTrainedModel,
    conversations: Iterable[Conversation],
    *,
    end_ids: Iterable[int],
    max_reply_tokens: int = 64,
    batch_size: int = 250,
    sampling: Sampling | None = None,
    keys: Iterable[Hashable] | None = None,
    vocabulary: int | None = None,
) -> None:
    """Serve conversations with greedy replies, or sampled ones, until each has returned.

    A reply ends with one of `end_ids`, or is cut after `max_reply_tokens`. The next prompt may
    extend what the model has read (the usual case) or rewrite it (some templates do, and a reply
    can be spelt with other tokens than its text would be): then the conversation starts over from
    its first token, together with the next batch. With `sampling`, a conversation's random numbers
    are named by its entry in `keys`, by default its place in the order. Of a head that is wider
    than the tokenizer only the first `vocabulary` ids are said.

    Raises UserError when `batch_size` or `max_reply_tokens` is below 1.
    """
    for name, value in (("batch_size", batch_size), ("max_reply_tokens", max_reply_tokens)):
        if value < 1:
            raise UserError(f"{name} is {value}: give at least 1")
    ends = frozenset(end_ids)
    waiting = deque(
        _Row(conversation, ends, max_reply_tokens, sampling.stream(key) if sampling else None)
        for conversation, key in zip(conversations, count() if keys is None else keys, strict=False)
    )
    with evaluating(model), torch.inference_mode():
        while waiting:
            rows = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            _stream(model, [row for row in rows if not row.done], sampling, vocabulary)
            waiting.extend(row for row in rows if not row.done)


def generate_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_reply_tokens: int = 64,
    batch_size: int = 64,
    sampling: Sampling | None = None,
    keys: Sequence[Hashable] | None = None,
) -> list[list[int]]:
    """Reply to each prompt (token ids, see `chat.encode_prompt`), as token ids.

    Greedy, or with `sampling` drawn by the random numbers that `keys` name (by default the prompt's
    place in `prompts`). Ids that the tokenizer lacks are not said, though a head may have them.
    The end-of-turn token is kept when the reply has one. Raises UserError when a prompt is empty,
    or with its reply does not fit into the model's positions.
    """
    if not all(prompts):
        raise UserError("a prompt is empty: a reply needs at least one token before it")
    check_reply_room(model, max_reply_tokens)
    limit = position_limit(model)
    longest = max(map(len, prompts), default=0)
    if limit is not None and longest + max_reply_tokens > limit:
        raise UserError(
            f"a prompt of {longest} tokens and a reply of {max_reply_tokens} exceed the model's "
            f"{limit} positions: shorten the conversations or max_reply_tokens"
        )
    replies: list[list[int]] = [[] for _ in prompts]

    def ask(index: int) -> Conversation:
        replies[index] = yield prompts[index]

    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    decode(
        model,
        (ask(index) for index in by_length),
        end_ids=end_of_turn_ids(model, tokenizer),
        max_reply_tokens=max_reply_tokens,
        batch_size=batch_size,
        sampling=sampling,
        keys=by_length if keys is None else [keys[index] for index in by_length],
        vocabulary=sayable_ids(tokenizer),
    )
    return replies


def sayable_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many of a head's first ids can be words: behind them the tokenizer has none."""
    added = tokenizer.added_tokens_decoder  # whose ids may leave a gap before them
    return max(len(tokenizer), max(added, default=-1) + 1)


def check_reply_room(model: PreTrainedModel, max_reply_tokens: int) -> None:
    """Refuse replies that would leave a prompt none of the model's positions."""
    limit = position_limit(model)
    if limit is not None and max_reply_tokens >= limit:
        raise UserError(
            f"max_reply_tokens is {max_reply_tokens}, and the model has {limit} positions for a "
            f"prompt and its reply together: give at most {limit - 1}, and rather far fewer"
        )


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end a reply: the tokenizer's end token and those the model's settings name."""
    named = getattr(model, "generation_config", None)
    ids = getattr(named, "eos_token_id", None)
    ends = set(ids) if isinstance(ids, (list, tuple)) else {ids}
    return {end for end in ends | {tokenizer.eos_token_id} if end is not None}


def position_limit(model: PreTrainedModel) -> int | None:
    """The number of tokens that the model was built for, or None where it has no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)  # RoBERTa's positions begin behind it
    return limit if limit is None or padding is None else limit - padding - 1


def new_cache(model: Any, otherwise: Callable[[], Any] = DynamicCache) -> Any:
    """An empty cache: of the model's own kind where it has one (`export.OnnxModel`)."""
    return getattr(model, "new_cache", otherwise)()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards back into the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Row:
    """One conversation in the batch: the ids known so far, and where its open reply begins."""

    def __init__(
        self, conversation: Conversation, ends: frozenset[int], most: int, chance: Random | None
    ) -> None:
        self.conversation, self.ends, self.most = conversation, ends, most
        self.chance = chance
        self.known: list[int] = []
        self.start = 0
        self.done = False
        self.stale = False
        self._ask(None)

    def hear(self, token: int, fed: int) -> None:
        """Take the model's next token; after the last one of a reply, fetch the next prompt."""
        self.known.append(token)
        if token in self.ends or len(self.known) - self.start >= self.most:
            read = self.known[:fed]
            self._ask(self.known[self.start :])
            self.stale = self.known[:fed] != read

    def _ask(self, reply: list[int] | None) -> None:
        try:
            self.known = list(self.conversation.send(reply))  # type: ignore[arg-type]
            self.start = len(self.known)
        except StopIteration:
            self.done = True


def _stream(
    model: PreTrainedModel, rows: list[_Row], sampling: Sampling | None, vocabulary: int | None
) -> None:
    """Feed all rows from their first token on, until each is done or has to start over."""
    cache, fed = new_cache(model, lambda: Cache(layer_class_to_replicate=_RoomyLayer)), 0
    for row in rows:
        row.stale = False
    batch = list(rows)
    while alive := [index for index, row in enumerate(batch) if not (row.done or row.stale)]:
        if len(alive) < _KEEP * len(batch):
            batch = [batch[index] for index in alive]
            cache.batch_select_indices(torch.tensor(alive, device=model.device))
            alive = list(range(len(batch)))
        known = min(len(batch[index].known) for index in alive)
        logits = next_logits(model, _block(batch, fed, known).to(model.device), cache)
        fed = known
        asking = [index for index in alive if len(batch[index].known) == fed]
        chances = [batch[index].chance for index in asking]
        chosen = _chosen(logits[asking, :vocabulary], chances, sampling)
        for index, token in zip(asking, chosen, strict=True):
            batch[index].hear(token, fed)


def _chosen(logits: Tensor, chances: list[Any], sampling: Sampling | None) -> list[int]:
    return logits.argmax(-1).tolist() if sampling is None else sampling.draw(logits, chances)


def _block(batch: list[_Row], first: int, last: int) -> Tensor:
    """The tokens first..last of every row; rows that have left are filled with zeros."""
    width = last - first
    ids = [row.known[first:last] for row in batch]
    return torch.tensor([row if len(row) == width else [0] * width for row in ids])


def next_logits(model: PreTrainedModel, ids_BS: Tensor, cache: Cache) -> Tensor:
    """Read ids that go on from the cache; the logits (B, V) of the next token of each row."""
    output: Any = model(ids_BS, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1]


class _RoomyLayer(DynamicLayer):
    """A cache layer with spare room: a step writes one token and copies nothing.

    The stock layer concatenates, so each step copies all that was read before.
    """

    room: list[Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        length = filled + key_states.shape[-2]
        if self.room is None or length > self.room[0].shape[-2]:
            self.room = [
                self._roomier(old, new, 2 * length)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            ]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, filled:length] = new
        self.keys, self.values = (room[:, :, :length] for room in self.room)
        return self.keys, self.values

    @staticmethod
    def _roomier(old: Tensor | None, like: Tensor, capacity: int) -> Tensor:
        room = like.new_empty(*like.shape[:2], max(64, capacity), like.shape[-1])
        if old is not None and old.numel():
            room[:, :, : old.shape[-2]] = old
        return room

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.room = None
