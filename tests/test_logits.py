"""Logits at the labelled positions: the shift, padding on either side, packed conversations."""

import pytest
import tiny
import torch
from trainers import batch_of
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    RobertaConfig,
)

from distillkit.errors import UserError
from distillkit.logits import check_causal, labelled_positions, logits_at

torch.set_num_threads(1)


def test_the_shift():
    labels = torch.tensor([[7, -100, 8, 9], [-100, 6, -100, 5]])
    rows, targets = labelled_positions(tiny.student(), {"labels": labels})
    assert rows.tolist() == [1, 2, 4, 6]
    assert targets.tolist() == [8, 9, 6, 5]


def test_the_first_token_is_not_predicted_from_padding():
    batch = {"labels": torch.tensor([[-100, 7, 8]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    rows, targets = labelled_positions(tiny.student(), batch)
    assert (rows.tolist(), targets.tolist()) == ([1], [8])


SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 32, "max_position_embeddings": 256}
OTHERS = {  # by how they count positions
    "gpt2": GPT2Config(
        vocab_size=130,
        n_positions=256,
        n_embd=16,
        eos_token_id=1,
        bos_token_id=1,
        n_layer=1,
        n_head=2,
    ),
    "bert": BertConfig(vocab_size=130, is_decoder=True, **SHAPE),
    "roberta": RobertaConfig(vocab_size=130, is_decoder=True, pad_token_id=0, **SHAPE),  # from 1
    "bloom": BloomConfig(vocab_size=130, hidden_size=16, n_layer=1, n_head=2),  # from the mask
}


def made(name):
    if name == "llama":
        return tiny.student()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(OTHERS[name]).eval()


@pytest.mark.parametrize("name", ["llama", *OTHERS])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("known", [True, False], ids=["positions given", "positions counted"])
def test_the_head_at_chosen_rows_gives_the_same_logits(name, side, known):
    model, rows = made(name), tiny.encoded(4)
    batch = batch_of(rows, side)
    if not known:
        del batch["position_ids"]
    places, labels = labelled_positions(model, batch)
    alone = [model(torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    wanted = [
        logits[place - 1]
        for row, logits in zip(rows, alone, strict=True)
        for place, label in enumerate(row["labels"])
        if place and label != -100
    ]
    found = logits_at(model, batch, places)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    model.get_output_embeddings = lambda: None  # a model whose head cannot be caught
    torch.testing.assert_close(logits_at(model, batch, places), found, rtol=1e-5, atol=1e-6)
    assert len(labels) == len(found)


def test_packed_conversations_do_not_see_each_other():
    model, rows = tiny.student(), tiny.encoded(2)
    ids = [token for row in rows for token in row["input_ids"]]
    labels = [token for row in rows for token in [-100, *row["labels"][1:]]]
    positions = [place for row in rows for place in range(len(row["input_ids"]))]
    packed = {"input_ids": ids, "labels": labels, "position_ids": positions}
    packed = {name: torch.tensor([values]) for name, values in packed.items()}
    places, _ = labelled_positions(model, packed)
    alone = torch.cat([model(torch.tensor([row["input_ids"]])).logits[0] for row in rows])
    for mask in ({}, {"attention_mask": torch.ones_like(packed["input_ids"])}):
        found = logits_at(model, packed | mask, places)
        if not mask:  # transformers tells packed conversations by their positions where no mask is
            torch.testing.assert_close(found, alone[places], rtol=1e-4, atol=1e-5)
        plain = logits_at(model, {**packed, "position_ids": None}, places)
        assert not torch.allclose(found, plain)  # the positions are used


@pytest.mark.parametrize("name", ["llama", *OTHERS])
def test_a_token_that_is_masked_out_is_as_if_it_were_not_there(name):
    model, (row,) = made(name), tiny.encoded(1)
    batch = batch_of([row])
    batch["labels"] = batch["input_ids"].clone()
    batch["attention_mask"][0, 2] = 0
    batch["labels"][0, 2] = -100
    del batch["position_ids"]
    places, _ = labelled_positions(model, batch)
    without = torch.cat([batch["input_ids"][:, :2], batch["input_ids"][:, 3:]], dim=1)
    alone = model(without).logits[0]
    assert places.tolist() == [0, *range(3, len(row["input_ids"]) - 1)]
    expected = torch.cat([alone[:1], alone[2:-1]])
    torch.testing.assert_close(logits_at(model, batch, places), expected, rtol=1e-4, atol=1e-5)


# --- Models that look ahead ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig])
def test_a_model_that_sees_what_it_has_to_predict_is_refused(kind):
    ahead = AutoModelForCausalLM.from_config(kind(vocab_size=130, **SHAPE)).train()
    with pytest.raises(UserError, match="set is_decoder to true in its config"):
        check_causal(ahead)
    assert ahead.training
    check_causal(AutoModelForCausalLM.from_config(kind(vocab_size=130, is_decoder=True, **SHAPE)))


def test_a_model_that_only_says_it_is_no_decoder_is_admitted():
    config = GPTNeoXConfig(vocab_size=130, **SHAPE)
    assert config.is_decoder is False
    check_causal(AutoModelForCausalLM.from_config(config))
