"""The main job: what it writes, what it refuses, and how it goes on after an interruption."""

import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
import tiny
import torch
from safetensors.torch import load_file
from trainers import run_here

from distillkit import cli, report, workplace
from distillkit import distill as job
from distillkit.chat import encode_rows
from distillkit.distill import distill
from distillkit.errors import UserError
from distillkit.evaluation import nll
from distillkit.losses import JensenShannon, ReverseKL
from distillkit.models import load_model, save_model
from distillkit.settings import Settings, divergence_named

torch.set_num_threads(1)

FILES = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
FILES |= {"metrics.json", "report.md", "learning_curve.png"}
SHORT = {"steps": 6, "eval_every": 2, "batch_size": 4, "learning_rate": 1e-2}
TRAIN, EVAL = tiny.dialogues(12), tiny.dialogues(5, seed=1)


def pair(model):
    return model, tiny.TOKENIZER


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a teacher and conversations, as a user would have them."""
    folder = tmp_path_factory.mktemp("place")
    save_model(tiny.teacher(), tiny.TOKENIZER, folder / "teacher")
    for name, rows in (("data", TRAIN), ("test", EVAL)):
        for number, row in enumerate(rows):
            row = row | {"source": "ab"[number % 2]}
            with (folder / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def command(place, monkeypatch):
    """Runs the command line on that folder with small settings; the exit status."""
    monkeypatch.chdir(place)
    for name in ("mine", "mine.unfinished"):
        shutil.rmtree(name, ignore_errors=True)

    def run(**options):
        options = {"teacher": "teacher", "student": "student-small", "data": "data.jsonl"} | options
        options = {"out": "mine", **SHORT} | options
        line = []
        for name, value in options.items():
            name = "--" + name.replace("_", "-")
            line += [name] if value is True else [name, str(value)]
        return cli.main(["distill", *line])

    return run


def refused(capsys, place, *, left=()):
    """The one sentence of a refusal; nothing but `left` may be left of the run."""
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("distillkit: ")
    assert "Traceback" not in line
    assert {path.name for path in place.glob("mine*")} == set(left)
    return line


# --- What it writes -----------------------------------------------------------------------------


def test_it_writes_a_checkpoint_and_what_is_known_of_it(tmp_path):
    out = tmp_path / "deep" / "mine"
    student = tiny.student()
    metrics = distill(pair(tiny.teacher()), pair(student), TRAIN, EVAL, out, **SHORT)
    assert {path.name for path in out.iterdir()} >= FILES
    assert list(out.parent.iterdir()) == [out]
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))

    step, best = report.best(metrics["curves"]["distilled"])
    model, tokenizer = load_model(out)
    again = nll(model, encode_rows(tokenizer, EVAL)).per_token
    assert again == pytest.approx(best, rel=1e-5)
    assert again == pytest.approx(metrics["models"]["distilled"]["scores"]["eval"]["nll"], rel=1e-5)
    assert nll(student, encode_rows(tokenizer, EVAL)).per_token == pytest.approx(best, rel=1e-5)
    assert metrics["curves"]["distilled"]["steps"] == [0, 2, 4, 6]
    assert step in (2, 4, 6)
    assert {"soft_loss", "hard_loss"} < set(metrics["curves"]["distilled"]["training"][0])
    assert f"{best:.3f}" in (out / "report.md").read_text()
    assert f"{best:.3f}" in (out / "README.md").read_text()


def test_provenance_says_how_it_was_made():
    metrics = distill(pair(tiny.teacher()), pair(tiny.student()), TRAIN, EVAL, **SHORT)
    made = metrics["provenance"]
    assert {"command", "commit", "date", "machine", "seed", "seconds", "distillkit"} <= set(made)
    assert metrics["settings"]["temperature"] == 2.0
    assert metrics["data"]["train"]["kept"] == len(TRAIN)
    other = report.data_card(train=TRAIN[::-1])["train"]["sha256"]
    assert len(other) == 64
    assert other != metrics["data"]["train"]["sha256"]


def test_the_same_settings_give_the_same_student():
    runs = [distill(pair(tiny.teacher()), "student-small", TRAIN, EVAL, **SHORT) for _ in "ab"]
    assert runs[0]["curves"] == runs[1]["curves"]


def test_the_command_makes_a_teacher_then_a_student_compared_with_labels(command, place, capsys):
    assert command(teacher="front-desk-teacher", alpha=0, student="student", vocab_size=130) == 0
    (place / "mine").rename(place / "my-teacher")
    assert "kept 12 of 12 dialogues" in capsys.readouterr().out
    options = {"teacher": "my-teacher", "compare_labels": True, "test_data": "test.jsonl"}
    assert command(**options) == 0
    assert not (place / "mine.unfinished").exists()
    shown = capsys.readouterr()
    assert "student, labels only" in shown.out
    assert "distilled: 100%" in shown.err
    metrics = json.loads((place / "mine" / "metrics.json").read_text())
    assert set(metrics["models"]) == {"teacher", "distilled", "labels"}
    for model in metrics["models"].values():
        assert {"eval", "test", "test a", "test b"} <= set(model["scores"])
        parts = [model["scores"][f"test {source}"]["tokens"] for source in "ab"]
        assert sum(parts) == model["scores"]["test"]["tokens"]
    assert metrics["models"]["distilled"]["bytes"] > 0
    assert metrics["data"]["eval"]["kept"] == 1
    shutil.rmtree(place / "my-teacher")


def test_muon_is_for_new_students_only():
    new = distill(None, "student-small", TRAIN, EVAL, alpha=0.0, steps=1, vocab_size=130)
    old = distill(None, pair(tiny.student()), TRAIN, EVAL, alpha=0.0, steps=1)
    for metrics, expected in ((new, ("muon", 5e-3)), (old, ("adamw", 5e-5))):
        settings = metrics["settings"]
        assert (settings["optimizer"], settings["learning_rate"]) == expected


def test_nothing_is_kept_without_a_place_to_keep_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    distill(None, pair(tiny.student()), TRAIN, EVAL, alpha=0.0, **SHORT)
    assert list(tmp_path.iterdir()) == []


# --- What it refuses: one sentence, status 2, nothing left ---------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": "none.jsonl"}, "none.jsonl"),
        ({"data": "empty.jsonl"}, "empty.jsonl"),
        ({"data": "one.jsonl"}, "at least 2"),
        ({"test_data": "none.jsonl"}, "none.jsonl"),
        ({"teacher": "./none"}, "none"),
        ({"teacher": "cut"}, "damaged or cut off"),
        ({"student": "./none"}, "none"),
        ({"student": "other"}, "tokenizer"),
        ({"steps": 0}, "steps is 0"),
        ({"alpha": 2}, "alpha is 2"),
        ({"learning_rate": "nan"}, "learning_rate is nan"),
        ({"temperature": 0}, "temperature is 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "fp8"}, "fp8"),
        ({"optimizer": "sgd"}, "sgd"),
        pytest.param(
            {"precision": "bf16"},
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ({"divergence": "kl"}, "forward_kl"),
        ({"out": "data.jsonl"}, "exists already"),
        ({"out": "teacher"}, "exists already"),
    ],
    ids=str,
)
def test_it_refuses_in_one_sentence(command, place, capsys, options, sentence):
    (place / "empty.jsonl").touch()
    (place / "one.jsonl").write_text((place / "data.jsonl").read_text().splitlines()[0])
    if not (place / "cut").exists():
        shutil.copytree(place / "teacher", place / "cut")
        weights = place / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        other = tiny.train_tokenizer(TRAIN[:6], vocab_size=128)
        save_model(tiny.student(), other, place / "other")
    assert command(**options) == 2
    assert sentence in refused(capsys, place)


def test_there_must_be_a_teacher_where_its_weight_is_not_zero():
    with pytest.raises(UserError, match="no teacher"):
        distill(None, pair(tiny.student()), TRAIN, EVAL, **SHORT)


def test_it_refuses_early_when_the_disk_is_too_small(command, place, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(workplace.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1_000))
    assert command() == 2
    assert "no space left on the disk" in refused(capsys, place)


FULL = """
import resource, sys
from distillkit import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))  # no file may grow beyond this
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_disk_that_fills_up_while_it_trains(command, place):
    line = ["distill", "--teacher", "teacher", "--student", "student-small", "--out", "mine"]
    line += ["--data", "data.jsonl", "--steps", "2", "--batch-size", "4"]
    run = run_here([sys.executable, "-c", FULL, *line], cwd=place, stderr=subprocess.PIPE)
    *_, sentence = run.stderr.decode().strip().splitlines()
    assert run.returncode == 2
    assert sentence.startswith("distillkit: mine.unfinished cannot be written")
    assert "--resume" in sentence
    assert not (place / "mine").exists()
    assert list(place.glob("mine.unfinished/*/checkpoint*")) == []


