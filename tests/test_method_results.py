"""What chapter 07 reads of its long experiments, which may be half done."""

import json

import pytest

from distillkit.course import best_student_results as best
from distillkit.course import drift_results as drift
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


def test_a_setting_is_said_in_words():
    assert readers._setting("divergence", "jensen_shannon:0.5") == "Jensen-Shannon"
    assert readers._setting("learning_rate", 5e-3) == "learning rate 0.005"


def test_one_seed_gives_no_verdict_on_a_method(folder):
    labels, turn = readers.methods_verdicts(folder)
    assert labels.startswith("labels: -30.0% [")
    assert labels.endswith("; one seed: no verdict on the method")
    assert turn.startswith("on-policy (one turn): +0.0% [+0.0%, +0.0%]; one seed: no verdict")
    assert readers.methods_verdicts(folder, against="skew_kl") == ["skew KL: no finished run yet"]


def test_three_seeds_that_both_have_give_a_verdict(folder):
    more = {
        "forward_kl": [run("forward_kl", seed, 12) for seed in range(4)],
        "labels": [run("labels", seed, 4) for seed in (0, 1, 2, 7)],
        "one_turn": [run("one_turn", seed, 12, curve=[[2, 90.0, 0.4]]) for seed in range(3)],
    }
    for arm, runs in more.items():
        (folder / f"07_methods.{arm}.json").write_text(json.dumps({"runs": runs}))
    labels, turn, dear = readers.methods_verdicts(folder)
    assert labels.startswith("labels: -40.0% [") and labels.endswith("3 seeds; loses")
    assert turn == "on-policy (one turn): +0.0% [+0.0%, +0.0%], 3 seeds; a tie"
    assert dear == "costs more and does not win: on-policy (one turn)"
    said = readers.methods_verdicts(folder, against="labels")
    assert any(each.startswith("forward KL: +40.0%") and each.endswith("wins") for each in said)


def test_the_summary_answers_the_prediction_and_names_what_is_missing(folder):
    most, best, missing = readers.methods_summary(folder)
    assert most == "most visits so far: forward KL, 55.0% (2 seeds)"
    assert best.endswith("forward KL, 0.189; the same one")
    named = missing.removeprefix("still to come: ").split("; ")
    assert "on-policy (whole visits)" in named and "forward KL" not in named
    sure = run("labels", 0, 4, nll=0.1)
    (folder / "07_methods.labels.json").write_text(json.dumps({"runs": [sure]}))
    text = run("written_greedy", 0, 4, nll=0.01)  # of other words: it does not count
    (folder / "07_methods.written_greedy.json").write_text(json.dumps({"runs": [text]}))
    assert "labels, 0.100; not the same one" in readers.methods_summary(folder)[1]


def test_speaking_is_held_against_forward_kl(folder):
    [said] = readers.speaking_verdicts(folder)
    assert said.startswith("on-policy (one turn) beside forward KL: +0.0%")
    assert "KL on its own words 0.400 for 0.400; one seed" in said
    (folder / "07_methods.one_turn.json").unlink()
    assert readers.speaking_verdicts(folder)[0].endswith("no finished runs of both yet")


def test_curves_are_means_over_seeds_by_steps_and_by_time(folder):
    curves = readers.method_curves(["forward_kl", "on_policy"], folder)
    assert curves == {"forward_kl": ([1, 2], [0.5, pytest.approx(0.25)])}
    by_time = readers.method_curves(["labels", "forward_kl"], folder, by="seconds")
    assert by_time["labels"][0] == [5.0, 20.0] and by_time["forward_kl"][0] == [15.0, 30.0]
    served = readers.method_curves(["forward_kl"], folder, measure="served")
    assert served["forward_kl"] == ([2], [pytest.approx(0.55)])
    assert readers.method_curves(["labels"], folder, until=1)["labels"] == ([1], [0.5])


