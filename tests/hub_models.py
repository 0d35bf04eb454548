"""Small models in the form of those on the hub, each saved with its tokenizer into a folder.

The weights are random, and larger than those that training begins with: no distribution is flat.
"""

from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

import torch
from chat_templates import TEMPLATES, Template, tokenizer_for
from tiny import WORDS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)

from distillkit.models import save_model


def qwen2(
    folder: str | Path,
    *,
    vocab_size: int | None = None,
    template: Template = TEMPLATES["chatml"],
    **shape: Any,
) -> Path:
    """Qwen2.5: its head is wider than its tokenizer, and the more so the larger the model."""
    tokenizer = tokenizer_for(template)
    tokenizer.pad_token = "<|endoftext|>"
    shape |= {"vocab_size": vocab_size or len(tokenizer) + 9, "max_position_embeddings": 2048}
    return _llama_like(folder, Qwen2Config, tokenizer, **shape)


def smollm2(
    folder: str | Path,
    *,
    vocab_size: int | None = None,
    template: Template = TEMPLATES["smollm"],
    **shape: Any,
) -> Path:
    """SmolLM2: what pads is the end of turn. The 135M has width 576, 30 layers, 9 and 3 heads."""
    tokenizer = tokenizer_for(template)
    tokenizer.pad_token = tokenizer.eos_token
    shape |= {"vocab_size": vocab_size or len(tokenizer), "max_position_embeddings": 8192}
    positions = {"rope_type": "default", "rope_theta": 100_000.0}
    return _llama_like(folder, LlamaConfig, tokenizer, rope_parameters=positions, **shape)


def gpt2(
    folder: str | Path,
    *,
    width: int = 24,
    layers: int = 2,
    heads: int = 3,
    template: Template | None = None,
    seed: int = 0,
) -> Path:
    """GPT-2: absolute positions, nothing that pads, dropout, and no chat template of its own."""
    tokenizer = tokenizer_for(template or TEMPLATES["plain"])
    if template is None:
        tokenizer.chat_template = None
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=1024,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        initializer_range=width**-0.5,
        **_ids(tokenizer),
    )
    return _saved(folder, config, tokenizer, seed)


def bert(folder: str | Path, *, template: Template = TEMPLATES["plain"], **shape: Any) -> Path:
    """BERT as a decoder: absolute positions, WordPiece in lower case, a turn ends in [SEP]."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = ascii_lowercase + digits
    pieces = [
        *special,
        *".,:!?",
        *letters,
        *(f"##{letter}" for letter in letters),
        "user",
        "assistant",
        *WORDS,
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
        chat_template=template.text,
    )
    return _bert_like(folder, BertConfig, tokenizer, max_position_embeddings=512, **shape)


def roberta(folder: str | Path, *, template: Template = TEMPLATES["plain"], **shape: Any) -> Path:
    """RoBERTa as a decoder: it counts positions from 2, which is one more than the id that pads."""
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer = tokenizer_for(template._replace(special_tokens=special, eos_token="</s>"))
    tokenizer.pad_token = "<pad>"
    return _bert_like(folder, RobertaConfig, tokenizer, max_position_embeddings=514, **shape)


def _llama_like(
    folder: str | Path,
    kind: type[PreTrainedConfig],
    tokenizer: PreTrainedTokenizerFast,
    *,
    width: int = 24,
    layers: int = 2,
    heads: int = 3,
    kv_heads: int = 1,
    seed: int = 0,
    **more: Any,
) -> Path:
    config = kind(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        initializer_range=width**-0.5,
        **_ids(tokenizer),
        **more,
    )
    return _saved(folder, config, tokenizer, seed)


def _bert_like(
    folder: str | Path,
    kind: type[PreTrainedConfig],
    tokenizer: PreTrainedTokenizerFast,
    *,
    width: int = 24,
    layers: int = 2,
    heads: int = 3,
    is_decoder: bool = True,
    seed: int = 0,
    **more: Any,
) -> Path:
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        is_decoder=is_decoder,
        initializer_range=width**-0.5,
        **_ids(tokenizer),
        **more,
    )
    return _saved(folder, config, tokenizer, seed)


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _saved(
    folder: str | Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return save_model(model, tokenizer, folder)
