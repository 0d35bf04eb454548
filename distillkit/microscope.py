"""The token microscope: what several models, and the truth, expect at one token of a conversation.

`examine` reads a conversation once with every model. Of the result, `plots.token_bars` draws one
token, `plots.token_strip` a whole turn, and `widgets.microscope` lets you pick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import encode
from distillkit.errors import UserError
from distillkit.evaluation import scored_batches
from distillkit.losses import forward_kl
from distillkit.truth import Distribution, truth

__all__ = ["Examined", "examine"]

TRUTH = "truth"


@dataclass(frozen=True)
class Examined:
    """A conversation of S tokens, N of them the assistant's, under R pairs of eyes.

    tokens: the S texts. places: which N of them the assistant speaks, in order. log_probabilities:
    role -> (N, V), in the order of `places`; the first role is the one that others are compared to.
    """

    tokens: list[str]
    places: list[int]
    vocabulary: list[str]
    log_probabilities: dict[str, Tensor]

    @property
    def reference(self) -> str:
        """The role that stands for p: the truth where it is known, else the first model."""
        return next(iter(self.log_probabilities))

    def kl(self, role: str) -> Tensor:
        """KL(p || q) in nats at each of the assistant's N tokens, p the reference, q the role."""
        p, q = self.log_probabilities[self.reference], self.log_probabilities[role]
        return forward_kl(q.double(), p.double())

    def kls(self, number: int) -> dict[str, float]:
        """role -> KL(p || q) at the assistant's token `number`, for all but the reference."""
        return {
            role: self.kl(role)[number].item()
            for role in self.log_probabilities
            if role != self.reference
        }

    def distributions(self, number: int, top: int = 8) -> dict[str, dict[str, float]]:
        """role -> {token text: probability} at the assistant's token `number`.

        Each role has the same tokens: those that are among the `top` likeliest of any of them.
        """
        chances = {role: table[number].exp() for role, table in self.log_probabilities.items()}
        likeliest = [each.topk(min(top, len(each))).indices for each in chances.values()]
        tokens = torch.cat(likeliest).unique().tolist()
        return {role: self._by_text(each[tokens], tokens) for role, each in chances.items()}

    def _by_text(self, chances: Tensor, tokens: Sequence[int]) -> dict[str, float]:
        result: dict[str, float] = {}
        for token, chance in zip(tokens, chances.tolist(), strict=True):
            text = self.vocabulary[token]  # which two tokens may share
            result[text] = result.get(text, 0.0) + chance
        return result

    def said(self, number: int) -> str:
        """The assistant's token `number` as it came."""
        return self.tokens[self.places[number]]

    def before(self, number: int, most: int = 16) -> str:
        """The text that leads to the assistant's token `number`."""
        place = self.places[number]
        return "".join(self.tokens[max(0, place - most) : place])

    def turns(self) -> list[list[int]]:
        """The numbers of the assistant's tokens, message by message."""
        result: list[list[int]] = []
        for number, place in enumerate(self.places):
            if not number or place != self.places[number - 1] + 1:
                result.append([])
            result[-1].append(number)
        return result


def examine(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    models: Mapping[str, PreTrainedModel],
    *,
    with_truth: bool = True,
) -> Examined:
    """Read a conversation with every model; role -> model, the roles being those of `plots.ROLES`.

    with_truth: compare to the front desk's true distribution, which is known for its conversations
    alone; without it, the first model is what the others are compared to.

    Raises UserError without models, or where the assistant says nothing.
    """
    if not models:
        raise UserError("found no model to look through: expected at least one role")
    encoded = encode(tokenizer, list(messages))
    ids, labels = encoded["input_ids"], encoded["labels"]
    places = [place for place, label in enumerate(labels) if label != -100 and place > 0]
    width = min(model.config.get_text_config().vocab_size for model in models.values())
    seen: dict[str, Tensor] = {}
    if with_truth:
        steps = truth(tokenizer, messages)
        seen[TRUTH] = _dense([steps[place] or {} for place in places], width)
    for role, model in models.items():
        [batch] = scored_batches(model, [encoded])
        seen[role] = batch.logits[:, :width].log_softmax(-1).cpu()
    return Examined(
        tokens=_texts(tokenizer, ids),
        places=places,
        vocabulary=_texts(tokenizer, list(range(width))),
        log_probabilities=seen,
    )


def _dense(steps: Sequence[Distribution], width: int) -> Tensor:
    table = torch.full((len(steps), width), -torch.inf)
    for row, distribution in enumerate(steps):
        for token, chance in distribution.items():
            table[row, token] = torch.tensor(chance).log()
    return table


def _texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    return [str(tokenizer.decode([token])) for token in ids]
