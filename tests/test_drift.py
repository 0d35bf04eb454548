"""How far a student is from its teacher, turn by turn."""

import pytest
import tiny
import torch

from distillkit.drift import sums_by_turn
from distillkit.errors import UserError
from distillkit.losses import reverse_kl

USER = tiny.TOKENIZER.convert_tokens_to_ids("<|user|>")


def by_loops(student, teacher, rows, edges):
    groups = [[] for _ in edges]
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            log_q, log_p = (m.eval()(ids).logits[0].log_softmax(-1) for m in (student, teacher))
        turn = 0
        for place, (token, label) in enumerate(zip(row["input_ids"], row["labels"], strict=True)):
            turn += token == USER
            if label == -100:
                continue
            p, q = log_p[place - 1], log_q[place - 1]
            group = next((g for g, edge in enumerate(edges) if turn <= edge), len(edges) - 1)
            groups[group].append(float((p.exp() * (p - q)).sum()))
    return groups


def test_it_is_the_sum_over_each_group_of_turns():
    student, teacher, rows, edges = tiny.student(), tiny.teacher(), tiny.encoded(6), (1, 2, 4)
    sums = sums_by_turn(student, teacher, rows, USER, edges=edges)
    groups = by_loops(student, teacher, rows, edges)
    tokens = sums.tokens.sum(0)
    assert tokens.tolist() == [len(each) for each in groups] and sum(tokens > 0) > 1
    assert sums.values.sum(0) == pytest.approx([sum(each) for each in groups], rel=1e-4)
    assert (sums.turns.sum(0) / tokens)[:2].tolist() == [1.0, 2.0]


def test_the_sums_of_rows_are_those_of_each_row_alone():
    student, teacher, rows = tiny.student(), tiny.teacher(), tiny.encoded(3)
    together = sums_by_turn(student, teacher, rows, USER)
    for number, row in enumerate(rows):
        alone = sums_by_turn(student, teacher, [row], USER)
        assert together.values[number] == pytest.approx(alone.values[0], rel=1e-4, abs=1e-6)
        assert together.tokens[number].tolist() == alone.tokens[0].tolist()
    assert together.tokens.sum() == sum(label != -100 for row in rows for label in row["labels"])


def test_a_student_that_is_the_teacher_does_not_drift():
    teacher = tiny.teacher()
    sums = sums_by_turn(teacher, teacher, tiny.encoded(3), USER, divergence=reverse_kl)
    assert abs(sums.values / sums.tokens.clip(1)).max() < 1e-5


def test_a_token_that_opens_no_turn_is_named():
    with pytest.raises(UserError, match="found no token 99999 in 2 conversations"):
        sums_by_turn(tiny.student(), tiny.teacher(), tiny.encoded(2), 99999)
