"""Intents: of the front desk, of files, of CLINC150; and how good a classifier of them is."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from distillkit.classification import Answers, classify
from distillkit.dialogues.intents import (
    FRONT_DESK_INTENTS,
    OUT_OF_SCOPE,
    front_desk_intents,
    intents_of,
    load_intents,
)
from distillkit.encoders import (
    build_classifier,
    build_masked_lm,
    encode_intents,
    train_text_tokenizer,
)
from distillkit.errors import UserError
from distillkit.models import ModelSize

torch.set_num_threads(1)

DATA = Path(__file__).parents[2] / "shared" / "data"
CLINC = DATA / "intents_clinc150.{split}.jsonl"


@pytest.fixture(scope="module")
def rows():
    return {split: front_desk_intents(600, split=split) for split in ("train", "test")}


def test_the_same_seed_gives_the_same_and_a_longer_list_begins_like_a_shorter_one(rows):
    again = "from distillkit.dialogues.intents import *; import json;"
    again += "print(json.dumps(front_desk_intents(50)))"
    out = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == rows["train"][:50]
    assert front_desk_intents(50, seed=1) != rows["train"][:50]
    with pytest.raises(ValueError, match="count is -1"):
        front_desk_intents(-1)


def test_every_intent_occurs_and_no_text_twice(rows):
    for each in rows.values():
        assert len({row["text"] for row in each}) == 600
        counts = Counter(row["intent"] for row in each)
        assert counts.keys() <= set(FRONT_DESK_INTENTS)
        assert len(counts) >= len(FRONT_DESK_INTENTS) - 3
        assert counts[OUT_OF_SCOPE] >= 25
        assert max(counts.values()) < 150  # always saying the commonest is a poor classifier
    assert len(set(FRONT_DESK_INTENTS)) == 34


def test_the_label_is_what_the_words_mean(rows):
    said = {row["text"]: row["intent"] for row in (*rows["train"], *rows["test"])}
    for begin, intent in (("remind me of the name", "recall_name"), ("can you ", OUT_OF_SCOPE)):
        found = {said[text] for text in said if text.startswith(begin)}
        assert found == {intent}
    assert {said[text] for text in said if "what is the platform" in text} == {"ask_platform"}
    hotels = {"find_hotel", "tell_extra", "correct"}
    assert {said[text] for text in said if "a garage" in text} <= hotels


def test_errands_and_names_of_the_test_have_never_been_seen(rows):
    def words(split, intent):
        return {
            word for row in rows[split] if row["intent"] == intent for word in row["text"].split()
        }

    frame = words("train", OUT_OF_SCOPE) & words("test", OUT_OF_SCOPE)
    known = "can could would who i you me want to for around here? a me? my the find lost our"
    assert frame <= set(known.split())
    cities = words("train", "tell_city") & words("test", "tell_city")
    assert not [word for word in cities if word[0].isupper()]
    seen = {row["text"] for row in rows["train"]}
    assert sum(row["text"] in seen for row in rows["test"]) < 0.15 * 600


# --- Files and the hub --------------------------------------------------------------------------


def test_a_file_and_its_faults(tmp_path):
    path = tmp_path / "mine.test.jsonl"
    row = {"text": "a cab", "intent": "taxi", "is_oos": False}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert load_intents(tmp_path / "mine.{split}.jsonl", split="test", limit=1) == [
        {"text": "a cab", "intent": "taxi"}
    ]
    for line in ('{"text": "a cab"}', "[]", "{", '{"text": "", "intent": "taxi"}'):
        path.write_text(json.dumps(row) + "\n" + line)
        with pytest.raises(UserError, match=r"mine.test.jsonl, line 2: expected an object"):
            load_intents(path)
    with pytest.raises(UserError, match="no such file"):
        load_intents(tmp_path / "mine.jsonl")
    assert len(load_intents("front-desk", split="validation", limit=5)) == 5


def test_the_hubs_clinc150_gives_names_for_numbers(monkeypatch):
    from datasets import ClassLabel, Dataset, Features, Value

    from distillkit.dialogues import loading

    features = Features({"text": Value("string"), "intent": ClassLabel(names=["oos", "taxes"])})
    data = Dataset.from_dict({"text": ["a", "b"], "intent": [1, 0]}, features=features)
    asked = []
    monkeypatch.setattr(loading, "_ask_hub", asked.append)
    monkeypatch.setattr(loading, "_load_dataset", lambda *given, **named: data)
    found = load_intents("clinc_oos:plus", split="test")
    assert found == [{"text": "a", "intent": "taxes"}, {"text": "b", "intent": "oos"}]
    assert asked == ["clinc_oos"]
    assert intents_of(found) == ["taxes", "oos"]


@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not there")
def test_clinc150_as_its_authors_count_it():
    for split, count, outside in (("train", 15100, 100), ("validation", 3100, 100)):
        rows = load_intents(CLINC, split=split)
        assert len(rows) == count
        assert sum(row["intent"] == OUT_OF_SCOPE for row in rows) == outside
    assert len(intents_of(rows)) == 151 and intents_of(rows)[-1] == OUT_OF_SCOPE


# --- How good a classifier is -------------------------------------------------------------------


def test_measures_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.5, 0.2, 0.3]])
    found = Answers(probs.log(), torch.tensor([0, 1, 2, 2]), ("a", "b", "oos"))
    assert found.accuracy == 0.5
    assert found.recall_out_of_scope == 0.5
    assert found.nll == pytest.approx(-sum(map(math.log, (0.7, 0.3, 0.8, 0.3))) / 4)
    gaps = (1 - 0.7) + 0.6 + (1 - 0.8) + 0.5  # each in a bin of its own
    assert found.calibration().error == pytest.approx(gaps / 4)
    assert Answers(probs.log(), found.labels, ("a", "b", "c")).accuracy == 0.5


def test_answers_come_in_the_order_of_the_rows_whatever_the_batch(rows):
    texts = rows["train"][:30]
    tokenizer = train_text_tokenizer([row["text"] for row in texts], 300)
    model = build_classifier(ModelSize(16, 1, 2, 32), tokenizer, FRONT_DESK_INTENTS).eval()
    encoded = encode_intents(tokenizer, texts, FRONT_DESK_INTENTS)
    one, many = (classify(model, tokenizer, encoded, batch_size=size) for size in (1, 7))
    torch.testing.assert_close(one.log_probs, many.log_probs, rtol=1e-4, atol=1e-5)
    logits = model(torch.tensor([encoded[3]["input_ids"]])).logits[0]
    torch.testing.assert_close(one.log_probs[3], logits.log_softmax(-1), rtol=1e-4, atol=1e-5)
    assert one.labels.tolist() == [row["labels"] for row in encoded]
    with pytest.raises(UserError, match="no text to classify"):
        classify(model, tokenizer, [])


@pytest.mark.parametrize("label", [-100, 7, -1, None, 1.0, [1, 0, 0]])
def test_a_label_that_is_no_class_of_the_model_is_refused(label):
    tokenizer = train_text_tokenizer(["a cheap hotel"])
    model = build_classifier(ModelSize(8, 1, 2, 16), tokenizer, ["a", "b", "c"])
    rows = [{"input_ids": [2, 3], "labels": 2}, {"input_ids": [2, 3], "labels": label}]
    with pytest.raises(UserError, match=r"label of row 1 is .*: expected one of the model's 3"):
        classify(model, tokenizer, rows)


def test_what_cannot_be_classified_is_refused():
    tokenizer = train_text_tokenizer(["a cheap hotel"])
    model = build_classifier(ModelSize(8, 1, 2, 16), tokenizer, ["a", "b", "c"])
    texts = [{"text": "hotel " * 300, "intent": "b"}]
    rows = [encode_intents(tokenizer, texts, ["a", "b"], max_length=most) for most in (128, 512)]
    assert classify(model, tokenizer, rows[0]).labels.tolist() == [1]
    with pytest.raises(
        UserError, match="the model 128 positions: encode the texts with max_length"
    ):
        classify(model, tokenizer, rows[1])
    with pytest.raises(UserError, match="batch_size is 0: give at least 1"):
        classify(model, tokenizer, rows[0], batch_size=0)


def test_names_belong_to_the_numbers_in_whatever_order_the_configuration_has_them():
    labels = [f"class {number}" for number in range(11)] + ["oos"]
    tokenizer = train_text_tokenizer(["a cheap hotel"])
    model = build_classifier(ModelSize(8, 1, 2, 16), tokenizer, labels)
    by_text = sorted(model.config.id2label.items(), key=lambda pair: str(pair[0]))  # 0, 1, 10, …
    model.config.id2label = dict(by_text)
    answers = classify(model, tokenizer, [{"input_ids": [2, 3], "labels": 11}])
    assert answers.names == tuple(labels) and not answers.in_scope.any()


def test_only_a_classifier_classifies():
    tokenizer = train_text_tokenizer(["a cheap hotel"])
    model = build_masked_lm(ModelSize(8, 1, 2, 16), tokenizer)
    with pytest.raises(UserError, match="is a masked language model"):
        classify(model, tokenizer, [{"input_ids": [2, 3], "labels": 0}])
