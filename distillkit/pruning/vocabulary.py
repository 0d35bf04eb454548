"""Cut words out of a model: their rows of the embeddings and of the head, and their tokens.

What the model computes for the words that stay is not changed; what is read and written with them
is spelled as before, with other ids. In a small model the embeddings are a large part of all bytes,
and a tokenizer that was made for all languages has many tokens to spare. One that was trained on
the very conversations has hardly any: what never occurs there is on the way to what does.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distillkit.calibration import Encoded
from distillkit.errors import UserError
from distillkit.narrowing import check_llama_style, rebuilt

__all__ = ["smaller_vocabulary", "token_counts"]

_KEPT_SETTINGS = (
    "model_input_names",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
)
_ID_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id")


def token_counts(encoded: Iterable[Encoded]) -> Counter[int]:
    """How often each id occurs in encoded conversations: what is rare can go."""
    return Counter(token for row in encoded for token in row["input_ids"])


def smaller_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    keep: Iterable[int],
    *,
    needed: Sequence[Encoded] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """A copy of a model and of its tokenizer that know fewer tokens, and the old ids of these.

    The new ids follow the order of the old ones: entry i of the list is the old id of token i.
    Beside `keep` there stay all added tokens (those of the chat template among them), the letters
    or bytes that every text can be spelled with, and, of a BPE tokenizer, the tokens that the kept
    ones are merged from. So a text whose tokens were all kept is split as before, and any other one
    into shorter tokens.

    Args:
        keep: ids of tokens, for example the commonest of `token_counts`.
        needed: conversations (as `encode_rows` gives them) whose tokens must all stay.

    Raises:
        UserError: `keep` is empty or has an id that the tokenizer lacks; a token that `needed` has
            does not stay; the tokenizer is none of BPE, WordPiece, Unigram and WordLevel; or the
            model is of another kind than Llama, Mistral and Qwen.
    """
    check_llama_style(model)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError("this tokenizer has no tokenizer.json: load the fast one of its family")
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    ids = set(keep)
    if not ids or not ids <= set(vocabulary.values()):
        lacking = sorted(ids - set(vocabulary.values()))[:3]
        raise UserError(
            f"found {len(ids)} ids to keep{f', among them {lacking}' if lacking else ''}: expected "
            f"ids of the tokenizer's {len(vocabulary):,} tokens"
        )
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = sorted(_closed(settings, ids))
    _check_needed(tokenizer, set(kept), needed)
    new_ids = {old: new for new, old in enumerate(kept)}
    _renumber(settings, new_ids)
    smaller = _like(tokenizer, Tokenizer.from_str(json.dumps(settings)))
    return _with_rows(model, kept, new_ids), smaller, kept


def _closed(settings: dict[str, Any], ids: set[int]) -> set[int]:
    """The ids, and all that the tokenizer cannot do without."""
    model = settings["model"]
    vocabulary = _vocabulary(model)
    added = {token["id"] for token in settings["added_tokens"]}
    kept = ids | added
    if model["type"] == "Unigram":
        kept |= set() if model.get("unk_id") is None else {model["unk_id"]}
    elif model.get("unk_token") in vocabulary:
        kept.add(vocabulary[model["unk_token"]])
    if model["type"] != "WordLevel":
        kept |= {number for token, number in vocabulary.items() if _is_letter(model, token)}
    if model["type"] == "BPE":
        for merge in reversed(model["merges"]):  # what is merged last first
            left, right, merged = (vocabulary[each] for each in _parts(model, merge))
            if merged in kept:
                kept |= {left, right}
    return kept


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    if model["type"] in ("BPE", "WordPiece", "WordLevel"):
        return model["vocab"]
    raise UserError(
        f"the tokenizer is of the kind {model['type']}: expected BPE, WordPiece, Unigram, WordLevel"
    )


def _is_letter(model: dict[str, Any], token: str) -> bool:
    """Whether it is a letter or a byte, which nothing is merged into."""
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return len(token.removeprefix(prefix).removesuffix(suffix)) == 1 or is_byte


def _parts(model: dict[str, Any], merge: Any) -> tuple[str, str, str]:
    """The two tokens of a merge, which older files write as one string, and what they become."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    prefix = model.get("continuing_subword_prefix") or ""
    return left, right, left + right.removeprefix(prefix)


