"""What chapter 07 reads of its long experiments, which may be half done."""

import json

import pytest

from distillkit.course import method_results as readers
from distillkit.course.results import RESULTS
from distillkit.errors import UserError


def run(arm, seed, served, **more):
    marks = "".join("01"[number < served] for number in range(20))
    measured = {"nll": 0.2 - served / 1000, "calibration_error": 0.01, "kl": 0.1}
    return {
        "arm": arm,
        "seed": seed,
        "trial": {},
        "teacher_seconds": 10.0,
        "curve": [[1, 5.0, 0.5], [2, 20.0, 0.3 - seed / 10]],
        "served": [[2, 20.0, served / 20]],
        "successes": marks,
        "success": served / 20,
        "kl_own_words": 0.4,
        **measured,
        **more,
    }


def tried(arm, value, nll):
    return {"arm": arm, "tried": {"temperature": value}, "steps": 1, "best_validation": nll}


@pytest.fixture
def folder(tmp_path):
    files = {
        "labels": [tried("labels", 1, 0.5), run("labels", 0, 4, teacher_seconds=0.0)],
        "forward_kl": [run("forward_kl", 1, 12), run("forward_kl", 0, 10)],
        "on_policy": [tried("on_policy", 2, 0.9), tried("on_policy", 1, 0.7)],
        "one_turn": [run("one_turn", 0, 10, curve=[[2, 90.0, 0.4]])],
    }
    files["forward_kl"].append({"arm": "forward_kl", "measured": "peak memory", "peak_mb": 1234.5})
    for arm, runs in files.items():
        (tmp_path / f"07_methods.{arm}.json").write_text(json.dumps({"runs": runs}))
    return tmp_path


def test_arms_with_a_finished_run_are_in_the_chapters_order(folder):
    made = readers.method_runs(folder)
    assert list(made) == ["labels", "forward_kl", "one_turn"]
    assert [each["seed"] for each in made["forward_kl"]] == [0, 1]


def test_the_table_copes_with_one_seed_and_with_two(folder):
    _, _, labels, forward, turn = readers.methods_table(folder).splitlines()
    assert labels.startswith("| labels | 1 | 20.0% [") and "| 0.196 |" in labels
    assert "| 20 + 0 | — |" in labels
    assert "| 2 | 55.0% [" in forward and "0.189 (0.188 to 0.190)" in forward
    assert "| 20 + 10 | 1,234 |" in forward and "| 90 + 10 |" in turn


def test_trials_are_shown_and_the_better_one_is_bold(folder):
    _, _, labels, spoken = readers.tuning_table(folder).splitlines()
    assert labels == "| labels | temperature 1 | **0.500** |  |  |"
    assert spoken.endswith("| temperature 2 | 0.900 | temperature 1 | **0.700** |")


def test_verdicts_compare_the_seeds_that_both_have(folder):
    labels, turn, best, dear = readers.methods_verdicts(folder)
    assert labels.startswith("labels loses: -30.0% [") and labels.endswith("1 seed")
    assert turn.startswith("on-policy, one turn ties: +0.0% [+0.0%, +0.0%]")
    assert best == "serves most: forward KL, 55.0%"
    assert dear == "costs more and does not win: on-policy, one turn"
    said = readers.methods_verdicts(folder, against="labels")
    assert any(each.startswith("forward KL wins: +30.0%") for each in said)
    assert readers.methods_verdicts(folder, against="skew_kl") == ["skew KL: no finished run yet"]


def test_curves_are_means_over_seeds_by_steps_and_by_time(folder):
    curves = readers.method_curves(["forward_kl", "on_policy"], folder)
    assert curves == {"forward_kl": ([1, 2], [0.5, pytest.approx(0.25)])}
    by_time = readers.method_curves(["labels", "forward_kl"], folder, by="seconds")
    assert by_time["labels"][0] == [5.0, 20.0] and by_time["forward_kl"][0] == [15.0, 30.0]
    served = readers.method_curves(["forward_kl"], folder, measure="served")
    assert served["forward_kl"] == ([2], [pytest.approx(0.55)])


def test_the_best_student_is_chosen_on_development_and_reported_on_test(folder):
    assert readers.best_student_table(folder) == readers.NOT_YET
    shared = {"low": 0.5, "high": 1.0}
    teacher = run("as shipped", 0, 20, model="front-desk-teacher", development=0.9, **shared)
    base = run("as shipped", 0, 16, model="front-desk-student", development=0.8, **shared)
    for each in (teacher, base):
        del each["seed"]
    lucky = run("forward_kl", 0, 20, development=0.81, cpu_seconds=5.0, steps=3, **shared)
    chosen = run("on_policy", 0, 18, development=0.85, cpu_seconds=5.0, steps=3, **shared)
    for runs, word in (([teacher], None), ([base, teacher], "front-desk-student. It does not")):
        (folder / "07_best_student.json").write_text(json.dumps({"runs": runs}))
        said = readers.best_student_verdict(folder)
        assert said == readers.NOT_YET if word is None else word in said
    everything = {"runs": [base, teacher, lucky, chosen]}
    (folder / "07_best_student.json").write_text(json.dumps(everything))
    said = readers.best_student_verdict(folder)
    assert "on-policy, whole visits. It does not reach 97%" in said and "90.0%" in said
    assert "reaches 90%" in readers.best_student_verdict(folder, aim=0.9)
    lines = readers.best_student_table(folder).splitlines()
    assert lines[2].startswith("| front-desk-teacher |") and lines[2].endswith("100.0% |")
    assert len(lines) == 6


def test_the_same_visitors_served_by_role():
    found = readers.speakers(RESULTS)
    assert {"distilled", "labels"} <= set(found)
    assert all(len(marks) == 1000 and marks.dtype == bool for marks in found.values())
    assert found["distilled"].mean() == pytest.approx(0.874)


def test_without_results_the_command_is_named(tmp_path):
    with pytest.raises(UserError, match="found no experiments/results/07_methods"):
        readers.method_runs(tmp_path)
