"""The trainer: its loss, its teacher, its evaluation."""

import copy

import pytest
import tiny
import torch
from torch import nn
from trainers import (
    PLAIN_DESCENT,
    assert_same_run,
    batch_of,
    by_hand,
    make_trainer,
    two_epochs,
    uneven_rows,
)

from distillkit.batching import BucketSampler, EvenRows, ShuffleSampler, shuffled
from distillkit.chat import Collator
from distillkit.errors import UserError
from distillkit.evaluation import nll
from distillkit.losses import JensenShannon, TotalVariation, forward_kl
from distillkit.models import load_model

torch.set_num_threads(1)

# --- The loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("divergence", [forward_kl, JensenShannon(0.3), TotalVariation()])
def test_the_loss_is_that_of_the_course_on_shifted_logits(tmp_path, alpha, divergence):
    student, teacher = tiny.student().double(), tiny.teacher().double()
    batch = batch_of(tiny.encoded(5))
    settings = {"alpha": alpha, "temperature": 3.0}
    trainer = make_trainer(tmp_path, student, teacher, divergence=divergence, **settings)
    expected = by_hand(student, teacher, batch, divergence=divergence, **settings)
    assert trainer.compute_loss(student, batch).item() == pytest.approx(expected.item(), rel=1e-10)


def test_float32_loses_nothing_that_matters(tmp_path):
    student, teacher, batch = tiny.student(), tiny.teacher(), batch_of(tiny.encoded(6))
    single = make_trainer(tmp_path, student, teacher).compute_loss(student, batch).item()
    exact = by_hand(copy.deepcopy(student).double(), copy.deepcopy(teacher).double(), batch)
    assert single == pytest.approx(exact.item(), rel=1e-5)