# --- Interrupted, and resumed -------------------------------------------------------------------


class StopAt:
    """Presses Ctrl-C in a step."""

    def __init__(self, monkeypatch, title, step):
        update = job._Bar.on_step_end

        def press(bar, args, state, control, **rest):
            update(bar, args, state, control, **rest)
            if bar.title == title and state.global_step == step:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(job._Bar, "on_step_end", press)


@pytest.mark.parametrize(("title", "step"), [("distilled", 5), ("labels", 3)])
def test_ctrl_c_then_resume_ends_as_if_nothing_had_been(
    command, place, capsys, monkeypatch, title, step
):
    assert command(compare_labels=True) == 0
    whole = load_file(place / "mine" / "model.safetensors")
    curves = json.loads((place / "mine" / "metrics.json").read_text())["curves"]
    shutil.rmtree(place / "mine")

    with monkeypatch.context() as patch:
        StopAt(patch, title, step)
        assert command(compare_labels=True) == 130
    assert "--resume" in refused(capsys, place, left=["mine.unfinished"])
    assert command(compare_labels=True) == 2
    assert "unfinished" in refused(capsys, place, left=["mine.unfinished"])
    assert command(compare_labels=True, resume=True, temperature=3) == 2
    sentence = refused(capsys, place, left=["mine.unfinished"])
    assert "settings.temperature 2.0, now it is 3.0" in sentence

    assert command(compare_labels=True, resume=True) == 0
    resumed = load_file(place / "mine" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert json.loads((place / "mine" / "metrics.json").read_text())["curves"] == curves
    assert not (place / "mine.unfinished").exists()


@pytest.fixture
def unfinished(command, place, monkeypatch):
    """An interrupted run with two checkpoints, of which the earlier one is the best by far."""
    with monkeypatch.context() as patch:
        StopAt(patch, "distilled", 5)
        assert command() == 130
    last = place / "mine.unfinished" / "distilled-training" / "checkpoint-4"
    state = json.loads((last / "trainer_state.json").read_text())
    state |= {"best_global_step": 2, "best_metric": 1e-6}
    state["best_model_checkpoint"] = state["best_model_checkpoint"].replace("point-4", "point-2")
    for entry in state["log_history"]:
        if entry["step"] == 2 and "eval_loss" in entry:
            entry["eval_loss"] = 1e-6
    (last / "trainer_state.json").write_text(json.dumps(state))
    return place / "mine.unfinished"


def test_an_unfinished_run_that_was_moved_keeps_its_best_step(command, place, unfinished):
    best = load_file(unfinished / "distilled-training" / "checkpoint-2" / "model.safetensors")
    (place / "moved").mkdir(exist_ok=True)
    unfinished.rename(place / "moved" / "mine.unfinished")
    assert command(out="moved/mine", resume=True) == 0
    saved = load_file(place / "moved" / "mine" / "model.safetensors")
    assert all(torch.equal(best[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    "name", ["run.json", "trainer_state.json", "optimizer.pt", "model.safetensors"]
)
def test_a_damaged_unfinished_run_is_named(command, place, unfinished, capsys, name):
    folder = unfinished if name == "run.json" else unfinished / "distilled-training/checkpoint-4"
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert command(resume=True) == 2
    assert "is damaged" in refused(capsys, place, left=["mine.unfinished"])


def test_a_student_that_no_step_improves_is_kept_as_it_was():
    student = tiny.student()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    settings = SHORT | {"optimizer": "adamw", "learning_rate": 50.0}
    metrics = distill(pair(tiny.teacher()), pair(student), TRAIN, EVAL, **settings)
    assert report.best(metrics["curves"]["distilled"])[0] == 0
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing(command, place, capsys, monkeypatch):
    StopAt(monkeypatch, "distilled", 1)
    assert command() == 130
    assert "nothing is left" in refused(capsys, place)


def test_resume_with_nothing_to_resume_starts(command):
    assert command(resume=True) == 0


# --- On policy, and schedules -------------------------------------------------------------------


def test_a_student_that_speaks_while_it_learns_goes_on_where_it_was_stopped(
    command, place, monkeypatch
):
    options = {"lmbda": 0.5, "max_reply_tokens": 5, "alpha": 0.2, "alpha_end": 0.8}
    assert command(**options) == 0
    whole = load_file(place / "mine" / "model.safetensors")
    shutil.rmtree(place / "mine")
    with monkeypatch.context() as patch:
        StopAt(patch, "distilled", 5)
        assert command(**options) == 130
    assert command(resume=True, **options) == 0
    resumed = load_file(place / "mine" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    settings = json.loads((place / "mine" / "metrics.json").read_text())["settings"]
    assert settings.items() >= options.items()


def test_labels_to_compare_with_have_no_teacher_at_all():
    settings = Settings(alpha=0.0, lmbda=0.5, alpha_end=0.4)
    assert settings.taught and not settings.by_labels().taught


# --- Names --------------------------------------------------------------------------------------


def test_divergences_have_names():
    assert divergence_named("reverse_kl") == ReverseKL()
    assert divergence_named("jensen_shannon:0.3") == JensenShannon(0.3)
    for wrong in ("js", "jensen_shannon:x", "forward_kl:0.1", "jensen_shannon:7"):
        with pytest.raises(UserError):
            divergence_named(wrong)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(TypeError):
        Settings(tempreature=2.0)
