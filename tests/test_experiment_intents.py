"""The experiment on CLINC150, at the smallest size: its record, and that it goes on."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from distillkit.dialogues.intents import front_desk_intents
from distillkit.models import ModelSize

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import recording

torch.set_num_threads(1)


@pytest.fixture
def clinc(monkeypatch, tmp_path):
    """The script, on a few utterances of the front desk, and the file that it writes."""
    script = importlib.import_module("05_clinc150")
    for split, count in (("train", 80), ("validation", 20), ("test", 60)):
        part = {"validation": "train"}.get(split, split)
        rows = front_desk_intents(count, split=part, seed=2 if split == "test" else 0)
        known = {row["intent"] for row in front_desk_intents(80)}
        lines = [json.dumps(row) for row in rows if row["intent"] in known]
        (tmp_path / script.FILE.format(split=split)).write_text("\n".join(lines))
    small = {"TEACHER": ModelSize(16, 1, 2, 32), "STUDENT": ModelSize(8, 1, 2, 16)}
    small |= {"SIZES": (40, 80), "STEPS": {"teacher": 2, "student": 2}, "EVALUATIONS": 1}
    for name, value in small.items():
        monkeypatch.setattr(script, name, value)
    record = recording.Record("05_clinc150.json", tmp_path)
    monkeypatch.setattr(script, "Record", lambda name: recording.Record(name, tmp_path))

    def run(*more):
        given = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--seeds", "0"]
        monkeypatch.setattr(sys, "argv", ["05_clinc150.py", *given, "--threads", "1", *more])
        script.main()
        return json.loads(record.path.read_text())["runs"]

    return run


def test_every_arm_has_as_many_trials_and_no_run_is_made_twice(clinc):
    some = clinc("--arms", "labels", "--sizes", "40")
    assert [run["arm"] for run in some] == ["teacher"] + 5 * ["labels"]
    runs = clinc("--arms", "labels", "unlabelled", "--sizes", "40")
    assert runs[: len(some)] == some
    assert [run["arm"] for run in runs[len(some) :]] == 5 * ["unlabelled"]
    assert {run["arm"] for run in runs if "teacher" in run} == {"teacher", "unlabelled"}
    assert [run["seed"] for run in runs if "accuracy" in run] == [0, 0, 0]


def test_all_arms_get_the_same_number_of_trials():
    script = importlib.import_module("05_clinc150")
    assert {len(trials) for trials in script.TRIALS.values()} == {4}
    for trials in script.TRIALS.values():
        assert len({json.dumps(trial, sort_keys=True) for trial in trials}) == 4


def test_the_script_says_where_its_data_come_from():
    notes = (Path(__file__).parents[1] / "experiments" / "REAL_DATA.md").read_text()
    assert "05_clinc150.py" in notes and "CC BY 3.0" in notes