def _check_needed(
    tokenizer: PreTrainedTokenizerBase, kept: set[int], needed: Sequence[Encoded]
) -> None:
    for number, row in enumerate(needed):
        for token in row["input_ids"]:
            if token not in kept:
                raise UserError(
                    f"conversation {number} needs the token "
                    f"{tokenizer.convert_ids_to_tokens(token)!r} (id {token}), which is not kept: "
                    "keep it, or leave this conversation out of needed"
                )


def _renumber(settings: dict[str, Any], new_ids: dict[int, int]) -> None:
    """Take what is not kept out of tokenizer.json, and write the new ids."""
    model = settings["model"]
    if model["type"] == "Unigram":
        unknown = model.get("unk_id")
        model["vocab"] = [row for old, row in enumerate(model["vocab"]) if old in new_ids]
        model["unk_id"] = None if unknown is None else new_ids[unknown]
    else:
        vocabulary = model["vocab"]
        model["vocab"] = {
            token: new_ids[old] for token, old in vocabulary.items() if old in new_ids
        }
    if model["type"] == "BPE":
        model["merges"] = [
            merge for merge in model["merges"] if set(_parts(model, merge)) <= model["vocab"].keys()
        ]
    for token in settings["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if settings.get("post_processor"):
        _renumber_processor(settings["post_processor"], new_ids)


def _renumber_processor(processor: dict[str, Any], new_ids: dict[int, int]) -> None:
    """The ids that are put around a text: those of BERT, of Llama 3, or of several in a row."""
    for each in processor.get("processors", ()):
        _renumber_processor(each, new_ids)
    if isinstance(processor.get("special_tokens"), dict):
        for token in processor["special_tokens"].values():
            token["ids"] = [new_ids[old] for old in token["ids"]]
    for side in ("sep", "cls"):
        if side in processor:
            processor[side][1] = new_ids[processor[side][1]]


def _like(tokenizer: PreTrainedTokenizerFast, core: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with another core and the same special tokens, template and manners.

    What it puts around a text is in the core. (With add_bos_token it would be written anew.)
    """
    named = {name: getattr(tokenizer, name) for name in _KEPT_SETTINGS if hasattr(tokenizer, name)}
    single = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
    tokens = {name: getattr(tokenizer, name) for name in (*single, "mask_token")}
    others = [token for token in tokenizer.all_special_tokens if token not in tokens.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=tokenizer.chat_template,
        extra_special_tokens=others,
        **named,
        **{name: token for name, token in tokens.items() if token is not None},
    )


def _with_rows(model: PreTrainedModel, kept: list[int], new_ids: dict[int, int]) -> PreTrainedModel:
    """A copy whose embeddings and head have the rows of these tokens only; ties stay ties."""
    config = copy.deepcopy(model.config)
    config.vocab_size = len(kept)
    _renumber_settings(config, new_ids)
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if name.split(".")[-2] in ("embed_tokens", "lm_head"):
            weights[name] = value[torch.tensor(kept, device=value.device)]
    smaller = rebuilt(model, config, weights)
    _renumber_settings(smaller.generation_config, new_ids)
    return smaller


def _renumber_settings(config: Any, new_ids: dict[int, int]) -> None:
    for name in _ID_SETTINGS:
        if (old := getattr(config, name, None)) is not None:
            setattr(config, name, _renumbered(old, new_ids))


def _renumbered(old: int | list[int], new_ids: dict[int, int]) -> int | list[int] | None:
    if isinstance(old, int):
        return new_ids.get(old)
    return [new_ids[each] for each in old if each in new_ids] or None
