"""The token microscope: its numbers against those of the other rooms, and its pictures."""

import pytest
import tiny
import torch

from distillkit.chat import encode, encode_rows
from distillkit.dialogues import front_desk
from distillkit.errors import UserError
from distillkit.evaluation import nll
from distillkit.microscope import examine
from distillkit.models import load_model
from distillkit.truth import floor, kl_to_truth

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def desk():
    """A conversation of the front desk, the shipped models, and what the microscope sees."""
    [row] = front_desk(1, seed=8, split="test")
    teacher, tokenizer = load_model("front-desk-teacher")
    student, _ = load_model("front-desk-student")
    models = {"teacher": teacher, "distilled": student}
    return row, tokenizer, models, examine(tokenizer, row["messages"], models)


def test_the_truth_comes_first_and_is_what_the_others_are_compared_to(desk):
    row, tokenizer, models, seen = desk
    assert list(seen.log_probabilities) == ["truth", "teacher", "distilled"]
    assert seen.reference == "truth"
    assert seen.kl("truth").abs().max() == 0
    for role, model in models.items():
        expected = kl_to_truth(model, tokenizer, [row])
        assert seen.kl(role).mean().item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    entropy = torch.special.entr(seen.log_probabilities["truth"].double().exp()).sum(-1)
    assert entropy.mean().item() == pytest.approx(floor(tokenizer, [row]).entropy, rel=1e-5)


def test_what_was_said_has_the_nll_of_the_evaluation(desk):
    row, tokenizer, models, seen = desk
    ids = torch.tensor(encode(tokenizer, row["messages"])["input_ids"])[seen.places]
    for role, model in models.items():
        said = seen.log_probabilities[role].gather(1, ids[:, None]).sum()
        assert -said.item() == pytest.approx(nll(model, encode_rows(tokenizer, [row])).total, 1e-5)


def test_a_token_in_its_context(desk):
    row, _, _, seen = desk
    turns = seen.turns()
    assert len(turns) == sum(message["role"] == "assistant" for message in row["messages"])
    assert [number for turn in turns for number in turn] == list(range(len(seen.places)))
    first = "".join(seen.said(number) for number in turns[0])
    assert first.strip() == row["messages"][1]["content"] + "<|end|>"
    assert seen.before(turns[0][1]).endswith("<|assistant|>" + seen.said(turns[0][0]))


def test_every_role_has_the_same_tokens_and_their_true_chances(desk):
    _, _, _, seen = desk
    number = seen.kl("distilled").argmax().item()
    shown = seen.distributions(number, top=3)
    tokens = {frozenset(chances) for chances in shown.values()}
    assert len(tokens) == 1 and 3 <= len(next(iter(tokens))) <= 9
    for role, chances in shown.items():
        column = seen.log_probabilities[role][number].exp()
        assert max(chances.values()) == pytest.approx(column.max().item())
        assert sum(chances.values()) <= 1 + 1e-6
    assert seen.kls(number) == {
        role: pytest.approx(seen.kl(role)[number].item()) for role in ("teacher", "distilled")
    }


def test_without_a_truth_the_first_model_is_the_reference():
    models = {"teacher": tiny.teacher(), "labels": tiny.student()}
    models["labels"].resize_token_embeddings(len(tiny.TOKENIZER) + 8, mean_resizing=False)
    seen = examine(
        tiny.TOKENIZER, tiny.dialogues(1, longest=1)[0]["messages"], models, with_truth=False
    )
    assert seen.reference == "teacher"
    assert (seen.kl("labels") > 0).all()
    assert len(seen.vocabulary) == len(tiny.TOKENIZER)


def test_tokens_that_read_alike_are_added_up():
    models = {"teacher": tiny.teacher()}
    seen = examine(tiny.TOKENIZER, tiny.dialogues(1)[0]["messages"], models, with_truth=False)
    seen.vocabulary[:] = ["?"] * len(seen.vocabulary)
    assert seen.distributions(0, top=500)["teacher"] == {"?": pytest.approx(1.0)}


def test_nothing_to_look_at_is_refused():
    messages = tiny.dialogues(1)[0]["messages"]
    with pytest.raises(UserError, match="no model"):
        examine(tiny.TOKENIZER, messages, {})
    with pytest.raises(UserError, match="no assistant token"):
        examine(tiny.TOKENIZER, messages[:1], {"teacher": tiny.teacher()}, with_truth=False)
    with pytest.raises(UserError, match="front desk"):
        examine(tiny.TOKENIZER, messages, {"teacher": tiny.teacher()})
