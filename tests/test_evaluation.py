"""Evaluation against slow, obvious versions of itself: loops, plain generate, numbers by hand."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distillkit import evaluation
from distillkit.chat import encode, encode_prompt, encode_rows, read_reply, train_tokenizer
from distillkit.decoding import decode, end_of_turn_ids, evaluating
from distillkit.dialogues import front_desk, true_replies
from distillkit.errors import UserError
from distillkit.evaluation import (
    agreement,
    bootstrap_interval,
    calibration_error,
    chrf,
    distinct_n,
    generate_replies,
    nll,
    paired_difference_interval,
    paired_ratio_interval,
    play,
    scored_batches,
    task_success,
)
from distillkit.models import ModelSize, build_model
from distillkit.truth import excess_nll, floor, kl_to_truth, truth


@pytest.fixture(scope="module")
def rows():
    return front_desk(40)


@pytest.fixture(scope="module")
def tokenizer(rows):
    return train_tokenizer(rows, vocab_size=400)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Random and loud: its greedy replies differ with the context, and end now and then."""
    model = build_model(ModelSize(32, 2, 2, 64), tokenizer, seed=1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.mul_(12)
    ends = [tokenizer.eos_token_id, *range(8, len(tokenizer), 9)]
    model.generation_config.eos_token_id = ends
    return model.eval()


def generate(model, prompt, max_reply_tokens):
    """The library's own greedy decoding, one conversation at a time."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_reply_tokens,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


# Decoding ------------------------------------------------------------------------------------


def test_replies_equal_plain_generation(model, tokenizer, rows):
    prompts = [
        encode_prompt(tokenizer, row["messages"][:cut]) for row in rows[:6] for cut in (1, 3)
    ]
    wanted = [generate(model, prompt, 20) for prompt in prompts]
    assert len({tuple(reply) for reply in wanted}) > 6
    assert {len(reply) == 20 for reply in wanted} == {True, False}
    for batch_size in (1, 5, 64):
        found = generate_replies(
            model, tokenizer, prompts, max_reply_tokens=20, batch_size=batch_size
        )
        assert found == wanted


class Patient:
    """A visitor who takes any answer and leaves after a few, to compare whole transcripts."""

    def __init__(self, seed, split="test"):
        source = front_desk(1, seed=seed, split=split)[0]["messages"]
        self.words = [message for message in source if message["role"] in ("user", "tool")]
        self.messages = [self.words.pop(0)]
        self.turns = 2 + seed % 4
        self.failure = None

    @property
    def done(self):
        return self.turns == 0 or not self.words

    @property
    def success(self):
        return sum(len(message["content"]) for message in self.messages) % 2 == 0

    def reply(self, message):
        self.messages += [message, self.words.pop(0)]
        self.turns -= 1


def test_a_whole_conversation_equals_plain_generation(model, tokenizer, monkeypatch):
    """The replies of a random model are spelt as no tokenizer would: each turn starts over."""
    served = []

    def visitor(seed, split):
        served.append(Patient(seed, split))
        return served[-1]

    monkeypatch.setattr(evaluation, "Visit", visitor)
    found = task_success(model, tokenizer, visits=7, batch_size=3, max_reply_tokens=12)
    transcripts = [visit.messages for visit in served]
    served.clear()

    def policy(messages):
        return read_reply(tokenizer, generate(model, encode_prompt(tokenizer, messages), 12))

    wanted = play(policy, visits=7)
    assert transcripts == [visit.messages for visit in served]
    assert len({len(messages) for messages in transcripts}) > 2
    assert found == wanted


def test_a_conversation_that_goes_on_is_not_read_again(model, monkeypatch):
    """Where each prompt extends the one before, every token is fed once; else it starts over."""
    fed = Counter()
    forward = type(model).forward
    monkeypatch.setattr(
        type(model),
        "forward",
        lambda self, ids, **more: fed.update(tokens=ids.numel()) or forward(self, ids, **more),
    )

    def conversation(rewrites):
        ids = [9, 10, 11]
        for _ in range(4):
            ids = [*ids, *(yield ids), 12, 13, 14]
            ids = ids[1:] if rewrites else ids

    def cost(rewrites):
        fed.clear()
        decode(model, [conversation(rewrites)], end_ids=[-1], max_reply_tokens=5)
        return fed["tokens"]

    assert cost(False) == 4 * 3 + 4 * 5 - 1
    assert cost(True) == sum(3 + 7 * turn + 5 - 1 for turn in range(4))


@pytest.mark.parametrize("rewrites", [False, True])
def test_rewritten_history_and_batches_change_nothing(model, rewrites):
    heard = {}

    def conversation(number):
        ids = list(range(20 + number, 23 + 2 * number))
        for turn in range(1 + number % 3):
            reply = yield ids
            heard.setdefault(number, []).append((list(ids), reply))
            ids = [*(ids[1:] if rewrites else ids), *reply, 7, 8 + turn]

    decode(
        model,
        [conversation(number) for number in range(8)],
        end_ids=end_of_turn_ids(model, SimpleNamespace(eos_token_id=1)),
        max_reply_tokens=6,
        batch_size=5,
    )
    assert {number: len(turns) for number, turns in heard.items()} == {
        number: 1 + number % 3 for number in range(8)
    }
    for prompt, reply in (turn for turns in heard.values() for turn in turns):
        assert reply == generate(model, prompt, 6)


def test_a_prompt_that_does_not_fit_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="exceed the model's 2048 positions"):
        generate_replies(model, tokenizer, [[9] * 2030], max_reply_tokens=25)


def test_the_mode_of_the_model_is_restored(model):
    model.train()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.training
        raise RuntimeError
    assert model.training
    model.eval()


# Task success --------------------------------------------------------------------------------


def test_the_oracle_always_succeeds_and_trivial_policies_never_do():
    oracle = play(lambda messages: true_replies(messages)[0][1], visits=60)
    assert oracle.rate == 1.0 and oracle.interval() == (1.0, 1.0) and not oracle.failures
    for words in ("Goodbye.", "What part of town do you prefer?", ""):
        trivial = play(lambda _, words=words: {"role": "assistant", "content": words}, visits=60)
        assert trivial.rate <= 0.05
        assert sum(trivial.failures.values()) == trivial.successes.count(False)


def test_a_random_model_fails_every_visit(model, tokenizer):
    result = task_success(model, tokenizer, visits=12, max_reply_tokens=10)
    assert result.rate == 0.0 and result.failures.total() == 12
    assert result == task_success(model, tokenizer, visits=12, max_reply_tokens=10, batch_size=5)


def test_a_conversation_that_outgrows_the_model_has_failed(tokenizer):
    short = build_model(ModelSize(16, 1, 2, 16), tokenizer, max_positions=16)
    result = task_success(short, tokenizer, visits=3, max_reply_tokens=10)
    assert result.failures == Counter({"the conversation grew too long": 3})


def test_other_seeds_and_splits_are_other_visits():
    words = []
    for seed, split in ((0, "test"), (1, "test"), (0, "development")):
        visitors = evaluation._visitors(20, seed, split)
        words.append([visit.messages[0]["content"] for visit in visitors])
    assert words[0] != words[1] and words[0] != words[2]


# Likelihood, agreement, calibration ----------------------------------------------------------


def test_nll_equals_a_loop_whatever_the_batches(model, tokenizer, rows):
    encoded = encode_rows(tokenizer, rows[:9])
    sums = []
    for each in encoded:
        logits = model(torch.tensor([each["input_ids"]])).logits[0].detach().double()
        total = 0.0
        for position in range(1, len(each["labels"])):
            if each["labels"][position] != -100:
                chances = logits[position - 1] - torch.logsumexp(logits[position - 1], 0)
                total -= float(chances[each["labels"][position]])
        sums.append(total)
    valid = [sum(label != -100 for label in each["labels"]) for each in encoded]
    for batch_tokens in (None, 1, 700):
        found = nll(model, encoded, batch_tokens=batch_tokens)
        assert found.per_dialogue == pytest.approx(sums, rel=1e-5)
        assert found.tokens_per_dialogue == valid
    assert found.per_token == pytest.approx(sum(sums) / sum(valid), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.per_token))


def test_nothing_to_score_is_refused(model):
    with pytest.raises(UserError, match="no assistant token"):
        nll(model, [{"input_ids": [9, 10], "labels": [-100, -100]}])


class Bigrams(torch.nn.Module):
    """A model that is a table: the logits after token i are its row i."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)
        self.config = SimpleNamespace(vocab_size=self.logits.shape[1])
        self.device = torch.device("cpu")

    def forward(self, ids, **_):
        return SimpleNamespace(logits=self.logits[ids])


def test_calibration_error_by_hand():
    """Half the tokens at confidence 0.9, all right; half at 0.6, one in four right."""
    table = Bigrams([[math.log(9), 0.0], [math.log(2 / 3), 0.0]])
    encoded = [
        {"input_ids": [0, 0, 0, 0, 0], "labels": [-100, 0, 0, 0, 0]},
        {"input_ids": [1, 0, 1, 0, 1, 0, 1, 1], "labels": [-100, 0, -100, 0, -100, 0, -100, 1]},
    ]
    result = calibration_error(table, encoded, bins=10)
    assert result.error == pytest.approx((4 * abs(1 - 0.9) + 4 * abs(0.25 - 0.6)) / 8)
    first, second = result.bins
    assert (first.count, first.accuracy, second.count, second.accuracy) == (4, 0.25, 4, 1.0)
    assert first.confidence == pytest.approx(0.6) and second.confidence == pytest.approx(0.9)
    assert (first.low, first.high) == (0.5, 0.6) or (first.low, first.high) == (0.6, 0.7)


def test_agreement_equals_a_loop_and_cuts_padded_heads(model, tokenizer, rows):
    encoded = encode_rows(tokenizer, rows[:5])
    other = build_model(ModelSize(16, 1, 2, 16), tokenizer, seed=3)
    other.resize_token_embeddings(len(tokenizer) + 13)
    same = []
    for each in encoded:
        ids = torch.tensor([each["input_ids"]])
        mine = model(ids).logits[0].argmax(-1)
        theirs = other(ids).logits[0, :, : len(tokenizer)].argmax(-1)
        for position in range(1, len(each["labels"])):
            if each["labels"][position] != -100:
                same.append(bool(mine[position - 1] == theirs[position - 1]))
    assert agreement(model, other, encoded) == pytest.approx(np.mean(same))
    assert agreement(model, model, encoded, batch_tokens=500) == 1.0


def test_scores_read_in_turn_leave_training_possible(model, tokenizer, rows):
    encoded = encode_rows(tokenizer, rows[:5])
    agreement(model, model, encoded, batch_tokens=500)
    half_read = scored_batches(model, encoded, batch_tokens=500)
    next(half_read)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# The truth -----------------------------------------------------------------------------------


def test_the_truth_of_a_reply_is_the_product_of_its_tokens(tokenizer, rows):
    for row in rows[:8]:
        messages = row["messages"]
        found = truth(tokenizer, messages)
        encoded = encode(tokenizer, messages)
        at = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            log_p, start = 0.0, len(encode_prompt(tokenizer, messages[:index]))
            assert found[at:start] == [None] * (start - at)
            at = len(encode(tokenizer, messages[: index + 1])["input_ids"])
            for step, token in zip(found[start:at], encoded["input_ids"][start:at], strict=True):
                assert math.fsum(step.values()) == pytest.approx(1)
                log_p += math.log(step[token])
            chance = sum(p for p, reply in true_replies(messages[:index]) if reply == message)
            assert math.exp(log_p) == pytest.approx(chance, rel=1e-9)


class TrueModel(torch.nn.Module):
    """The truth in the clothes of a model."""

    def __init__(self, tokenizer, rows):
        super().__init__()
        self.rows = [
            (encode(tokenizer, row["messages"])["input_ids"], truth(tokenizer, row["messages"]))
            for row in rows
        ]
        self.config = SimpleNamespace(vocab_size=len(tokenizer))
        self.device = torch.device("cpu")

    def forward(self, ids_BS, **_):
        logits = torch.full((*ids_BS.shape, self.config.vocab_size), -40.0)
        for number, ids in enumerate(ids_BS.tolist()):
            steps = next(steps for known, steps in self.rows if ids[: len(known)] == known)
            for position, step in enumerate(steps[1:]):
                for token, chance in (step or {}).items():
                    logits[number, position, token] = math.log(chance)
        return SimpleNamespace(logits=logits)


def test_the_truth_itself_scores_the_floor(tokenizer, rows):
    rows = rows[:8]
    best, true_model = floor(tokenizer, rows), TrueModel(tokenizer, rows)
    scored = nll(true_model, encode_rows(tokenizer, rows))
    assert scored.per_dialogue == pytest.approx(best.nll.per_dialogue, rel=1e-4)
    assert scored.tokens_per_dialogue == best.nll.tokens_per_dialogue
    assert kl_to_truth(true_model, tokenizer, rows) == pytest.approx(0, abs=1e-5)
    assert excess_nll(true_model, tokenizer, rows) == pytest.approx(0, abs=1e-5)


def test_the_entropy_is_what_the_floor_tends_to(tokenizer):
    best = floor(tokenizer, front_desk(60, seed=5))
    assert 0.02 < best.entropy < 0.5
    assert best.nll.per_token == pytest.approx(best.entropy, rel=0.08)


def test_kl_to_truth_is_the_expected_excess(model, tokenizer, rows):
    kl = kl_to_truth(model, tokenizer, rows)
    assert 0 < kl == pytest.approx(excess_nll(model, tokenizer, rows), rel=0.05)


def test_a_conversation_of_somebody_else_has_no_known_truth(tokenizer, rows):
    messages = [rows[0]["messages"][0], {"role": "assistant", "content": "Ahoy, landlubber!"}]
    with pytest.raises(UserError, match="front desk"):
        truth(tokenizer, messages)


# Intervals -----------------------------------------------------------------------------------


def test_the_bootstrap_is_deterministic_and_near_theory():
    values = np.random.default_rng(1).random((1, 400)) < 0.3
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    rate = values.mean()
    error = 1.96 * math.sqrt(rate * (1 - rate) / 400)
    assert (low, high) == pytest.approx((rate - error, rate + error), abs=0.008)


def test_the_bootstrap_resamples_seeds_and_goals():
    hard = np.tile(np.arange(100) < 50, (4, 1))  # the same goals fail for every seed
    weak = np.tile((np.arange(4) < 2)[:, None], (1, 100))  # whole seeds fail

    def width(values):
        low, high = bootstrap_interval(values)
        return high - low

    assert width(hard) == pytest.approx(2 * 1.96 * 0.05, abs=0.02)
    assert width(weak) == 1.0  # 2 of 4 seeds: in a sixteenth of the samples none, or all
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)
    assert bootstrap_interval([1, 2, 3, 4, 5]) == bootstrap_interval([[1], [2], [3], [4], [5]])


