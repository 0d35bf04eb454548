"""Classifiers and masked language models through the trainer: where their logits and labels are."""

import pytest
import tiny
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from distillkit.encoders import (
    MaskingCollator,
    build_classifier,
    build_masked_lm,
    collator_for,
    encode_intents,
    encode_texts,
    mask_once,
    train_text_tokenizer,
)
from distillkit.errors import UserError
from distillkit.logits import labelled_positions, logits_at
from distillkit.losses import distillation_loss
from distillkit.model_files import classifier_from
from distillkit.models import ModelSize, load_model, save_model
from distillkit.training import DistillationArguments, DistillationTrainer

torch.set_num_threads(1)

TEXTS = [" ".join(row["messages"][0]["content"].split()) for row in tiny.dialogues(40, seed=5)]
TOKENIZER = train_text_tokenizer(TEXTS, 120)
SIZE = ModelSize(16, 2, 2, 32)
LABELS = ("hotel", "train", "oos")
ROWS = [{"text": text, "intent": LABELS[len(text) % 3]} for text in TEXTS[:11]]
SETTINGS = {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "log_level": "error"}
PLAIN = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
PLAIN |= {"max_grad_norm": 0.0, "logging_steps": 1}


def classifier(seed=0, labels=LABELS):
    return build_classifier(SIZE, TOKENIZER, labels, seed=seed, dropout=0.0).double()


def masked_lm(seed=0):
    return build_masked_lm(SIZE, TOKENIZER, seed=seed, dropout=0.0).double()


def trainer_of(folder, student, teacher, rows, **options):
    arguments = DistillationArguments(output_dir=str(folder), **SETTINGS, **options)
    return DistillationTrainer(
        student, teacher, args=arguments, train_dataset=rows, processing_class=TOKENIZER
    )


CASES = {
    "classifier": (classifier, encode_intents(TOKENIZER, ROWS, LABELS)),
    "masked": (masked_lm, mask_once(TOKENIZER, encode_texts(TOKENIZER, TEXTS[:11]), seed=1)),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_loss_is_the_courses_formula_on_logits_that_are_not_shifted(tmp_path, kind):
    build, rows = CASES[kind]
    student, teacher = build(1), build(2)
    trainer = trainer_of(tmp_path, student, teacher, rows, alpha=0.7, temperature=3.0)
    batch = collator_for(student, TOKENIZER)(rows)
    expected = []
    for row in rows:  # each alone: no padding
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"]).view(-1)
        q, p = (model(ids).logits.view(len(labels), -1) for model in (student, teacher))
        chosen = labels != -100
        expected.append((q[chosen], p[chosen], labels[chosen]))
    q, p, labels = (torch.cat(parts) for parts in zip(*expected, strict=True))
    wanted = distillation_loss(q, p, labels, alpha=0.7, temperature=3.0)
    torch.testing.assert_close(trainer.compute_loss(student, batch), wanted)


@pytest.mark.parametrize("kind", CASES)
def test_a_step_does_not_depend_on_how_it_is_cut(tmp_path, kind):
    build, rows = CASES[kind]
    weights = []
    for size, pieces in ((11, 1), (2, 6)):
        student = build(1)
        trainer = trainer_of(
            tmp_path,
            student,
            build(2),
            rows,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=pieces,
            **PLAIN,
        )
        trainer.train()
        weights.append(student.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", CASES)
def test_evaluation_is_the_labels_nll(tmp_path, kind):
    build, rows = CASES[kind]
    model = build(1).eval()
    arguments = DistillationArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=3, **SETTINGS
    )
    trainer = DistillationTrainer(model, args=arguments, processing_class=TOKENIZER)
    total, count, each = 0.0, 0, []
    for row in rows:
        labels = torch.tensor(row["labels"]).view(-1)
        logits = model(torch.tensor([row["input_ids"]])).logits.view(len(labels), -1)
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        each.append(nll.item())
        total, count = total + nll.item(), count + int((labels != -100).sum())
    found = trainer.predict(rows)
    assert found.predictions == pytest.approx(each)
    assert found.metrics["test_loss"] == pytest.approx(total / count)


@pytest.mark.parametrize("config", [DistilBertConfig, RobertaConfig])
def test_padding_of_other_encoders_cannot_be_seen(config):
    shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "hidden_size": 16}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    given = config(vocab_size=len(TOKENIZER), pad_token_id=0, num_labels=3, **shape)
    for auto, rows in zip(
        (AutoModelForSequenceClassification, AutoModelForMaskedLM),
        (rows for _, rows in CASES.values()),
        strict=True,
    ):
        model = auto.from_config(given).eval()
        batch = collator_for(model, TOKENIZER)(rows)
        batch["position_ids"] = batch["attention_mask"].cumsum(1) - 1  # not how RoBERTa counts
        places, labels = labelled_positions(model, batch)
        alone = [model(torch.tensor([row["input_ids"]])).logits for row in rows]
        kept = [
            logits.view(-1, logits.shape[-1])[torch.tensor(row["labels"]).view(-1) != -100]
            for row, logits in zip(rows, alone, strict=True)
        ]
        found = logits_at(model, batch, places)
        torch.testing.assert_close(found, torch.cat(kept), rtol=1e-4, atol=1e-5)
        assert len(labels) == len(found)


