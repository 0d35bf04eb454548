"""Muon and AdamW as one optimizer: every weight once, one schedule, exact resume."""

import copy

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from distillkit.optimizers import Combined, muon


def test_every_weight_is_trained_once_and_only_hidden_matrices_by_muon():
    model = tiny.student()
    optimizer, _ = muon(model, steps=10, learning_rate=1e-3)
    hidden, rest = (
        {id(p) for group in part.param_groups for p in group["params"]} for part in optimizer.parts
    )
    assert not hidden & rest
    assert hidden | rest == {id(p) for p in model.parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in hidden}
    assert names and all("self_attn" in name or "mlp" in name for name in names)


def test_an_untied_head_and_learned_positions_are_not_hidden():
    config = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config)
    optimizer, _ = muon(model, steps=10, learning_rate=1e-3)
    hidden = {id(p) for group in optimizer.parts[0].param_groups for p in group["params"]}
    for outer in (model.lm_head, model.transformer.wte, model.transformer.wpe):
        assert id(outer.weight) not in hidden


def test_the_rate_rises_stays_and_falls():
    optimizer, schedule = muon(tiny.student(), steps=100, learning_rate=2.0, warmup=10, decay=0.4)
    rates = []
    for _ in range(100):
        rates.append({group["lr"] for part in optimizer.parts for group in part.param_groups})
        optimizer.step()
        schedule.step()
    assert all(len(rate) == 1 for rate in rates)  # the schedule reaches both parts
    rates = [rate.pop() for rate in rates]
    assert rates[0] == pytest.approx(0.2) and rates[9:60] == pytest.approx([2.0] * 51)
    assert rates[80] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.05)


def test_a_saved_and_loaded_optimizer_goes_on_as_if_nothing_had_happened():
    def steps(model: torch.nn.Module, pair: tuple, first: int, last: int) -> None:
        for number in range(first, last):
            ids = torch.arange(number, number + 12)[None] % len(tiny.TOKENIZER)
            model(input_ids=ids, labels=ids).loss.backward()
            pair[0].step()
            pair[1].step()
            pair[0].zero_grad()

    whole = tiny.student()
    pair = muon(whole, steps=20, learning_rate=1e-2)
    steps(whole, pair, 0, 3)
    saved = copy.deepcopy((whole.state_dict(), pair[0].state_dict(), pair[1].state_dict()))
    steps(whole, pair, 3, 6)

    resumed = tiny.student(seed=9)
    resumed.load_state_dict(saved[0])
    other = muon(resumed, steps=20, learning_rate=1e-2)
    other[0].load_state_dict(saved[1])
    other[1].load_state_dict(saved[2])
    steps(resumed, other, 3, 6)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert isinstance(pair[0], Combined)


def test_it_learns():
    model = tiny.student()
    optimizer, _ = muon(model, steps=30, learning_rate=1e-2, warmup=1)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    losses = []
    for _ in range(30):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