def test_the_best_student_is_chosen_on_development_and_reported_on_test(folder):
    assert best.best_student_table(folder) == best.NOT_YET
    shared = {"low": 0.5, "high": 1.0}
    teacher = run("as shipped", 0, 20, model="front-desk-teacher", development=0.9, **shared)
    base = run("as shipped", 0, 16, model="front-desk-student", development=0.8, **shared)
    for each in (teacher, base):
        del each["seed"]
    lucky = run("forward_kl", 0, 20, development=0.81, cpu_seconds=5.0, steps=3, **shared)
    chosen = run("on_policy", 0, 18, development=0.85, cpu_seconds=5.0, steps=3, **shared)
    for runs, word in (([teacher], None), ([base, teacher], "front-desk-student. It serves 80.0%")):
        (folder / "07_best_student.json").write_text(json.dumps({"runs": runs}))
        said = best.best_student_verdicts(folder)
        assert said == [best.NOT_YET] if word is None else word in said[0]
    everything = {"runs": [lucky, base, teacher, chosen]}
    (folder / "07_best_student.json").write_text(json.dumps(everything))
    choice, by_kl, by_speaking, missing, warning = best.best_student_verdicts(folder)
    assert "its own words, reverse KL. It serves 90.0% [75.0%, 100.0%] of what the" in choice
    assert choice.endswith("by that it may reach 97%.")
    assert by_kl.startswith("going on by forward KL: +20.0% [")
    assert by_speaking.endswith("one training: no sure change")
    assert "labels" in missing and warning.startswith("without the arm of labels")
    assert "it reaches 70%" in best.best_student_verdicts(folder, aim=0.7)[0]
    everything["runs"][-1] = chosen | {"success": 0.5, "successes": "1" * 10 + "0" * 10}
    (folder / "07_best_student.json").write_text(json.dumps(everything))
    assert "it does not reach 97%" in best.best_student_verdicts(folder)[0]
    lines = best.best_student_table(folder).splitlines()
    assert lines[2].startswith("| front-desk-teacher |") and lines[2].endswith("100.0% |")
    assert lines[4].startswith("| forward KL |") and len(lines) == 6


def group(turns, *, low, high, ratio=2.0):
    sides = {"desk": 0.01, "own": 0.02, "desk_interval": [0.0, 0.02], "own_interval": [0.01, 0.04]}
    between = {"difference_interval": [low, high], "ratio": ratio, "ratio_interval": [low, high]}
    return {"turns": turns, "visitors": 9, "mean_turn": 2.5, **sides, **between}


def test_drift_is_claimed_where_the_paired_interval_leaves_zero_out(tmp_path):
    groups = [group("1-3", low=0.1, high=0.2), group("4-6", low=-0.1, high=0.2)]
    runs = [
        {"student": "a", "groups": [*groups, group("all", low=0.3, high=4.0, ratio=3.0)]},
        {"student": "b", "groups": [*groups, group("all", low=-0.3, high=0.2)]},
    ]
    (tmp_path / "07_drift.json").write_text(json.dumps({"runs": runs}))
    one, other = drift.drift_verdicts(tmp_path)
    assert one.startswith("a: further from its teacher on its own words, 3.00 times [0.30, 4.00]")
    assert one.endswith("(further in turns 1-3; undecided in turns 4-6)")
    assert other.startswith("b: no difference that is sure")
    curves, bands = drift.drift_curves("a", tmp_path)
    assert curves["own_words"] == ([2.5, 2.5], [0.02, 0.02])
    assert bands["desk_words"] == ([0.0, 0.0], [0.02, 0.02])
    assert len(drift.drift_table(tmp_path).splitlines()) == 8


def test_what_the_chapter_says_of_drift_is_recorded():
    recorded = drift.drift_groups(RESULTS)
    assert {"front-desk-student", "front-desk-student-labels"} <= set(recorded)
    for groups in recorded.values():
        assert all(each["difference_interval"][0] > 0 for each in groups)
        assert 2.5 < groups[-1]["ratio"] < 4.5
    shipped = [each["ratio_interval"] for each in recorded["front-desk-student"][:-1]]
    assert shipped[-1][0] < shipped[0][1]  # no growth that is sure


def test_the_same_visitors_served_by_role():
    found = best.speakers(RESULTS)
    assert {"distilled", "labels"} <= set(found)
    assert all(len(marks) == 1000 and marks.dtype == bool for marks in found.values())
    assert found["distilled"].mean() == pytest.approx(0.874)


def test_without_results_the_command_is_named(tmp_path):
    with pytest.raises(UserError, match="found no experiments/results/07_methods"):
        readers.method_runs(tmp_path)
