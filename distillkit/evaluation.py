"""How good a dialogue model is: likelihood, task success, calibration, and the texts it writes.

Every average is over assistant tokens, in nats, unless it says otherwise. Task success is what
counts in the end: the model serves simulated visitors, its calls are executed, and what it told
and booked is checked. `truth.py` adds how far a model is from the process that wrote the data.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import CHAT_TEMPLATE, encode_prompt, read_reply
from distillkit.decoding import (
    Conversation,
    decode,
    end_of_turn_ids,
    evaluating,
    generate_replies,
    position_limit,
    sayable_ids,
)
from distillkit.dialogues import Visit
from distillkit.errors import UserError
from distillkit.intervals import (
    bootstrap_interval,
    paired_difference_interval,
    paired_ratio_interval,
)
from distillkit.sampling import Sampling
from distillkit.text_metrics import chrf, distinct_n

__all__ = [
    "NLL",
    "Calibration",
    "TaskSuccess",
    "agreement",
    "bootstrap_interval",
    "calibration_error",
    "calibration_of",
    "chrf",
    "distinct_n",
    "generate_replies",
    "nll",
    "paired_difference_interval",
    "paired_ratio_interval",
    "play",
    "prompt_reader",
    "scored_batches",
    "task_success",
]

Encoded = dict[str, list[int]]
Message = dict[str, Any]
Policy = Callable[[list[Message]], Message]

_LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


# Likelihood ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood of the assistant's tokens, in nats.

    `per_dialogue` and `tokens_per_dialogue` are in the order of the input, so that two models can
    be compared dialogue by dialogue.
    """

    per_dialogue: list[float]
    tokens_per_dialogue: list[int]

    @property
    def total(self) -> float:
        return math.fsum(self.per_dialogue)

    @property
    def tokens(self) -> int:
        return sum(self.tokens_per_dialogue)

    @property
    def per_token(self) -> float:
        """Every token weighs the same, whichever dialogue or batch it is in."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.per_token)


@dataclass(frozen=True)
class Scored:
    """The predictions of one batch, at its N assistant tokens only.

    rows (N,): which dialogue of the input; columns (N,): the position of the predicted token in
    it; labels (N,): that token; logits (N, V), float32: what was predicted for it.
    """

    rows: Tensor
    columns: Tensor
    labels: Tensor
    logits: Tensor


def nll(
    model: PreTrainedModel, encoded: Sequence[Encoded], *, batch_tokens: int | None = None
) -> NLL:
    """-log q(token) summed over the assistant's tokens, q being the model.

    encoded: what `chat.encode_rows` returns (labels not shifted, -100 where nothing is scored).
    batch_tokens: tokens in a forward pass, padding included; by default as many as keep the logits
    near 128 MiB. It does not change the result.
    """
    sums = torch.zeros(len(encoded), dtype=torch.float64)
    counts = torch.zeros(len(encoded), dtype=torch.long)
    for batch in scored_batches(model, encoded, batch_tokens=batch_tokens):
        losses = torch.nn.functional.cross_entropy(batch.logits, batch.labels, reduction="none")
        sums.index_add_(0, batch.rows, losses.cpu().double())
        counts.index_add_(0, batch.rows, torch.ones_like(batch.rows))
    return NLL(sums.tolist(), counts.tolist())


def scored_batches(
    model: PreTrainedModel, encoded: Sequence[Encoded], *, batch_tokens: int | None = None
) -> Iterator[Scored]:
    """Run the model over the dialogues, longest first, and yield its predictions of the labels.

    Dialogues of like length share a batch. They are padded on the right, which a causal model
    cannot see from the left: so no mask is needed. Raises UserError when nothing has a label.
    """
    if not any(label != -100 for row in encoded for label in row["labels"][1:]):
        raise UserError(
            f"found no assistant token to score in {len(encoded)} dialogues: expected labels other "
            "than -100 (see chat.encode_rows)"
        )
    budget = batch_tokens or max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    for rows in _batches(encoded, budget):
        # The mode ends before the yield: it would be the caller's mode, too, and two such
        # generators that are read in turn would leave it on.
        with evaluating(model), torch.inference_mode():
            scored = _score(model, encoded, rows)
        yield scored


def _batches(encoded: Sequence[Encoded], budget: int) -> Iterator[list[int]]:
    order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]["input_ids"]))
    while order:
        size = max(1, budget // max(1, len(encoded[order[0]]["input_ids"])))
        yield order[:size]
        order = order[size:]


def _score(model: PreTrainedModel, encoded: Sequence[Encoded], rows: list[int]) -> Scored:
    width = max(len(encoded[row]["input_ids"]) for row in rows)
    ids_BS = torch.tensor([_padded(encoded[row]["input_ids"], width, 0) for row in rows])
    labels_BS = torch.tensor([_padded(encoded[row]["labels"], width, -100) for row in rows])
    logits_BSV = model(ids_BS.to(model.device), use_cache=False).logits
    where, column = (labels_BS[:, 1:] != -100).nonzero(as_tuple=True)
    device = logits_BSV.device
    return Scored(
        rows=torch.tensor(rows)[where],
        columns=column + 1,
        labels=labels_BS[where, column + 1].to(device),
        logits=logits_BSV[where.to(device), column.to(device)].float(),
    )


def _padded(ids: list[int], width: int, filler: int) -> list[int]:
    return ids + [filler] * (width - len(ids))


# Agreement and calibration -------------------------------------------------------------------


def agreement(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    encoded: Sequence[Encoded],
    *,
    batch_tokens: int | None = None,
) -> float:
    """Share of assistant tokens for which student and teacher find the same token most likely.

    Heads of different width are compared on the width they share.
    """
    width = min(student.config.vocab_size, teacher.config.vocab_size)
    budget = batch_tokens or max(1, _LOGITS_AT_ONCE // (2 * width))
    same = tokens = 0
    pairs = zip(
        scored_batches(student, encoded, batch_tokens=budget),
        scored_batches(teacher, encoded, batch_tokens=budget),
        strict=True,
    )
    for ours, theirs in pairs:
        mine = ours.logits[:, :width].argmax(-1).cpu()
        same += int((mine == theirs.logits[:, :width].argmax(-1).cpu()).sum())
        tokens += len(mine)
    return same / tokens


@dataclass(frozen=True)
class Bin:
    """The tokens whose predicted probability lies in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error and the bins of its reliability diagram (empty ones left out)."""

    error: float
    bins: list[Bin]


def calibration_error(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    *,
    bins: int = 15,
    batch_tokens: int | None = None,
) -> Calibration:
    """How far the model's confidence in its likeliest token is from how often that token is right.

    ECE = sum over bins of (tokens in the bin / tokens) * |accuracy - confidence|, with `bins` bins
    of equal width. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.
    """
    confidences, hits = [], []
    for batch in scored_batches(model, encoded, batch_tokens=batch_tokens):
        confidence, choice = batch.logits.softmax(-1).max(-1)
        confidences.append(confidence.cpu())
        hits.append((choice == batch.labels).cpu())
    return calibration_of(torch.cat(confidences), torch.cat(hits), bins=bins)


def calibration_of(confidence: Tensor, hits: Tensor, *, bins: int = 15) -> Calibration:
    """The same from what is known already: of N choices, how sure each was and whether it hit."""
    certain, hit = confidence.double().numpy(), hits.numpy()
    index = np.clip(np.ceil(certain * bins).astype(int) - 1, 0, bins - 1)
    table = []
    for number in np.unique(index):
        inside = index == number
        table.append(
            Bin(
                low=float(number) / bins,
                high=float(number + 1) / bins,
                count=int(inside.sum()),
                confidence=float(certain[inside].mean()),
                accuracy=float(hit[inside].mean()),
            )
        )
    gaps = [each.count * abs(each.accuracy - each.confidence) for each in table]
    return Calibration(error=math.fsum(gaps) / len(hit), bins=table)


# Task success --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskSuccess:
    """How many visitors got what they came for.

    successes: one entry a visitor, in the order of the goals, which are the same for every model
    that is asked with the same seed and split. failures: how often each reason was met.
    """

    successes: list[bool]
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        return sum(self.successes) / len(self.successes)

    def interval(self, *, level: float = 0.95) -> tuple[float, float]:
        """Percentile bootstrap interval of the rate, over goals."""
        return bootstrap_interval([self.successes], level=level)


def task_success(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    visits: int = 1000,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 250,
    max_reply_tokens: int = 64,
    progress: bool = False,
) -> TaskSuccess:
    """Let the model serve simulated visitors by greedy decoding, and check what they got.

    A reply that does not end within `max_reply_tokens` is cut and served as it is. A conversation
    that outgrows the model's positions has failed.
    """
    visitors = _visitors(visits, seed, split)
    with tqdm(total=visits, desc="visits", disable=not progress) as bar:
        serve(
            model,
            tokenizer,
            visitors,
            batch_size=batch_size,
            max_reply_tokens=max_reply_tokens,
            served=bar.update,
        )
    return _outcome(visitors)


def serve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    visitors: Sequence[Visit],
    *,
    batch_size: int = 250,
    max_reply_tokens: int = 64,
    served: Callable[[], object] = lambda: None,
    sampling: Sampling | None = None,
    keys: Sequence[Hashable] | None = None,
) -> None:
    """Let the model serve these visitors to the end, greedily or as `decode` samples by `keys`.

    `served` is called after each.

    Afterwards `visit.messages` are conversations whose assistant is the model, and `visit.success`
    says how it went. A visit is left undone when it outgrows the model's positions.
    """
    limit = position_limit(model)
    spelled: dict[str, list[int]] = {}

    def converse(visit: Visit) -> Conversation:
        read = prompt_reader(tokenizer, spelled)
        while not visit.done:
            prompt = read(visit.messages)
            if limit is not None and len(prompt) + max_reply_tokens > limit:
                break
            reply = yield prompt
            visit.reply(read_reply(tokenizer, reply))
        served()

    decode(
        model,
        (converse(visit) for visit in visitors),
        end_ids=end_of_turn_ids(model, tokenizer),
        max_reply_tokens=max_reply_tokens,
        batch_size=batch_size,
        sampling=sampling,
        keys=keys,
        vocabulary=sayable_ids(tokenizer),
    )


def prompt_reader(
    tokenizer: PreTrainedTokenizerBase, spelled: dict[str, list[int]]
) -> Callable[[Sequence[Message]], list[int]]:
    """`encode_prompt` for one conversation that grows: only what is new is rendered and encoded.

    That is right for distillkit's own template, which spells each message by itself (`spelled` has
    the ids of messages met before); with any other one the whole conversation is encoded again.
    """
    if tokenizer.chat_template != CHAT_TEMPLATE:
        return lambda messages: encode_prompt(tokenizer, messages)
    known: list[int] = []
    seen = 0

    def read(messages: Sequence[Message]) -> list[int]:
        nonlocal seen
        for message in messages[seen:]:
            key = json.dumps(message)
            if key not in spelled:
                spelled[key] = encode_prompt(tokenizer, [message])
            known[-1:] = spelled[key]  # in place of the cue to speak that ended the last prompt
        seen = len(messages)
        return list(known)

    return read


def play(policy: Policy, *, visits: int = 1000, seed: int = 0, split: str = "test") -> TaskSuccess:
    """Let a policy, any function from messages to a message, serve the same visitors."""
    visitors = _visitors(visits, seed, split)
    for visit in visitors:
        while not visit.done:
            visit.reply(policy(visit.messages))
    return _outcome(visitors)


def _visitors(visits: int, seed: int, split: str) -> list[Visit]:
    """Visitors whose seeds no other value of `seed` gives, for up to a million visits."""
    return [Visit(seed * 1_000_000 + number, split=split) for number in range(visits)]


def _outcome(visitors: Sequence[Visit]) -> TaskSuccess:
    reasons = [
        visit.failure or "no reason given" if visit.done else "the conversation grew too long"
        for visit in visitors
        if not (visit.done and visit.success)
    ]
    return TaskSuccess([visit.done and visit.success for visit in visitors], Counter(reasons))
