"""Chapter 05's loop: each repair changes what it should, and what is recorded is read as it is."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from distillkit.course.classifier_results import (
    clinc_so_far,
    intent_duels,
    intent_runs,
    repaired_runs,
    shares_of,
    teacher_entropy,
)
from distillkit.course.exercises.chapter_05_mend import Bag
from distillkit.course.notebooks import ROOT, definitions, read_notebook
from distillkit.losses import distillation_loss, forward_kl

sys.path.insert(0, str(ROOT / "experiments"))
torch.set_num_threads(1)

PATH = ROOT / "chapters" / "05_a_classifier.ipynb"
chapter = SimpleNamespace(**definitions(PATH))
SAID = "".join(
    output.get("text", "")
    for cell in read_notebook(PATH).cells
    for output in cell.get("outputs", [])
)
NAMES = [
    "it runs",
    "trained teacher",
    "logarithms",
    "sum over classes",
    "attention mask",
    "labels",
    "temperature",
    "learning rate",
]


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(6, 5), 3 * torch.randn(6, 5), torch.randint(5, (6,))


def test_the_repaired_loss_is_the_librarys(logits):
    q, p, labels = logits
    ours = chapter.soft_and_hard(0.9, 2.0)(q, p, labels)
    assert_close(ours, distillation_loss(q, p, labels, alpha=0.9, temperature=2.0))
    assert_close(chapter.kl(q, p, labels), forward_kl(q, p).mean())


def test_the_three_losses_differ_as_the_chapter_says(logits):
    q, p, labels = logits
    assert_close(chapter.kl_mean(q, p, labels) * 5, chapter.kl(q, p, labels))
    assert abs(chapter.kl(p, p, labels)) < 1e-6
    wrong = chapter.kl_of_probabilities
    assert wrong(10 * p, p, labels) < wrong(p, p, labels) < 0


def test_two_ways_print_equal():
    for found in (
        r"two ways: (\S+) and (\S+)",
        r"mean loss: trainer (\S+), by hand (\S+)",
        r"accuracy: (\S+) and (\S+)",
        r"the floor: (\S+), and (\S+)",
    ):
        [(one, other)] = re.findall(found, SAID)
        assert one == other, found


def test_six_pieces_differ_from_their_right_forms_and_have_threads():
    pieces = re.findall(r"^(\d) .+ wrong (\S+), right (\S+)$", SAID, re.MULTILINE)
    assert [number for number, *_ in pieces] == list("123456")
    assert all(wrong != right for _, wrong, right in pieces)
    prose = " ".join(cell.source for cell in read_notebook(PATH).cells)
    museum = prose[prose.index("## Six from the museum") : prose.index("## How to look at a loop")]
    assert len(re.findall(r"\(https://github\.com/[\w.-]+/[\w.-]+/issues/\d+\)", museum)) == 6


def test_each_repair_keeps_those_before_it():
    untrained, teacher = object(), object()
    loops = chapter.repairs(untrained, teacher, 0.5)
    assert list(loops) == NAMES
    changed = [
        {key for key in after if after[key] != before[key]}
        for before, after in zip(list(loops.values()), list(loops.values())[1:], strict=False)
    ]
    assert changed == [{"teacher"}, {"loss"}, {"loss"}, {"masked"}, {"loss"}, {"loss"}, {"rate"}]
    first, last = loops["it runs"], loops["learning rate"]
    assert (first["teacher"], first["masked"]) == (untrained, False)
    assert (last["teacher"], last["masked"], last["rate"]) == (teacher, True, 0.5)


def test_the_loop_of_exercise_5_3_gets_batches_as_the_chapters_does():
    """The chapter's loop trains the exercise's models, and its mask comes with the batch."""

    class Batch(dict):
        def to(self, device):
            return self

    torch.manual_seed(0)
    student, teacher = Bag(torch.randn(6, 4)), Bag(torch.randn(6, 4)).eval()
    student.device = torch.device("cpu")
    ids = torch.tensor([[1, 2, 0], [3, 4, 5]])
    mask, labels = (ids != 0).long(), torch.tensor([0, 3])
    loss = chapter.soft_and_hard(0.5, 2.0)
    expected = loss(student(ids, mask).logits, teacher(ids, mask).logits, labels).item()
    batch = Batch(input_ids=ids, attention_mask=mask, labels=labels)
    before = student.table.clone()
    assert chapter.train(student, teacher, [batch], loss, 0.1) == [pytest.approx(expected)]
    assert not torch.equal(student.table, before)


def test_runs_are_read_in_the_order_of_their_seeds(tmp_path):
    runs = [
        {"kind": "repaired", "name": "labels", "seed": 1, "accuracy": 0.5},
        {"kind": "put back", "name": "labels", "seed": 0, "accuracy": 0.1},
        {"kind": "repaired", "name": "labels", "seed": 0, "accuracy": 0.25},
    ]
    (tmp_path / "05_repairs.json").write_text(json.dumps({"runs": runs}))
    assert repaired_runs("repaired", tmp_path) == {"labels": [0.25, 0.5]}
    assert repaired_runs("put back", tmp_path) == {"labels": [0.1]}


def test_a_mean_stands_beside_its_runs():
    assert shares_of([0.6, 0.8]) == "70.0% (60.0%, 80.0%)"


def test_intents_of_one_setting_alone(tmp_path):
    def run(accuracy, arm="labels", **setting):
        return {"arm": arm, "setting": setting, "test": {"accuracy": accuracy}}

    runs = [
        run(0.1, texts=300, steps=300),
        run(0.2, texts=300, steps=900),
        run(0.3, texts=300, steps=300, smoothing=0.1),
        run(0.4, "distilled", texts=300, steps=300),
    ]
    (tmp_path / "05_front_desk_intents.json").write_text(json.dumps({"runs": runs}))
    assert intent_runs("labels", tmp_path, texts=300, steps=300) == [0.1]
    assert intent_runs("distilled", tmp_path, steps=900) == []


def test_a_duel_has_the_labels_of_the_same_steps_and_rate(tmp_path):
    base = {"texts": 300, "steps": 300, "rate": 0.005, "alpha": 0.0, "temperature": 1.0}
    soft = base | {"alpha": 0.9, "temperature": 2.0}

    def run(arm, accuracy, setting):
        return {"arm": arm, "setting": setting, "test": {"accuracy": accuracy}}

    runs = [
        run("labels", 0.1, base),
        run("distilled", 0.2, soft),
        run("distilled", 0.3, soft | {"temperature": 4.0}),
        run("labels", 0.4, base | {"steps": 900}),
        run("distilled", 0.5, soft | {"steps": 900}),
    ]
    (tmp_path / "05_front_desk_intents.json").write_text(json.dumps({"runs": runs}))
    found = intent_duels(tmp_path)
    assert found["as above"] == ([0.2], [0.1]) and found["T = 4"] == ([0.3], [0.1])
    assert found["900 steps"] == ([0.5], [0.4]) and found["rate 0.002"] == ([], [])


def test_the_teachers_entropy_is_read(tmp_path):
    runs = [
        {"arm": "labels"},
        {"arm": "teacher", "entropy": {"train": {"1.0": 0.268}, "test": {"1.0": 0.1}}},
    ]
    (tmp_path / "05_front_desk_intents.json").write_text(json.dumps({"runs": runs}))
    assert teacher_entropy(folder=tmp_path) == {"1.0": 0.27}


def test_what_nobody_has_recorded_is_said(tmp_path):
    assert "05_clinc150.json" in clinc_so_far(tmp_path)


def test_the_experiment_runs_the_chapters_loops(monkeypatch, tmp_path):
    recording = importlib.import_module("recording")
    script = importlib.import_module("05_repairs")
    for name, value in {"TRAIN": 60, "TEST": 30, "STEPS": {"teacher": 2, "student": 1}}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "Record", lambda name: recording.Record(name, tmp_path))
    given = ["--seeds", "3", "--work", str(tmp_path / "teacher"), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["05_repairs.py", *given, "--kinds", "repaired", "put back"])
    script.main()
    assert list(repaired_runs("repaired", tmp_path)) == NAMES
    assert list(repaired_runs("put back", tmp_path)) == NAMES[1:]
    assert Path(tmp_path / "teacher" / "config.json").exists()
