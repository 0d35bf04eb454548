"""The true distribution of the assistant's next token, and how far a model is from it.

The front desk is a program, so what it could have said at any point is known with its probability.
That gives what no real data can give: the entropy floor, which no model beats in expectation, and
the exact Kullback-Leibler divergence from a model to the truth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import encode, encode_rows
from distillkit.dialogues import true_replies
from distillkit.errors import UserError
from distillkit.evaluation import NLL, Scored, nll, scored_batches

Message = dict[str, Any]
Distribution = dict[int, float]
"""Token id -> probability; ids that cannot come are left out."""


def truth(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[Distribution | None]:
    """The true next-token distribution at every assistant token of a front desk conversation.

    One entry a token of `chat.encode(tokenizer, messages)`: the distribution of *that* token given
    all before it, or None where the assistant does not speak. Where several phrasings agree so far,
    their probabilities are added up: p(token) = sum of p(reply) over the replies that begin with
    what was said and go on with the token, over the same sum without the token.

    Raises UserError for a reply that the front desk never gives.
    """
    encoded = encode(tokenizer, list(messages))
    ids, labels = encoded["input_ids"], encoded["labels"]
    result: list[Distribution | None] = [None] * len(ids)
    start = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        while start < len(ids) and labels[start] == -100:
            start += 1
        said = _spelling(tokenizer, _key(message))
        if tuple(ids[start : start + len(said)]) != said:
            raise UserError(
                "the chat template spells a reply differently in different conversations: the "
                "truth can be told only with a template that does not, such as distillkit's own"
            )
        replies = _replies(messages[:index])
        result[start : start + len(said)] = _marginals(tokenizer, replies, said)
        start += len(said)
    return result


@dataclass(frozen=True)
class Floor:
    """What the truth itself scores on some conversations.

    nll: -log p(token), comparable dialogue by dialogue with a model's. entropy: the mean entropy of
    the truth at the same tokens, in nats: what the NLL per token tends to with more conversations.
    """

    nll: NLL
    entropy: float


def floor(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> Floor:
    """The entropy floor of front desk conversations: no model has a lower NLL in expectation."""
    losses: list[float] = []
    tokens: list[int] = []
    entropies: list[float] = []
    for row in rows:
        ids = encode(tokenizer, row["messages"])["input_ids"]
        steps = zip(ids, truth(tokenizer, row["messages"]), strict=True)
        known = [(token, distribution) for token, distribution in steps if distribution is not None]
        losses.append(-math.fsum(math.log(distribution[token]) for token, distribution in known))
        tokens.append(len(known))
        entropies += [_entropy(distribution) for _, distribution in known]
    return Floor(NLL(losses, tokens), math.fsum(entropies) / max(1, len(entropies)))


def excess_nll(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]
) -> float:
    """The model's NLL per assistant token minus the truth's, on the same tokens, in nats.

    Its expectation is `kl_to_truth`; on a sample it is noisier.
    """
    return (
        nll(model, encode_rows(tokenizer, list(rows))).per_token
        - floor(tokenizer, rows).nll.per_token
    )


def kl_to_truth(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]
) -> float:
    """Mean over assistant tokens of KL(p || q) = sum of p (log p - log q), p true, q the model."""
    truths = [truth(tokenizer, row["messages"]) for row in rows]
    total, tokens = 0.0, 0
    for batch in scored_batches(model, encode_rows(tokenizer, list(rows))):
        total += _kl(batch, truths)
        tokens += len(batch.labels)
    return total / tokens


def _kl(batch: Scored, truths: Sequence[Sequence[Distribution | None]]) -> float:
    steps, ids, chances = [], [], []
    places = zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)
    for step, (row, column) in enumerate(places):
        distribution = truths[row][column] or {}
        steps += [step] * len(distribution)
        ids += list(distribution)
        chances += list(distribution.values())
    p = torch.tensor(chances, dtype=torch.float64)
    log_q = batch.logits.log_softmax(-1).cpu()[steps, ids].double()
    return float((p * (p.log() - log_q)).sum())


def _replies(messages: Sequence[Message]) -> list[tuple[float, Message]]:
    try:
        return true_replies(list(messages))
    except ValueError as error:
        raise UserError(
            f"the truth is known for conversations of the front desk only: {error}"
        ) from error


def _marginals(
    tokenizer: PreTrainedTokenizerBase,
    replies: Sequence[tuple[float, Message]],
    said: tuple[int, ...],
) -> list[Distribution | None]:
    candidates = [(chance, _spelling(tokenizer, _key(message))) for chance, message in replies]
    result: list[Distribution | None] = []
    for step, token in enumerate(said):
        sums: Distribution = {}
        for chance, spelling in candidates:
            sums[spelling[step]] = sums.get(spelling[step], 0.0) + chance
        if not sums.get(token):
            raise UserError(
                "found a reply that the front desk never gives: "
                f"{tokenizer.decode(list(said))!r}; the "
                "truth is known for conversations of dialogues.front_desk only"
            )
        whole = math.fsum(sums.values())
        result.append({each: chance / whole for each, chance in sums.items() if chance > 0})
        candidates = [each for each in candidates if each[1][step] == token]
    return result


def _entropy(distribution: Distribution) -> float:
    return -math.fsum(chance * math.log(chance) for chance in distribution.values())


def _key(message: Message) -> str:
    return json.dumps(message)


@lru_cache(maxsize=2**16)
def _spelling(tokenizer: PreTrainedTokenizerBase, key: str) -> tuple[int, ...]:
    """The ids of an assistant message, its call marker and end of turn included."""
    encoded = encode(tokenizer, [{"role": "user", "content": "hello"}, json.loads(key)])
    pairs = zip(encoded["input_ids"], encoded["labels"], strict=True)
    return tuple(token for token, label in pairs if label != -100)
