"""The trainer on models and tokenizers as the hub has them, and on two of one family."""

import re
from functools import partial

import hub_models
import pytest
import tiny
import torch
from chat_templates import TEMPLATES
from trainers import make_trainer

from distillkit.assistant_turns import render
from distillkit.chat import Collator, encode, encode_rows
from distillkit.decoding import position_limit
from distillkit.distill import distill
from distillkit.errors import UserError
from distillkit.models import load_model

torch.set_num_threads(1)

KINDS = {
    "qwen2": (hub_models.qwen2, "chatml"),
    "qwen2, marked": (hub_models.qwen2, "generation"),
    "smollm2": (hub_models.smollm2, "smollm"),
    "smollm2, marked": (hub_models.smollm2, "smollm marked"),
    "gpt2": (hub_models.gpt2, "plain"),
    "gpt2, marked": (hub_models.gpt2, "plain marked"),
    "bert": (hub_models.bert, "plain"),
    "bert, marked": (hub_models.bert, "plain marked"),
    "roberta": (hub_models.roberta, "plain"),
    "roberta, marked": (hub_models.roberta, "plain marked"),
}
MAKERS = {
    name: partial(maker, template=TEMPLATES[template]) for name, (maker, template) in KINDS.items()
}
UNMARKED = [name for name in KINDS if "marked" not in name]
ROWS = tiny.dialogues(5, seed=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(teacher, student) of a kind, on disk; the student is narrower."""
    place, made = tmp_path_factory.mktemp("hub"), {}

    def pair(name):
        if name not in made:
            folder = place / name.replace(", ", "-")
            made[name] = (
                MAKERS[name](folder / "teacher", width=24, heads=3, seed=1),
                MAKERS[name](folder / "student", width=16, heads=2, layers=1, seed=2),
            )
        return made[name]

    return pair


def loaded(folders, name):
    """Teacher and student in float64, and their tokenizer."""
    (teacher, tokenizer), (student, _) = map(load_model, folders(name))
    return teacher.double(), student.double(), tokenizer


def trainer_of(folder, student, teacher, tokenizer, **options):
    options = {
        "rows": ROWS,
        "processing_class": tokenizer,
        "teacher_tokenizer": tokenizer,
    } | options
    return make_trainer(folder, student, teacher, **options)


def by_hand(student, teacher, rows, *, alpha, temperature, shared=None):
    """α·T²·mean KL(p_T‖q_T) + (1−α)·mean −log q[label], each conversation run on its own."""
    soft, hard = [], []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        q, p = (model(input_ids=ids).logits[0, :-1] for model in (student, teacher))
        log_q, log_p = (
            (each[:, :shared] / temperature).log_softmax(-1) for each in (q, p.detach())
        )
        at = (labels != -100).nonzero().flatten()
        soft.append((log_p.exp() * (log_p - log_q)).sum(-1)[at])
        hard.append(-q.log_softmax(-1)[at, labels[at]])
    return alpha * temperature**2 * torch.cat(soft).mean() + (1 - alpha) * torch.cat(hard).mean()


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


# --- Of one width -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_loss_and_gradient_are_the_formulas_on_each_conversation_alone(
    tmp_path, folders, name, side
):
    teacher, student, tokenizer = loaded(folders, name)
    settings = {"alpha": 0.3, "temperature": 3.0}
    trainer = trainer_of(tmp_path, student, teacher, tokenizer, **settings)
    batch = Collator(tokenizer, padding_side=side)(trainer.train_dataset)
    expected = by_hand(student, teacher, trainer.train_dataset, **settings)
    found = trainer.compute_loss(student, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    theirs = gradients(expected, student)
    for mine, its in zip(gradients(found, student), theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_labels_are_on_every_turn_of_the_assistant_with_its_end(folders, name):
    _, tokenizer = load_model(folders(name)[1])
    template = TEMPLATES[KINDS[name][1]]
    closing = tokenizer.eos_token
    for row in ROWS:
        features = encode(tokenizer, row["messages"])
        runs = re.findall(r"1+", "".join("01"[label != -100] for label in features["labels"]))
        text = render(tokenizer, row["messages"])
        opening = re.escape(template.opening)
        turns = re.findall(f"{opening}(.*?{re.escape(closing)})", text, re.DOTALL)
        ids = [tokenizer(turn, add_special_tokens=False)["input_ids"] for turn in turns]
        spoken = [label for label in features["labels"] if label != -100]
        assert len(turns) == sum(message["role"] == "assistant" for message in row["messages"])
        assert [len(run) for run in runs] == [len(turn) for turn in ids]
        assert spoken == [token for turn in ids for token in turn]


@pytest.mark.parametrize("name", UNMARKED)
def test_a_step_trains(tmp_path, folders, name):
    (teacher, tokenizer), (student, _) = map(load_model, folders(name))
    trainer = trainer_of(
        tmp_path, student, teacher, tokenizer, max_steps=1, learning_rate=3e-3, logging_steps=1
    )
    batch = Collator(tokenizer)(trainer.train_dataset)

    def loss():
        return trainer.compute_loss(student.eval(), batch).item()

    before = loss()
    trainer.train()
    assert loss() < before - 0.02
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(before, rel=0.2)  # GPT-2 and BERT: with dropout
    assert 0 < entry["grad_norm"] < 1e3


@pytest.mark.parametrize("name", UNMARKED)
def test_folders_are_distilled_from_end_to_end(tmp_path, folders, name):
    teacher, student = folders(name)
    settings = {"steps": 2, "eval_every": 1, "batch_size": 4, "learning_rate": 3e-3}
    metrics = distill(teacher, student, ROWS, tiny.dialogues(3), tmp_path / "out", **settings)
    losses = metrics["curves"]["distilled"]["eval_nll"]
    assert min(losses) < losses[0]
    made, tokenizer = load_model(tmp_path / "out")
    assert made.config.hidden_size == 16
    assert encode_rows(tokenizer, ROWS) == encode_rows(load_model(student)[1], ROWS)


def test_messages_without_a_chat_template_are_refused(tmp_path):
    student, tokenizer = load_model(hub_models.gpt2(tmp_path / "gpt2"))
    with pytest.raises(UserError, match="no chat template: set"):
        trainer_of(tmp_path, student, None, tokenizer)


def test_a_bert_that_is_no_decoder_is_refused(tmp_path):
    student, tokenizer = load_model(hub_models.bert(tmp_path / "bert", is_decoder=False))
    with pytest.raises(UserError, match="BertLMHeadModel sees the token that it has to predict"):
        trainer_of(tmp_path, student, None, tokenizer)


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta"])
def test_a_conversation_may_be_as_long_as_there_are_positions(folders, name):
    model, _ = load_model(folders(name)[1])
    limit = position_limit(model)
    assert limit == {"gpt2": 1024, "bert": 512, "roberta": 512}[name]
    model(torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, limit + 1), 5))


# --- Two sizes of a family, whose heads differ in width -----------------------------------------

WIDTHS = pytest.mark.parametrize("widths", [(324, 312), (312, 324)], ids=str)


@pytest.fixture
def family(tmp_path, widths):
    """The folders of a teacher and a student with heads of these widths, for 307 tokens."""
    names = ("teacher", "student")
    return [
        hub_models.qwen2(tmp_path / name, vocab_size=width, seed=width)
        for name, width in zip(names, widths, strict=True)
    ]


@WIDTHS
def test_heads_of_different_width_are_compared_on_the_tokenizers_ids(tmp_path, family):
    (teacher, tokenizer), (student, other) = map(load_model, family)
    teacher, student = teacher.double(), student.double()
    settings = {"alpha": 0.4, "temperature": 2.0}
    trainer = trainer_of(tmp_path, student, teacher, tokenizer, processing_class=other, **settings)
    batch = Collator(tokenizer)(trainer.train_dataset)
    expected = by_hand(student, teacher, trainer.train_dataset, shared=307, **settings)
    assert trainer.compute_loss(student, batch).item() == pytest.approx(expected.item(), rel=1e-9)


@WIDTHS
@pytest.mark.parametrize("missing", ["processing_class", "teacher_tokenizer"])
def test_heads_of_different_width_need_both_tokenizers(tmp_path, family, widths, missing):
    (teacher, tokenizer), (student, _) = map(load_model, family)
    rows = encode_rows(tokenizer, ROWS)
    sentence = "the teacher has {} logits, the student {}: pass both tokenizers".format(*widths)
    with pytest.raises(UserError, match=sentence):
        trainer_of(tmp_path, student, teacher, tokenizer, rows=rows, **{missing: None})


@WIDTHS
def test_heads_of_different_width_are_distilled_from_end_to_end(family):
    metrics = distill(*family, ROWS, ROWS, steps=1, learning_rate=3e-3)
    losses = metrics["curves"]["distilled"]["eval_nll"]
    assert losses[1] < losses[0]
