"""Fewer words: the same text, the same logits of the words that stay, other ids."""

import copy

import pytest
import tiny
import torch
from chat_templates import TEMPLATES
from hub_models import gpt2, qwen2, smollm2
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distillkit.chat import encode, encode_prompt, encode_rows, read_reply, render
from distillkit.decoding import end_of_turn_ids, generate_replies
from distillkit.dialogues import front_desk
from distillkit.errors import UserError
from distillkit.models import load_model, save_model
from distillkit.pruning import smaller_vocabulary, token_counts, weigh

ODD = "Zyzzyva: 'quokka' #42, at 07:15!"


@pytest.fixture(scope="module")
def desk():
    model, tokenizer = load_model("front-desk-student")
    return model, tokenizer, front_desk(12, seed=3)


def test_what_is_read_is_the_same_with_other_ids(desk):
    model, tokenizer, rows = desk
    encoded = encode_rows(tokenizer, rows)
    smaller, words, kept = smaller_vocabulary(model, tokenizer, token_counts(encoded))
    assert len(words) == len(kept) == smaller.config.vocab_size < 0.8 * len(tokenizer)
    new = {old: number for number, old in enumerate(kept)}
    for row, before in zip(rows, encoded, strict=True):
        after = encode(words, row["messages"])
        assert after["input_ids"] == [new[old] for old in before["input_ids"]]
        assert after["labels"] == [new.get(old, old) for old in before["labels"]]
        assert render(words, row["messages"]) == render(tokenizer, row["messages"])
        assert words.decode(after["input_ids"]) == tokenizer.decode(before["input_ids"])
    assert [words.convert_ids_to_tokens(number) for number in range(len(kept))] == [
        tokenizer.convert_ids_to_tokens(old) for old in kept
    ]


