"""A tokenizer inside a GGUF file, as far as llama.cpp can take it.

llama.cpp knows byte-level BPE by its vocabulary and merges, and cuts a text into words by one of
the patterns that it has names for. A tokenizer whose pattern has no name there can be stored, but
would be read otherwise: then `spelling` says so, and ids must be fed instead of text.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from distillkit.errors import UserError
from distillkit.vocabulary import WORD_PATTERN

log = logging.getLogger(__name__)

UNNAMED = "default"


def add_tokenizer(
    writer: Any, gguf: Any, tokenizer: PreTrainedTokenizerBase, model: Any, rows: int
) -> None:
    """Vocabulary, merges, special tokens and chat template; ids without a token are named so.

    Raises UserError for a tokenizer that is no byte-level BPE, and for one that is larger than the
    model's table.
    """
    core = _core(tokenizer)
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model {rows:,} rows for them; "
            "they do not belong together"
        )
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = gguf.TokenType
    types = [
        kinds.UNUSED if at not in tokens else kinds.CONTROL if at in added else kinds.NORMAL
        for at in range(rows)
    ]
    named = spelling(tokenizer)
    if named == UNNAMED:
        log.warning(
            "llama.cpp has no name for how this tokenizer cuts a text into words: feed it ids, as "
            "distillkit does, for it may read text otherwise"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(named)
    writer.add_token_list([tokens.get(at, f"[UNUSED{at}]") for at in range(rows)])
    writer.add_token_types(types)
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in core])
    writer.add_add_bos_token(False)
    _add_ends(writer, tokenizer, model)
    if tokenizer.chat_template:
        writer.add_chat_template(_plain(tokenizer.chat_template))


def _add_ends(writer: Any, tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    end = tokenizer.eos_token_id
    if end is None:
        end = model.config.eos_token_id
    if isinstance(end, list):
        end = end[0]
    if end is None:
        raise UserError("neither tokenizer nor model say which token ends a turn: set eos_token")
    writer.add_eos_token_id(end)
    for number, add in (
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.bos_token_id, writer.add_bos_token_id),
    ):
        if number is not None:
            add(number)


def _plain(template: str) -> str:
    """The template without the marks of what the assistant says, a tag of transformers alone."""
    return re.sub(r"\{%(-?)( *(?:end)?generation *)(-?)%\}", r"{#\1\2\3#}", template)


def _core(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """The merges of a byte-level BPE."""
    settings = _settings(tokenizer)
    model = settings.get("model", {})
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(settings["pre_tokenizer"]):
        raise UserError(
            f"the tokenizer is a {model.get('type', type(tokenizer).__name__)}: the GGUF export "
            "carries byte-level BPE, as GPT-2, Llama 3, Qwen, SmolLM and this course have it"
        )
    return list(model["merges"])


def _settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    if not tokenizer.is_fast:
        return {"pre_tokenizer": None}
    settings: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return settings


def spelling(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name for how a tokenizer cuts text into words, or `UNNAMED`.

    GPT-2's pattern is "gpt-2". The course's own differs in that each digit is a word of its own;
    as long as no merge joins two digits, both spell every text alike, so it goes by that name too.
    SmolLM's, digits apart and then GPT-2's, is "smollm".
    """
    settings = _settings(tokenizer)
    steps = settings["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    pattern = steps[0].get("pattern", {}).get("Regex") if kinds[0] == "Split" else None
    if pattern == WORD_PATTERN and not any(map(_joins_digits, settings["model"]["merges"])):
        return "gpt-2"
    return UNNAMED


def _joins_digits(merge: str | list[str]) -> bool:
    joined = merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
    return sum(letter.isdigit() for letter in joined) > 1
