"""Encoders, BERT's kind: models that read a text to both sides, and say what it is about.

A *masked language model* is pre-trained by filling gaps; a *classifier* is the same body with a
head of one logit a class. Both go through `DistillationTrainer` like the chat models.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from distillkit.errors import UserError
from distillkit.logits import CAUSAL, CLASSIFIER, alignment_of
from distillkit.models import ModelSize

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


# --- Text to ids --------------------------------------------------------------------------------


def train_text_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """Train a tokenizer for encoders: byte-level BPE in lower case, `[CLS] text [SEP]`.

    The same texts give the same ids. (BERT's own WordPiece, as the library trains it, does not:
    its pieces are numbered in another order each time.) Raises UserError where there is no text.
    """
    texts = list(texts)
    if not texts:
        raise UserError("there is no text to train a tokenizer on: pass at least one")
    core = Tokenizer(models.BPE(unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL), show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    ends = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int = 128
) -> list[dict[str, Any]]:
    """Rows of `input_ids`, with the tokenizer's own ends around each text.

    Raises UserError where these ends alone take all of `max_length`.
    """
    if max_length <= (ends := tokenizer.num_special_tokens_to_add()):
        raise UserError(
            f"max_length is {max_length}, and the tokens around a text take {ends}: give at least "
            f"{ends + 1}"
        )
    if not texts:
        return []
    ids = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [{"input_ids": each} for each in ids]


def encode_intents(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    *,
    max_length: int = 128,
) -> list[dict[str, Any]]:
    """Rows of `input_ids` and `labels`, the number of the row's intent in `labels`.

    Raises UserError for an intent that is not among them, and a row without text or intent.
    """
    for number, row in enumerate(rows):
        for key in ("text", "intent"):
            if key not in row:
                raise UserError(
                    f"row {number} has no {key!r} (found {', '.join(row) or 'nothing'}): expected "
                    'rows like {"text": …, "intent": …}'
                )
    numbers = {name: number for number, name in enumerate(labels)}
    if unknown := {row["intent"] for row in rows} - numbers.keys():
        raise UserError(f"{sorted(unknown)[0]!r} is none of the {len(labels)} intents of the model")
    encoded = encode_texts(tokenizer, [row["text"] for row in rows], max_length=max_length)
    return [
        {**ids, "labels": numbers[row["intent"]]} for ids, row in zip(encoded, rows, strict=True)
    ]


# --- Batches ------------------------------------------------------------------------------------


class MaskingCollator:
    """Pads texts, and hides 15 % of their tokens for a masked language model to guess.

    Other tokens are hidden each time a text comes (Devlin et al. 2019, section 3.1: 80 % [MASK],
    10 % another token, 10 % left). Rows that bring `labels` are padded and left as they are: a
    held-out set must be the same at every evaluation (see `mask_once`).

    `stream` names the random numbers of an epoch; the trainer sets it. A batch's gaps then depend
    on it and on the batch's texts alone. Batches are made ahead of the step that they are for, so
    without it a run that is resumed within an epoch would not draw what it would have drawn.
    """

    stream: str | None = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, seed: int | None = None) -> None:
        self._mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=seed)
        self._pad = DataCollatorForTokenClassification(tokenizer)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [dict(feature) for feature in features]
        if self.stream is not None:
            name = f"{self.stream}/{[list(row['input_ids']) for row in rows]}"
            number = int.from_bytes(sha256(name.encode()).digest()[:7], "big")
            self._mask.generator = torch.Generator().manual_seed(number)
        return dict((self._pad if "labels" in rows[0] else self._mask)(rows))


def mask_once(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> list[dict[str, Any]]:
    """The rows with tokens hidden once and for all, and `labels` that are −100 elsewhere."""
    collate, masked = MaskingCollator(tokenizer, seed=seed), []
    for row in rows:
        batch = collate([{"input_ids": row["input_ids"]}])
        masked.append({name: batch[name][0].tolist() for name in ("input_ids", "labels")})
    return masked


def collator_for(model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """What makes a batch for this encoder: padding with its mask, and gaps where it fills gaps."""
    kind = alignment_of(model)
    if kind is CAUSAL:
        raise UserError(f"{type(model).__name__} is no encoder: see distillkit.chat.Collator")
    return DataCollatorWithPadding(tokenizer) if kind is CLASSIFIER else MaskingCollator(tokenizer)


# --- Models -------------------------------------------------------------------------------------


def build_masked_lm(
    size: ModelSize, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, dropout: float = 0.1
) -> BertForMaskedLM:
    """A new BERT-style model that fills gaps, with random weights, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForMaskedLM(_config(size, tokenizer, dropout)).float()


def build_classifier(
    size: ModelSize,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    *,
    seed: int = 0,
    dropout: float = 0.1,
) -> BertForSequenceClassification:
    """A new BERT-style classifier with random weights, in float32; `labels` name its logits."""
    config = _config(size, tokenizer, dropout, **_named(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(config).float()


def _named(labels: Sequence[str]) -> dict[str, dict]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
    }


def _config(
    size: ModelSize, tokenizer: PreTrainedTokenizerBase, dropout: float, **named: Any
) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=128,
        type_vocab_size=1,
        initializer_range=size.width**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        **named,
    )