def test_pairs_cancel_what_they_share():
    goals = np.random.default_rng(0).normal(size=(5, 200))
    low, high = paired_difference_interval(goals + 0.1, goals)
    assert (low, high) == pytest.approx((0.1, 0.1))
    with pytest.raises(UserError, match="the same seeds and goals"):
        paired_difference_interval(goals, goals[:4])


def test_the_interval_of_a_quotient_is_that_of_the_means():
    kls = np.random.default_rng(0).exponential(size=(1, 300))
    assert paired_ratio_interval(3 * kls, kls) == pytest.approx((3, 3))
    low, high = paired_ratio_interval(np.random.default_rng(1).permuted(kls, axis=1), kls)
    assert 0.7 < low < 1 < high < 1.4
    for second in (kls[:, :9], -kls, 0 * kls):
        with pytest.raises(UserError, match="never below zero"):
            paired_ratio_interval(kls, second)


@pytest.mark.parametrize("values", [[], [[]], [1.0, math.nan], 3.0, np.zeros((2, 2, 2))])
def test_values_without_an_interval_are_refused(values):
    with pytest.raises(UserError, match="expected finite numbers"):
        bootstrap_interval(values)


# Texts ---------------------------------------------------------------------------------------


def test_distinct_n_by_hand():
    assert distinct_n(["a b a b"], n=1) == 0.5
    assert distinct_n(["a b a b"], n=2) == pytest.approx(2 / 3)
    assert distinct_n(["a", "b"], n=2) == 0.0


def test_chrf_equals_sacrebleu():
    """The numbers are sacreBLEU 2's corpus_chrf; the last one is 1 of 10 characters by hand."""
    pairs = [
        (["the cat sat on the mat"], ["the cat is on the mat"], 64.5779420625287),
        (
            ["Your table is booked .", "I am sorry , no hotel found ."],
            ["The table has been booked .", "Sorry , I found no hotel ."],
            44.892822524900886,
        ),
        (["c", "bcc ", " aa"], [" c", "c", " caacb"], 45.70747217806041),
        (["good day"], ["good day"], 100.0),
        (["xyz"], ["abc"], 0.0),
        ([""], [""], 0.0),
        (["hello there general"], ["hi"], 10.0),
    ]
    for hypotheses, references, wanted in pairs:
        assert chrf(hypotheses, references) == pytest.approx(wanted, abs=1e-9)


def test_chrf_needs_as_many_references():
    with pytest.raises(ValueError, match="shorter"):
        chrf(["a", "b"], ["a"])
