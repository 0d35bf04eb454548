"""The trainer: its loss, its teacher, its evaluation, its checkpoints."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from distillkit.batching import BucketSampler, ShuffleSampler
from distillkit.chat import Collator
from distillkit.errors import UserError
from distillkit.evaluation import nll
from distillkit.logits import labelled_positions, logits_at
from distillkit.losses import JensenShannon, TotalVariation, distillation_loss, forward_kl
from distillkit.models import load_model
from distillkit.training import DistillationArguments, DistillationTrainer, checkpoints_in

torch.set_num_threads(1)


def make_trainer(folder, student=None, teacher=None, *, rows=None, collator=None, **options):
    keys = ("divergence", "teacher_tokenizer", "callbacks", "eval_dataset", "processing_class")
    given = {key: options.pop(key) for key in keys if key in options}
    settings = {"learning_rate": 1e-2, "save_strategy": "no", "disable_tqdm": True} | options
    return DistillationTrainer(
        student or tiny.student(),
        teacher,
        args=DistillationArguments(
            output_dir=str(folder), use_cpu=True, log_level="error", **settings
        ),
        train_dataset=rows if rows is not None else tiny.encoded(8),
        data_collator=collator,
        **{"processing_class": tiny.TOKENIZER, "teacher_tokenizer": tiny.TOKENIZER, **given},
    )


def batch_of(rows, side="right"):
    return Collator(tiny.TOKENIZER, padding_side=side)(rows)


def by_hand(student, teacher, batch, **settings):
    """The course's loss on logits that are shifted here, by hand."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad():
        p = teacher(**inputs).logits
    q = student(**inputs).logits
    return distillation_loss(q[:, :-1], p[:, :-1], batch["labels"][:, 1:], **settings)


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
    """One step of plain gradient descent: the change of the weights is the gradient."""
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
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
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


