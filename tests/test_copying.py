"""Copied tokens: which they are, and that their likelihood is told apart."""

import pytest
import tiny
import torch

from distillkit.chat import encode, encode_rows
from distillkit.copying import copied_tokens, nll_by_origin
from distillkit.dialogues import front_desk
from distillkit.evaluation import nll
from distillkit.models import load_model

torch.set_num_threads(1)

TALK = [
    {"role": "user", "content": "a train to Holby, for 2"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "search", "arguments": {"domain": "train", "city": "Holby"}},
            }
        ],
    },
    {"role": "tool", "content": "R95, 50, 9 pm; R7, 60, 8 am"},
    {"role": "assistant", "content": "R95 at 9 pm, or R96 at 8 am. Would Holby do for 2?"},
    {"role": "user", "content": "yes"},
    {"role": "assistant", "content": "R95, then. That is 5 or 50 pounds"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("front-desk-teacher")[1]


def test_names_and_numbers_that_others_have_said_are_copied(tokenizer):
    ids = encode(tokenizer, TALK)["input_ids"]
    marks = copied_tokens(tokenizer, TALK)
    turns, last = [], None
    for token, mark in zip(ids, marks, strict=True):
        if mark is not None:
            if last is None:
                turns.append("")
            text = tokenizer.decode([token])
            turns[-1] += f"[{text.strip()}]" if mark else text
        last = mark
    merged = [turn.replace("][", "") for turn in turns]
    assert merged == [
        "<|call|> search domain train, city[Holby]<|end|>",
        "[R95] at[9] pm, or R96 at[8] am. Would[Holby] do for[2]?<|end|>",  # R96: nobody said it
        "[R95], then. That is 5 or[50] pounds<|end|>",
    ]


def test_marks_stand_where_labels_stand(tokenizer):
    for row in front_desk(20, seed=1, split="test"):
        labels = encode(tokenizer, row["messages"])["labels"]
        marks = copied_tokens(tokenizer, row["messages"])
        assert [mark is not None for mark in marks] == [label != -100 for label in labels]
        assert any(marks)


def test_both_kinds_together_are_the_nll(tokenizer):
    model, rows = load_model("front-desk-student")[0], front_desk(6, seed=2, split="test")
    marks = [mark for row in rows for mark in copied_tokens(tokenizer, row["messages"])]
    copied, own = marks.count(True), marks.count(False)
    parts = nll_by_origin(model, tokenizer, rows)
    whole = nll(model, encode_rows(tokenizer, rows)).total
    assert parts["copied"] * copied + parts["own"] * own == pytest.approx(whole, rel=1e-5)


def test_a_kind_that_does_not_occur_is_left_out():
    rows = [
        {
            "messages": [
                {"role": "user", "content": "the"},
                {"role": "assistant", "content": "hotel"},
            ]
        }
    ]
    assert set(nll_by_origin(tiny.student(), tiny.TOKENIZER, rows)) == {"own"}