def test_masks_are_new_in_training_and_fixed_where_they_are_given():
    rows = encode_texts(TOKENIZER, TEXTS[:8])
    collate = MaskingCollator(TOKENIZER, seed=0)
    first, second = collate(rows), collate(rows)
    assert not torch.equal(first["labels"], second["labels"])
    fixed = mask_once(TOKENIZER, rows, seed=3)
    assert fixed == mask_once(TOKENIZER, rows, seed=3) != mask_once(TOKENIZER, rows, seed=4)
    assert torch.equal(collate(fixed)["labels"], collate(fixed)["labels"])
    for row, before in zip(fixed, rows, strict=True):
        hidden = [at for at, label in enumerate(row["labels"]) if label != -100]
        assert [row["labels"][at] for at in hidden] == [before["input_ids"][at] for at in hidden]
        assert not {0, len(row["labels"]) - 1} & set(hidden)  # [CLS] and [SEP] are never hidden


def test_a_masked_language_model_resumes_exactly_within_an_epoch(tmp_path):
    settings = {"max_steps": 5, "save_steps": 2, "per_device_train_batch_size": 3}
    rows = encode_texts(TOKENIZER, TEXTS[:9])  # three steps an epoch

    def run(folder, seed, resume=None):
        arguments = SETTINGS | settings | {"save_strategy": "steps", "logging_steps": 1}
        models = build_masked_lm(SIZE, TOKENIZER, seed=seed), masked_lm(1)  # with dropout
        trainer = DistillationTrainer(
            *models,
            args=DistillationArguments(output_dir=str(folder), **arguments),
            train_dataset=rows,
            processing_class=TOKENIZER,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "a", 0)
    resumed = run(tmp_path / "b", 5, resume=str(tmp_path / "a" / "checkpoint-2"))
    for mine, its in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_the_gaps_of_an_epoch_are_its_own():
    collator, rows = MaskingCollator(TOKENIZER), encode_texts(TOKENIZER, TEXTS[:8])
    drawn = []
    for stream in ("0/0", "0/1", "1/0", "0/0"):
        collator.stream = stream
        drawn.append(collator(rows)["input_ids"])
    assert torch.equal(drawn[0], drawn[3])
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:3])


def test_the_tokenizer_depends_on_the_texts_alone():
    assert train_text_tokenizer(TEXTS[::-1], 120).get_vocab() == TOKENIZER.get_vocab()
    with pytest.raises(UserError, match="no text"):
        train_text_tokenizer([])


# --- Refusals -----------------------------------------------------------------------------------


def test_classifiers_with_other_classes_are_refused(tmp_path):
    rows = CASES["classifier"][1]
    swapped = classifier(2, ("train", "hotel", "oos"))
    with pytest.raises(UserError, match="class 0 is 'train' to the teacher and 'hotel' to the"):
        trainer_of(tmp_path, classifier(), swapped, rows)
    with pytest.raises(UserError, match="has 2 classes, the student 3: build the student with"):
        trainer_of(tmp_path, classifier(), classifier(2, LABELS[:2]), rows)