def test_what_is_computed_is_the_same_for_the_words_that_stay(desk):
    model, tokenizer, rows = desk
    encoded = encode_rows(tokenizer, rows[:2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller, words, kept = smaller_vocabulary(model, tokenizer, token_counts(encoded))
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight
    assert weigh(model).saved - weigh(smaller).saved == 4 * 96 * (len(tokenizer) - len(words))
    for row in rows[:2]:
        ids = torch.tensor([encode(tokenizer, row["messages"])["input_ids"]])
        new_ids = torch.tensor([encode(words, row["messages"])["input_ids"]])
        with torch.no_grad():
            torch.testing.assert_close(smaller(new_ids).logits, model(ids).logits[..., kept])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(tokenizer) == 1024


def test_it_is_saved_and_speaks_as_before(desk, tmp_path):
    model, tokenizer, rows = desk
    kept = token_counts(encode_rows(tokenizer, rows + front_desk(60, seed=8)))
    smaller, words, _ = smaller_vocabulary(model, tokenizer, kept)
    save_model(smaller, words, tmp_path / "smaller")
    loaded, loaded_words = load_model(tmp_path / "smaller")
    assert loaded_words.get_vocab() == words.get_vocab()
    assert loaded_words.chat_template == tokenizer.chat_template
    for name in ("eos_token", "pad_token", "unk_token", "all_special_tokens"):
        assert getattr(loaded_words, name) == getattr(words, name) == getattr(tokenizer, name)
    prompt = rows[0]["messages"][:1]
    said = []
    for each, its in ((model, tokenizer), (loaded, loaded_words)):
        assert end_of_turn_ids(each, its) == {its.eos_token_id}
        reply = generate_replies(each, its, [encode_prompt(its, prompt)])[0]
        said.append(read_reply(its, reply))
    assert said[0] == said[1] and (said[0]["content"] or said[0].get("tool_calls"))


def test_any_text_can_still_be_spelled(desk):
    model, tokenizer, _ = desk
    _, words, kept = smaller_vocabulary(model, tokenizer, [tokenizer.eos_token_id])
    assert len(kept) < 150  # letters and markers
    for text in (ODD, " please book it"):
        ids = words(text, add_special_tokens=False)["input_ids"]
        assert words.decode(ids) == text and words.unk_token_id not in ids


@pytest.mark.parametrize("build", [qwen2, smollm2])
def test_models_of_the_hub(build, tmp_path):
    """Their heads may be wider than their tokenizers, and what ends a turn may be what pads."""
    model, tokenizer = load_model(build(tmp_path / "model"))
    rows = tiny.dialogues(3)
    encoded = encode_rows(tokenizer, rows)
    smaller, words, kept = smaller_vocabulary(
        model, tokenizer, token_counts(encoded), needed=encoded
    )
    save_model(smaller, words, tmp_path / "smaller")
    loaded, its = load_model(tmp_path / "smaller")
    assert loaded.config.vocab_size == len(its) < len(tokenizer)
    assert its.convert_ids_to_tokens(loaded.config.eos_token_id) == tokenizer.eos_token
    assert its.convert_ids_to_tokens(loaded.config.pad_token_id) == tokenizer.pad_token
    for row, before in zip(rows, encoded, strict=True):
        after = encode(its, row["messages"])
        assert [kept[number] for number in after["input_ids"]] == before["input_ids"]
        assert its.decode(after["input_ids"]) == tokenizer.decode(before["input_ids"])
        with torch.no_grad():
            torch.testing.assert_close(
                loaded(torch.tensor([after["input_ids"]])).logits,
                model(torch.tensor([before["input_ids"]])).logits[..., kept],
            )


# --- other kinds of tokenizers --------------------------------------------------------------------


SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]  # the last ids, so that they move
LETTERS = list("abcdefghinorstuvwy")


def word_level():
    core = Tokenizer(models.WordLevel(_numbered(["one", "two", "book", *SPECIAL]), "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return core, "two book", ["two", "book"]


def word_piece():
    tokens = [*LETTERS, *(f"##{letter}" for letter in LETTERS), "bo", "##ok", "##k"]
    core = Tokenizer(
        models.WordPiece(_numbered([*tokens, "book", "##ing", *SPECIAL]), unk_token="<unk>")
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return core, "booking", ["book", "##ing"]


def unigram():
    scored = [(letter, -9.0) for letter in "▁kbonieg"] + [("boo", -5.0)]
    scored += [("▁book", -3.0), ("ing", -4.0)] + [(token, 0.0) for token in SPECIAL]
    core = Tokenizer(models.Unigram(scored, unk_id=len(scored) - 3))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return core, "booking", ["▁book", "ing"]


def byte_fallback():
    """As of Llama 2: blanks are letters, and unknown letters are spelled in bytes."""
    pairs = [("b", "o"), ("o", "k"), ("bo", "ok"), ("▁", "book"), ("i", "n"), ("in", "g")]
    pairs.append(("o", "n"))
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "k", *LETTERS]
    tokens += ["".join(pair) for pair in pairs]
    core = Tokenizer(
        models.BPE(_numbered([*tokens, *SPECIAL]), pairs, byte_fallback=True, unk_token="<unk>")
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return core, "booking", ["▁book", "ing"]


def suffix():
    """As of CLIP: the last letter of a word is another one."""
    pairs = [("b", "o"), ("o", "k</w>"), ("bo", "ok</w>"), ("i", "n")]
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in [*LETTERS, "k"])]
    tokens += ["".join(pair) for pair in pairs]
    core = Tokenizer(
        models.BPE(
            _numbered([*tokens, *SPECIAL]), pairs, end_of_word_suffix="</w>", unk_token="<unk>"
        )
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder()
    return core, "book", ["book</w>"]


def a_tokenizer(build):
    """(tokenizer, a text of it, the pieces of that text)."""
    core, text, pieces = build()
    first, last = (("<s>", core.token_to_id("<s>")), ("</s>", core.token_to_id("</s>")))
    if build is suffix:
        core.post_processor = processors.BertProcessing(last, first)
    else:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[first, last]
        )
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **named), text, pieces


def _numbered(tokens):
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def a_model(size):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    ids = {"bos_token_id": size - 2, "eos_token_id": [size - 1, 2], "pad_token_id": size - 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, num_attention_heads=2, **shape, **ids))


