"""What chapter 06 reads of its experiments, whole and in part."""

import json

import pytest

from distillkit.course import (
    distilbert_runs,
    distilbert_table,
    inside_curves,
    inside_gaps,
    inside_runs,
    inside_table,
    inside_verdicts,
)
from distillkit.course.inside_results import verdict


def run(arm, begin, seed, *, copied=1.0, slow=1.0, points=3):
    """A run whose copied values fall from 4 in a line; `slow` seconds a step."""
    curve = [
        [50 * n, 50 * n * slow, 2.0, 4.0 - n * (4.0 - copied) / points, 0.5]
        for n in range(1, points + 1)
    ]
    return {
        "arm": arm,
        "begin": begin,
        "seed": seed,
        "curve": curve,
        "copied": copied,
        "own": 0.25,
        "success": 0.5,
        "successes": "01",
    }


@pytest.fixture
def written(tmp_path):
    def write(*runs):
        for arm in {each["arm"] for each in runs}:
            mine = [each for each in runs if each["arm"] == arm]
            tuning = {"arm": arm, "begin": "random", "seed": 1000, "curve": [[50, 1, 9, 9, 9]]}
            content = json.dumps({"runs": [tuning, *mine]})
            (tmp_path / f"06_inside.{arm}.json").write_text(content)
        return tmp_path

    return write


def test_where_nothing_is_recorded_a_sentence_says_so(tmp_path):
    assert inside_runs(tmp_path) == {} and inside_curves(folder=tmp_path) == {}
    assert "06_inside.py" in inside_table(tmp_path)
    assert inside_verdicts(tmp_path).startswith("*Nothing to compare yet")
    assert distilbert_runs(tmp_path) == {} and "06_distilbert.py" in distilbert_table(tmp_path)


def test_runs_stand_by_arm_beginning_and_seed_without_the_tuning(written):
    folder = written(
        run("logits", "teacher", 0), run("logits", "random", 1), run("logits", "random", 0)
    )
    found = inside_runs(folder)
    assert list(found) == [("logits", "random"), ("logits", "teacher")]
    assert [each["seed"] for each in found["logits", "random"]] == [0, 1]
    assert inside_verdicts(folder).startswith("*Nothing to compare yet")
    row = inside_table(folder).splitlines()[2]
    assert row.startswith("| random weights | student, distilled | 2 | 1.000 (1.000 to 1.000) |")
    assert "| 150 | 50.0% [" in row


def test_what_is_missing_stands_below_the_table_until_all_is_there(written):
    some = [run("labels", "random", seed) for seed in range(2)]
    told = inside_table(written(*some)).splitlines()[-1]
    assert told.startswith("*Still to come, from random weights: student, labels (2 of 5")
    assert "; from the teacher's layers: student, labels · student, distilled · " in told
    arms = ("labels", "logits", "hidden", "cosine", "attention", "relations")
    whole = [run(arm, "random", seed) for arm in arms for seed in range(5)]
    pieces = [run(arm, "teacher", seed) for arm in ("labels", "logits") for seed in range(5)]
    told = inside_table(written(*whole, *pieces)).splitlines()[-1]
    assert told == "*Still to come, from the teacher's layers: logits and their direction.*"
    pieces += [run("cosine", "teacher", seed) for seed in range(5)]
    assert "Still to come" not in inside_table(written(*whole, *pieces))


def test_a_curve_is_cut_to_what_all_seeds_have(written):
    folder = written(
        run("hidden", "random", 0, slow=1.0), run("hidden", "random", 1, slow=3.0, points=2)
    )
    steps, values = inside_curves(folder=folder)["hidden"]
    assert steps.tolist() == [50, 100] and values.shape == (2, 2)
    seconds, _ = inside_curves(seconds=True, folder=folder)["hidden"]
    assert seconds.tolist() == [100, 200]


def test_equal_steps_equal_time_and_best_are_three_questions(written):
    folder = written(
        run("logits", "random", 0, copied=1.0, slow=1.0),
        run("relations", "random", 0, copied=0.4, slow=2.0),
        run("relations", "random", 7),  # a seed that the other has not
    )
    assert inside_gaps("relations", folder=folder) == pytest.approx([0.6])
    # After 150 s the slow one has made 75 steps: 4 − 1.5 · 1.2 = 2.2.
    assert inside_gaps("relations", at="time", folder=folder) == pytest.approx([1.0 - 2.2])
    assert inside_gaps("relations", at="best", folder=folder) == pytest.approx([0.6])
    assert inside_gaps("relations", "own", folder=folder) == pytest.approx([0.0])
    assert inside_gaps("cosine", folder=folder) == []


def test_the_two_beginnings_can_be_compared(written):
    folder = written(run("labels", "random", 0), run("labels", "teacher", 0, copied=0.5))
    gaps = inside_gaps("labels", begin="teacher", than="labels", than_begin="random", folder=folder)
    assert gaps == pytest.approx([0.5])


def test_all_seeds_must_agree():
    assert verdict([-0.1, -0.2, -0.3]) == "worse by 0.200 (-0.300 to -0.100)"
    assert verdict([0.1, 0.0, 0.2]).startswith("undecided: 2 of 3")
    assert verdict([0.1, 0.2]).startswith("2 of 5 seeds so far")


def test_the_verdicts_have_a_line_an_arm_that_can_be_compared(written):
    folder = written(
        *(run("logits", "random", seed) for seed in range(3)),
        *(run("hidden", "random", seed, copied=0.5) for seed in range(3)),
    )
    [line] = inside_verdicts(folder).splitlines()[2:]
    assert line.startswith("| logits and hidden states | better by 0.500")


def test_distilberts_table_stands_beside_what_was_published(tmp_path):
    def made(arm, seed, parameters, milliseconds, accuracy, **more):
        measured = {"milliseconds": [milliseconds, 0, 9], "accuracy": accuracy}
        return {"arm": arm, "seed": seed, "parameters": parameters, **measured, **more}

    runs = [
        {"arm": "pre-trained", "seed": 1000, "gap_nll": 1.5},
        made("triple", 0, 600, 2.0, 0.7, gap_nll=2.0),
        made("triple", 1, 600, 2.0, 0.8, gap_nll=3.0),
        made("teacher", 0, 1000, 3.0, 0.8),
        made("teacher", 1, 1000, 3.0, 0.8),
    ]
    (tmp_path / "06_distilbert.json").write_text(json.dumps({"runs": runs}))
    table = distilbert_table(tmp_path).splitlines()
    assert "97 %" in table[2]
    assert table[3].startswith("| teacher | 1,000 |  | 3.00 |  | 1.50 | 80.0% (80.0% to 80.0%)")
    assert table[4].startswith("| **triple loss** | 600 | 40% | 2.00 | 50% | 2.50 | 75.0% (70.0%")
    assert table[4].endswith("| 93.8% |")