def test_models_that_do_different_things_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is a masked language model .* the student a classifier"):
        trainer_of(tmp_path, classifier(), masked_lm(), CASES["classifier"][1])
    with pytest.raises(UserError, match="conversations need a model that reads from left to right"):
        trainer_of(tmp_path, masked_lm(), None, tiny.dialogues(2))


def test_an_intent_that_the_model_does_not_know_is_refused():
    with pytest.raises(UserError, match="'taxi' is none of the 3 intents"):
        encode_intents(TOKENIZER, [{"text": "a cab", "intent": "taxi"}], LABELS)


@pytest.mark.parametrize("labels", [[1.0, 0.0, 1.0], 0.3], ids=["several classes", "regression"])
def test_labels_that_are_not_one_class_a_text_are_refused(tmp_path, labels):
    rows = [{"input_ids": [2, 3], "labels": labels}] * 4
    with pytest.raises(UserError, match="one class a text"):
        trainer_of(tmp_path, classifier(), classifier(1), rows, max_steps=1).train()


def test_rows_without_labels_are_refused(tmp_path):
    rows = [{"input_ids": [2, 3]}] * 4
    with pytest.raises(UserError, match="the batch has no labels"):
        trainer_of(tmp_path, classifier(), classifier(1), rows, max_steps=1).train()


def test_a_model_of_two_networks_is_refused(tmp_path):
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(TOKENIZER), **shape))
    with pytest.raises(UserError, match="reads with one network and writes with another"):
        trainer_of(tmp_path, model, None, [{"input_ids": [2, 3], "labels": [2, 3]}])


@pytest.mark.parametrize("key", ["text", "intent"])
def test_a_row_without_text_or_intent_is_named(key):
    rows = [{"text": "a cab", "intent": LABELS[0]} for _ in range(3)]
    rows[1]["other"] = rows[1].pop(key)
    with pytest.raises(UserError, match=f"row 1 has no '{key}' .found .*other"):
        encode_intents(TOKENIZER, rows, LABELS)


def test_a_length_that_the_ends_alone_fill_is_refused():
    for most in (-1, 0, 1, 2):
        with pytest.raises(UserError, match=f"max_length is {most}, .* give at least 3"):
            encode_texts(TOKENIZER, ["cheap hotel"], max_length=most)
    [row] = encode_texts(TOKENIZER, ["cheap hotel"], max_length=3)
    assert len(row["input_ids"]) == 3


def test_no_texts_are_no_rows():
    assert encode_texts(TOKENIZER, []) == [] and encode_intents(TOKENIZER, [], LABELS) == []


# --- On disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [classifier, masked_lm])
def test_an_encoder_is_loaded_as_what_it_is(tmp_path, build):
    model = build(3).float().eval()
    save_model(model, TOKENIZER, tmp_path / "model")
    loaded, tokenizer = load_model(tmp_path / "model")
    assert type(loaded) is type(model)
    ids = torch.tensor([tokenizer("book the hotel")["input_ids"]])
    assert ids[0, 0] == tokenizer.cls_token_id and ids[0, -1] == tokenizer.sep_token_id
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert loaded.config.id2label == model.config.id2label


def test_a_new_head_is_asked_for_and_never_made_up(tmp_path):
    body = masked_lm(3).float()
    save_model(body, TOKENIZER, tmp_path / "body")
    model, _ = classifier_from(tmp_path / "body", LABELS, seed=1)
    again, _ = classifier_from(tmp_path / "body", LABELS, seed=1)
    assert list(model.config.id2label.values()) == list(LABELS)
    ours, theirs = model.bert.embeddings.state_dict(), body.bert.embeddings.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    body.config.architectures = ["BertForSequenceClassification"]
    body.save_pretrained(tmp_path / "headless")
    TOKENIZER.save_pretrained(tmp_path / "headless")
    path = tmp_path / "headless" / "config.json"
    path.write_text(path.read_text().replace("BertForMaskedLM", "BertForSequenceClassification"))
    with pytest.raises(UserError, match="the weights lack"):
        load_model(tmp_path / "headless")