@pytest.mark.parametrize("kind", [word_level, word_piece, unigram, byte_fallback, suffix])
def test_every_kind_of_tokenizer_splits_kept_words_as_before(kind):
    tokenizer, text, pieces = a_tokenizer(kind)
    assert tokenizer.tokenize(text) == pieces
    ids = tokenizer.convert_tokens_to_ids(pieces)
    _, words, kept = smaller_vocabulary(a_model(len(tokenizer)), tokenizer, ids)
    assert len(words) == len(kept) < len(tokenizer)
    assert words.tokenize(text) == pieces
    for each in (text, "one"):
        before, after = tokenizer(each)["input_ids"], words(each)["input_ids"]
        if each == text or kind is not word_level:
            assert words.decode(after) == tokenizer.decode(before)
        assert after[0] == words.bos_token_id and after[-1] == words.eos_token_id
    if kind is word_level:
        assert words.tokenize("one") == ["<unk>"]
    if kind is byte_fallback:
        assert words.decode(words("é")["input_ids"], skip_special_tokens=True).strip() == "é"


def test_ids_in_the_settings_follow_their_tokens():
    tokenizer, _, pieces = a_tokenizer(word_level)
    model = a_model(len(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(pieces)
    smaller, words, kept = smaller_vocabulary(model, tokenizer, ids)
    assert kept == [1, 2, 3, 4, 5, 6]
    assert smaller.config.eos_token_id == [5, 1] == smaller.generation_config.eos_token_id
    assert smaller.config.pad_token_id == smaller.model.embed_tokens.padding_idx == 2
    assert words.eos_token_id == 5 and words.pad_token_id == 2
    assert model.config.eos_token_id == [6, 2]


def test_llama_3_has_its_template_of_ids_and_a_turn_that_ends_otherwise(tmp_path):
    model, tokenizer = load_model(smollm2(tmp_path / "model", template=TEMPLATES["llama3"]))
    prompt = [{"role": "user", "content": "the hotel"}]
    before = encode_prompt(tokenizer, prompt)
    _, words, kept = smaller_vocabulary(model, tokenizer, before)
    assert [kept[number] for number in encode_prompt(words, prompt)] == before
    assert set(tokenizer.all_special_tokens) == set(words.all_special_tokens)


# --- what cannot be -------------------------------------------------------------------------------


def test_a_token_that_a_text_needs_is_named(desk):
    model, tokenizer, rows = desk
    encoded = encode_rows(tokenizer, rows[:3])
    counts = token_counts(encoded)
    rarest = next(
        token
        for token, _ in reversed(counts.most_common())
        if len(tokenizer.convert_ids_to_tokens(token)) > 8 and token > 20
    )
    token = tokenizer.convert_ids_to_tokens(rarest)
    with pytest.raises(UserError, match=f"needs the token '{token}' .id {rarest}., which is not"):
        smaller_vocabulary(model, tokenizer, set(counts) - {rarest}, needed=encoded)


def test_what_cannot_be_kept_is_refused(desk, tmp_path):
    model, tokenizer, _ = desk
    with pytest.raises(UserError, match="found 0 ids to keep"):
        smaller_vocabulary(model, tokenizer, [])
    with pytest.raises(UserError, match=r"found 2 ids to keep, among them \[5000\]"):
        smaller_vocabulary(model, tokenizer, [5, 5000])
    with pytest.raises(UserError, match="expected the weights of a Llama-style model"):
        smaller_vocabulary(*load_model(gpt2(tmp_path / "gpt2")), [1])
    slow = copy.copy(tokenizer)
    slow.__class__ = type("Slow", (), {})
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        smaller_vocabulary(model, slow, [1])