def test_label_smoothing(tmp_path):
    student, batch = tiny.student(), batch_of(tiny.encoded(5))
    trainer = make_trainer(tmp_path, student, label_smoothing_factor=0.2)
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=0.2
    )
    assert trainer.compute_loss(student, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_valid_labels_the_loss_is_zero_and_has_a_graph(tmp_path):
    student, batch = tiny.student(), batch_of(tiny.encoded(2))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    batch["labels"][:, 0] = 5  # the first token of all is never predicted
    loss = make_trainer(tmp_path, student, tiny.teacher()).compute_loss(student, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


def test_the_teacher_is_not_run_at_alpha_zero(tmp_path):
    student, teacher, batch = tiny.student(), tiny.teacher(), batch_of(tiny.encoded(2))
    teacher.forward = None
    trainer = make_trainer(tmp_path, student, teacher, alpha=0.0)
    assert trainer.compute_loss(student, batch).isfinite()


def one_step(
    folder, *, batch_size=8, accumulate=1, side="right", backwards=False, dtype=torch.float64
):
    """One step of plain gradient descent."""
    rows = tiny.encoded(8)
    rows[3]["labels"] = [-100] * len(rows[3]["labels"])  # a micro-batch may have nothing to learn
    rows[4]["labels"] = list(rows[4]["input_ids"])  # and a label may stand at position 0
    student, teacher = tiny.student().to(dtype), tiny.teacher().to(dtype)
    trainer = make_trainer(
        folder,
        student,
        teacher,
        rows=rows[::-1] if backwards else rows,
        collator=Collator(tiny.TOKENIZER, padding_side=side),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        **PLAIN_DESCENT,
    )
    trainer.train()
    return student, trainer


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 2, "accumulate": 4},
        {"batch_size": 1, "accumulate": 8},
        {"side": "left"},
        {"backwards": True},
        {"batch_size": 3, "accumulate": 3, "side": "left", "backwards": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_do_not_depend_on_how_a_step_is_cut(tmp_path, change, dtype):
    (ours, trainer), (theirs, other) = (
        one_step(tmp_path, dtype=dtype),
        one_step(tmp_path, dtype=dtype, **change),
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for name in ("loss", "soft_loss", "hard_loss"):
        expected = trainer.state.log_history[0][name]
        # the trainer itself adds losses up in float32
        assert other.state.log_history[0][name] == pytest.approx(expected, rel=1e-5)
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(its, mine, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bucket", [False, True], ids=["shuffled", "bucketed"])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 2), (1, 4)])
def test_steps_of_turns_of_very_different_length_do_not_depend_on_how_they_are_cut(
    tmp_path, batch_size, accumulate, bucket
):
    spoken = [sum(label != -100 for label in row["labels"]) for row in uneven_rows()]
    assert min(spoken) == 3
    assert max(spoken) > 200
    whole = two_epochs(tmp_path, bucket_by_length=bucket)
    cut = two_epochs(
        tmp_path, batch_size=batch_size, accumulate=accumulate, bucket_by_length=bucket
    )
    assert whole.state.global_step == 6
    assert_same_run(cut.state.log_history, cut.model.state_dict(), whole)


def test_the_logged_step_is_the_loss_of_the_whole_batch(tmp_path):
    _, trainer = one_step(tmp_path, batch_size=2, accumulate=4)
    entry = trainer.state.log_history[0]
    rows = trainer.train_dataset
    expected = by_hand(tiny.student().double(), tiny.teacher().double(), batch_of(rows))
    assert entry["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert entry["loss"] == pytest.approx(0.5 * entry["soft_loss"] + 0.5 * entry["hard_loss"])


# --- The teacher --------------------------------------------------------------------------------


def test_the_teacher_stays_as_it_was_and_is_saved_nowhere(tmp_path):
    teacher = tiny.teacher().train()
    before = copy.deepcopy(teacher.state_dict())
    student = tiny.student()
    untouched = copy.deepcopy(student.state_dict())
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "eval_dataset": None}
    trainer = make_trainer(tmp_path, student, teacher, **options)
    assert not teacher.training
    teacher.train()
    trainer.train()
    assert not teacher.training
    assert all(torch.equal(before[name], now) for name, now in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert any(not torch.equal(untouched[name], now) for name, now in student.state_dict().items())
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in student.parameters()}
    saved = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert saved < 5 * sum(p.numel() for p in student.parameters()) + 10_000


def test_a_teacher_that_is_set_to_train_mode_later_is_set_back(tmp_path):
    student, teacher, batch = tiny.student(), tiny.teacher(), batch_of(tiny.encoded(2))
    trainer = make_trainer(tmp_path, student, teacher)
    teacher.train()
    trainer.compute_loss(student, batch)
    assert not teacher.training


def test_a_student_keeps_its_cache_for_generation(tmp_path):
    student = tiny.student()
    make_trainer(tmp_path, student, max_steps=1, save_strategy="steps", save_steps=1).train()
    assert student.config.use_cache
    loaded, _ = load_model(tmp_path / "checkpoint-1")
    assert loaded.config.use_cache


def test_other_tokenizers_are_refused(tmp_path):
    other = tiny.train_tokenizer(tiny.dialogues(50, seed=9)[:20], vocab_size=125)
    with pytest.raises(UserError):
        make_trainer(tmp_path, teacher=tiny.teacher(), teacher_tokenizer=other)


def test_no_rows_are_no_predictions(tmp_path):
    assert make_trainer(tmp_path, alpha=0.0).predict([]).predictions is None


def test_a_token_that_the_teacher_cannot_read_is_refused(tmp_path):
    longer = copy.deepcopy(tiny.TOKENIZER)
    longer.add_tokens(["<|mine|>"])
    student = tiny.student()
    student.resize_token_embeddings(len(longer), mean_resizing=False)
    with pytest.raises(UserError, match=r"ids up to 130, the teacher reads ids below 130"):
        make_trainer(tmp_path, student, tiny.teacher(), processing_class=longer)


def test_a_teacher_that_is_the_student_is_refused(tmp_path):
    model = tiny.student()
    with pytest.raises(UserError, match="share weights"):
        make_trainer(tmp_path, model, model)


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"temperature": 0.0}], ids=str)
def test_weights_and_temperatures_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        make_trainer(tmp_path, **wrong)


# --- Data and evaluation ------------------------------------------------------------------------


def test_rows_of_messages_are_encoded(tmp_path):
    trainer = make_trainer(tmp_path, rows=tiny.dialogues(8), eval_dataset=tiny.dialogues(3))
    assert trainer.train_dataset == tiny.encoded(8)
    assert trainer.eval_dataset == tiny.encoded(3)


@pytest.mark.parametrize("options", [{}, {"alpha": 1.0}, {"label_smoothing_factor": 0.3}], ids=str)
def test_eval_loss_is_the_nll_per_token_for_every_arm_and_batch_size(tmp_path, options):
    student, rows = tiny.student(), tiny.encoded(7, seed=3)
    expected = nll(student, rows).per_token
    for size in (1, 3, 7):
        trainer = make_trainer(
            tmp_path, student, tiny.teacher(), eval_dataset=rows, **options,
            per_device_eval_batch_size=size, bucket_by_length=True,
        )  # fmt: skip
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_predict_gives_the_nll_of_each_conversation(tmp_path):
    student, rows = tiny.student(), tiny.encoded(7, seed=3)
    found = make_trainer(tmp_path, student, per_device_eval_batch_size=2).predict(rows)
    expected = nll(student, rows)
    assert found.predictions.tolist() == pytest.approx(expected.per_dialogue, rel=1e-5)
    assert found.label_ids.tolist() == expected.tokens_per_dialogue


def test_buckets_hold_like_lengths_and_every_row_once():
    lengths = [(37 * number) % 101 for number in range(205)]
    sampler = BucketSampler(lengths, 10, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(205))
    assert order == list(sampler)
    spans = [[lengths[row] for row in order[i : i + 10]] for i in range(0, 200, 10)]
    assert max(max(span) - min(span) for span in spans) <= 10
    sampler.epoch = 1
    assert order != list(sampler)
    plain = ShuffleSampler(205, seed=3)
    assert sorted(plain) == list(range(205))
    assert list(plain) != list(ShuffleSampler(205, seed=4))


@pytest.mark.parametrize("bucket", [None, 4])
def test_blank_rows_make_processes_even_and_come_last(bucket):
    rows = EvenRows(tiny.encoded(9), 4)
    order = list(shuffled(rows, bucket, seed=3))
    assert order[:9] == list(shuffled(rows.rows, bucket, seed=3))
    assert order[9:] == [9, 10, 11]
    assert len(rows) == len(order) == 12
    assert all(set(rows[number]["labels"]) == {-100} for number in order[9:])
    assert [rows[number] for number in range(9)] == tiny.encoded(9)
    assert len(EvenRows(tiny.encoded(8), 4)) == 8
