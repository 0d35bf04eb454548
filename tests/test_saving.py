"""Checkpoints: whole or not at all; killed and resumed, a run ends as it would have."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from trainers import make_trainer, run_here
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from distillkit import saving
from distillkit.training import checkpoints_in

torch.set_num_threads(1)


def resumable_trainer(folder, **options):
    """Two and a half epochs of four steps; a checkpoint every three steps."""
    settings = {"max_steps": 10, "bucket_by_length": True, "gradient_accumulation_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    return make_trainer(
        folder,
        tiny.student(),
        tiny.teacher(),
        rows=tiny.encoded(16),
        per_device_train_batch_size=2,
        **(settings | options),
    )


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


def test_resumed_behind_its_last_step_it_does_no_other(tmp_path):
    whole = resumable_trainer(tmp_path, save_steps=5)
    whole.train()
    resumed = resumable_trainer(tmp_path, save_steps=5)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)
    assert resumed.state.global_step == 10


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


@pytest.fixture
def stopped_while_deleting(monkeypatch):
    """A kill when one file of a folder is deleted and the others are not."""
    delete = saving.shutil.rmtree

    def stop(path, **options):
        if files := [file for file in Path(path).rglob("*") if file.is_file()]:
            files[0].unlink()
            raise KeyboardInterrupt
        delete(path, **options)

    monkeypatch.setattr(saving.shutil, "rmtree", stop)


def test_a_checkpoint_above_the_limit_is_not_deleted_under_its_name(
    tmp_path, stopped_while_deleting
):
    with pytest.raises(KeyboardInterrupt):
        resumable_trainer(tmp_path, save_total_limit=1).train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-6"]


def test_a_checkpoint_that_is_replaced_is_not_deleted_under_its_name(tmp_path, request):
    resumable_trainer(tmp_path).train()
    request.getfixturevalue("stopped_while_deleting")
    with pytest.raises(KeyboardInterrupt):
        trainer = resumable_trainer(tmp_path)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    *_, last = files = [
        sorted(path.name for path in each.iterdir()) for each in checkpoints_in(tmp_path)
    ]
    assert len(files) == 4
    assert all(names == last for names in files)


# --- Killed thirty times ------------------------------------------------------------------------

INTERVAL, LAST, KILLS = 2, 24, 30


class Journal(TrainerCallback):
    """Writes down the step that a run begins behind, and each step that it has done."""

    def __init__(self, path):
        self.path = path

    def _note(self, word, step):
        with open(self.path, "a") as file:
            file.write(f"{word} {step}\n")

    def on_train_begin(self, args, state, control, **_):
        self._note("from", state.global_step)

    def on_step_end(self, args, state, control, **_):
        self._note("done", state.global_step)


def restless_trainer(folder, journal, **options):
    """Twelve checkpoints; with dropout, so that the state of the random numbers matters too."""
    student = tiny.student()
    for module in student.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    settings = {
        "max_steps": LAST,
        "save_steps": INTERVAL,
        "save_total_limit": 2,
        "logging_steps": 1,
    }
    return make_trainer(
        folder,
        student,
        tiny.teacher(),
        rows=tiny.encoded(18),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        bucket_by_length=True,
        save_strategy="steps",
        callbacks=[Journal(journal)],
        **(settings | options),
    )


def go_on(folder, journal):
    """What each process does until it is killed."""
    torch.set_num_threads(1)
    restless_trainer(folder, journal).train(resume_from_checkpoint=bool(checkpoints_in(folder)))


def assert_whole(folder, reference):
    """Nothing but checkpoints has a final name, and each is, byte by byte, that of `reference`."""
    names = {path.name for path in folder.iterdir()} - {".unfinished"}
    assert names == {path.name for path in checkpoints_in(folder)}
    for checkpoint in checkpoints_in(folder):
        files = sorted(path.name for path in checkpoint.iterdir())
        expected = reference / checkpoint.name
        assert files == sorted(path.name for path in expected.iterdir())
        for file in set(files) - {"training_args.bin"}:  # the name of its folder is in it
            assert (checkpoint / file).read_bytes() == (expected / file).read_bytes(), file
        torch.load(checkpoint / "training_args.bin", weights_only=False)


def read(journal):
    """(word, step) of each line; the last line may be cut off."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [(word, int(step)) for word, _, step in (line.partition(" ") for line in lines) if step]


def attempt(processes, folder, journal, seconds):
    """Go on with a run for so long, then kill it: the step it began behind, those done, the status.

    The time counts from when training begins.
    """
    known = len(read(journal))
    process = processes.Process(target=go_on, args=(folder, journal))
    process.start()
    while process.is_alive() and len(read(journal)) == known:
        time.sleep(0.005)
    process.join(seconds)
    process.kill()
    process.join()
    (word, start), *done = read(journal)[known:]
    assert word == "from"
    return start, [step for _, step in done], process.exitcode


@pytest.mark.slow  # starts some forty processes: half a minute on a free core
@pytest.mark.timeout(900)
def test_killed_thirty_times_it_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole, chance, began = tmp_path / "whole", random.Random(0), time.monotonic()
    restless_trainer(whole, tmp_path / "whole.txt", save_total_limit=None).train()
    interval = (time.monotonic() - began) * INTERVAL / LAST
    # The processes are forked by one that has imported everything, so that they are killed while
    # they train and save, not while they import.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    kills = while_saving = redone = runs = 0
    while kills < KILLS:
        runs, reached, idle, status = runs + 1, 0, 0, None
        folder, journal = tmp_path / f"run-{runs}", tmp_path / f"run-{runs}.txt"
        while status != 0:
            saved = max((int(path.name[11:]) for path in checkpoints_in(folder)), default=0)
            seconds = chance.uniform(0, 2.5) * interval * 1.3**idle  # patience, on a busy machine
            start, done, status = attempt(processes, folder, journal, seconds)
            assert start == saved
            assert done == list(range(start + 1, start + len(done) + 1))
            assert 0 <= reached - start <= INTERVAL  # of each kill: at most one interval anew
            redone += reached - start
            reached = start + len(done)
            assert_whole(folder, whole)
            idle = 0 if reached >= saved + INTERVAL else idle + 1
            if status != 0:
                assert status == -signal.SIGKILL
                kills += 1
                while_saving += (folder / ".unfinished").exists()
        assert reached == LAST == int(checkpoints_in(folder)[-1].name[11:])
    print(f"{kills} kills in {runs} runs, {while_saving} in a checkpoint; {redone} steps redone")
    assert while_saving > 0
