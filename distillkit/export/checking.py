"""Is the exported model the model? The same text, and logits that differ no more than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import encode_prompt, encode_rows
from distillkit.decoding import generate_replies
from distillkit.errors import UserError
from distillkit.evaluation import scored_batches

__all__ = ["ExportCheck", "check_export"]


@dataclass(frozen=True)
class ExportCheck:
    """What was compared, and what was found.

    largest_difference: of any logit at any of the assistant's tokens; same_text: in how many of
    the conversations the greedy reply has the same tokens.
    """

    conversations: int
    same_text: int
    tokens: int
    largest_difference: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether all text is the same and no logit differs by more than the bound."""
        return self.same_text == self.conversations and self.largest_difference <= self.bound

    def require(self) -> ExportCheck:
        """The check itself where it holds, else a UserError that says what differs."""
        if self.holds:
            return self
        raise UserError(
            f"the exported model is another one: {self.same_text} of {self.conversations} greedy "
            f"replies are the same, and logits differ by up to {self.largest_difference:.2g} where "
            f"{self.bound:.2g} is allowed"
        )


def check_export(
    model: PreTrainedModel,
    exported: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[dict[str, Any]],
    *,
    bound: float = 1e-3,
    max_reply_tokens: int = 64,
) -> ExportCheck:
    """Compare an exported model with the one it was made from, on rows with `messages`.

    exported: what `load_onnx`, `read_gguf` or `load_llama_cpp` returns. Logits are compared at
    every token of the assistant; text, in the reply that each conversation's last assistant message
    answers for. The bound suits an export that rounds nothing; with fewer bits, say what you allow.
    Batches hold one conversation, as an engine without batches needs it.

    Raises UserError when there is nothing to compare.
    """
    rows = [_until_last_reply(row["messages"]) for row in conversations]
    if not any(rows):
        raise UserError(f"found no assistant message in {len(rows)} conversations to compare")
    encoded = encode_rows(tokenizer, conversations)
    largest, tokens = 0.0, 0
    pairs = zip(
        scored_batches(model, encoded, batch_tokens=1),
        scored_batches(exported, encoded, batch_tokens=1),
        strict=True,
    )
    for ours, theirs in pairs:
        if len(ours.labels):
            largest = max(largest, float((ours.logits.cpu() - theirs.logits).abs().max()))
        tokens += len(ours.labels)
    prompts = [encode_prompt(tokenizer, messages) for messages in rows if messages]
    settings: dict[str, Any] = {"max_reply_tokens": max_reply_tokens, "batch_size": 1}
    told, heard = (
        generate_replies(each, tokenizer, prompts, **settings) for each in (model, exported)
    )
    return ExportCheck(
        conversations=len(prompts),
        same_text=sum(mine == other for mine, other in zip(told, heard, strict=True)),
        tokens=tokens,
        largest_difference=largest,
        bound=bound,
    )


def _until_last_reply(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages that the last assistant message answers; none where there is none."""
    replies = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    return list(messages[: replies[-1]]) if replies else []