def test_the_logged_step_is_the_loss_of_the_whole_batch(tmp_path):
    _, trainer = one_step(tmp_path, batch_size=2, accumulate=4)
    entry = trainer.state.log_history[0]
    rows = trainer.train_dataset
    expected = by_hand(tiny.student().double(), tiny.teacher().double(), batch_of(rows))
    assert entry["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert entry["loss"] == pytest.approx(0.5 * entry["soft_loss"] + 0.5 * entry["hard_loss"])


@pytest.mark.slow  # starts two more Python processes: 15 s
def test_two_processes_do_what_one_does(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run_here([*command, "two_processes.py", str(tmp_path)], check=True)
    saved = torch.load(tmp_path / "saved.pt")
    alone, trainer = one_step(tmp_path / "alone")
    assert saved["log"][0]["loss"] == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-5)
    for name, weights in alone.state_dict().items():
        torch.testing.assert_close(saved["weights"][name], weights, rtol=1e-9, atol=1e-9)


# --- Logits at the labelled positions -----------------------------------------------------------


def test_the_shift():
    labels = torch.tensor([[7, -100, 8, 9], [-100, 6, -100, 5]])
    rows, targets = labelled_positions({"labels": labels})
    assert rows.tolist() == [1, 2, 4, 6]
    assert targets.tolist() == [8, 9, 6, 5]


def test_the_first_token_is_not_predicted_from_padding():
    batch = {"labels": torch.tensor([[-100, 7, 8]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    rows, targets = labelled_positions(batch)
    assert (rows.tolist(), targets.tolist()) == ([1], [8])


def gpt2():
    config = GPT2Config(vocab_size=130, n_positions=256, n_embd=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval()  # has learned, absolute positions


@pytest.mark.parametrize("make", [tiny.student, gpt2])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("known", [True, False], ids=["positions given", "positions counted"])
def test_the_head_at_chosen_rows_gives_the_same_logits(make, side, known):
    model, rows = make(), tiny.encoded(4)
    batch = batch_of(rows, side)
    if not known:
        del batch["position_ids"]
    places, labels = labelled_positions(batch)
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
    places, _ = labelled_positions(packed)
    alone = torch.cat([model(torch.tensor([row["input_ids"]])).logits[0] for row in rows])
    for mask in ({}, {"attention_mask": torch.ones_like(packed["input_ids"])}):
        found = logits_at(model, packed | mask, places)
        if not mask:  # transformers tells packed conversations by their positions where no mask is
            torch.testing.assert_close(found, alone[places], rtol=1e-4, atol=1e-5)
        plain = logits_at(model, {**packed, "position_ids": None}, places)
        assert not torch.allclose(found, plain)  # the positions are used


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


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_heads_of_different_width_are_cut_to_the_shared_ids(tmp_path, who):
    models = {"student": tiny.student().double(), "teacher": tiny.teacher().double()}
    batch = batch_of(tiny.encoded(4))
    expected = by_hand(**models, batch=batch, alpha=1.0).item()
    models[who].resize_token_embeddings(len(tiny.TOKENIZER) + 22, mean_resizing=False)
    trainer = make_trainer(tmp_path, **models, alpha=1.0)
    found = trainer.compute_loss(models["student"], batch).item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_wider_head_without_tokenizers_is_refused(tmp_path):
    wider = tiny.teacher()
    wider.resize_token_embeddings(len(tiny.TOKENIZER) + 22, mean_resizing=False)
    with pytest.raises(UserError, match=r"teacher has \d+ logits, the student \d+: pass both"):
        make_trainer(tmp_path, teacher=wider, teacher_tokenizer=None)


def test_other_tokenizers_are_refused(tmp_path):
    other = tiny.train_tokenizer(tiny.dialogues(50, seed=9)[:20], vocab_size=125)
    with pytest.raises(UserError):
        make_trainer(tmp_path, teacher=tiny.teacher(), teacher_tokenizer=other)


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


# --- Checkpoints --------------------------------------------------------------------------------


def resumable_trainer(folder, **options):
    """Two and a half epochs of four steps; a checkpoint every three steps."""
    settings = {"max_steps": 10, "bucket_by_length": True, "gradient_accumulation_steps": 2}
    return make_trainer(
        folder,
        tiny.student(),
        tiny.teacher(),
        rows=tiny.encoded(16),
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=3,
        logging_steps=2,
        **(settings | options),
    )


def run_here(command, cwd=Path(__file__).parent, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, timeout=240, **options)


def assert_same_end(trainer, other):
    for mine, its in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    logged = [
        [{k: v for k, v in entry.items() if "loss" in k} for entry in each.state.log_history[:-1]]
        for each in (trainer, other)
    ]
    assert logged[0] == logged[1]


def test_killed_while_saving_and_resumed_it_ends_with_the_same_weights(tmp_path):
    whole = resumable_trainer(tmp_path / "whole")
    whole.train()
    folder = tmp_path / "killed"
    run = run_here([sys.executable, "killed_training.py", str(folder), "9"])
    assert run.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-3", "checkpoint-6"]
    assert get_last_checkpoint(folder).endswith("checkpoint-6")
    resumed = resumable_trainer(folder)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)
    assert not (folder / ".unfinished").exists()


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("options", [{}, {"bucket_by_length": False}], ids=str)
def test_interrupted_in_a_later_epoch_and_resumed(tmp_path, options):
    whole = resumable_trainer(tmp_path / "whole", **options)
    whole.train()
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        resumable_trainer(folder, callbacks=[Interrupt(8)], **options).train()
    resumed = resumable_trainer(folder, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)


def test_each_epoch_has_an_order_of_its_own(tmp_path):
    seen = []
    trainer = resumable_trainer(tmp_path)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: seen.extend(map(id, rows)) or collate(rows)
    trainer.train()
    epochs = [seen[start : start + 16] for start in (0, 16)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    trainer = resumable_trainer(tmp_path)

    def full(output_dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "_save_rng_state", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert list(tmp_path.iterdir()) == []


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    trainer = resumable_trainer(
        tmp_path,
        eval_dataset=tiny.encoded(6, seed=5),
        eval_strategy="steps",
        eval_steps=3,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        max_steps=12,
        learning_rate=0.3,  # far too much: the first evaluation is the best or close to it
    )
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(losses, key=losses.__getitem__)
    assert Path(trainer.state.best_model_checkpoint) == tmp_path / f"checkpoint-{best}"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
