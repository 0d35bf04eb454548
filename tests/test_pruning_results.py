"""What chapter 08 reads: half done or whole, and verdicts only where seeds are common."""

import json

import pytest

from distillkit.course.pruning_results import (
    pruning_runs,
    pruning_table,
    repair_table,
    repair_verdicts,
)
from distillkit.errors import UserError


def judged(marks, nll=0.1, **more):
    return {"nll": nll, "success": marks.count("1") / len(marks), "successes": marks, **more}


def test_the_pruned_stand_by_model_pattern_and_method(tmp_path):
    runs = [
        judged("1100", 0.3, error=0.2, model="twin", method="magnitude", pattern="50 %", seed=0),
        judged("1110", 0.2, error=0.1, model="teacher", method="wanda", pattern="50 %", seed=0),
        judged("1111", 0.4, error=0.3, model="teacher", method="wanda", pattern="50 %", seed=1),
        judged("1100", 0.3, error=0.2, model="teacher", method="magnitude", pattern="50 %", seed=0),
        judged("1111", 0.1, error=0.0, model="teacher", method="whole"),
    ]
    (tmp_path / "08_pruning.json").write_text(json.dumps({"runs": runs}))
    assert [key[2] for key in pruning_runs(tmp_path)] == [
        "whole",
        "magnitude",
        "wanda",
        "magnitude",
    ]
    table = pruning_table(tmp_path).splitlines()
    assert table[2].startswith("| teacher | none | — | 1 | 0.000 | 0.100 | 100.0% [")
    wanda = "| teacher | 50 % | Wanda | 2 | 0.200 (0.100 to 0.300) | 0.300 (0.200 to 0.400) | 87.5%"
    assert table[4].startswith(wanda)
    assert len({line.count("|") for line in table}) == 1
    with pytest.raises(UserError, match="08_repair"):
        repair_table(tmp_path)


def test_the_mended_are_compared_on_common_seeds(tmp_path):
    def mended(cut, lesson, seed, marks, **more):
        known = {"cut": cut, "lesson": lesson, "seed": seed, "parameters": 1234, "cpu_seconds": 8}
        return judged(marks, **known, **more)

    few, many = "1" + "0" * 9, "1" * 9 + "0"
    runs = [
        judged(few, cut="layers", lesson="none"),
        {"cut": "layers", "lesson": "labels", "tried": {}, "best_validation": 0.1},
        *(mended("layers", "labels", seed, few) for seed in range(3)),
        *(mended("layers", "logits", seed, many) for seed in (0, 1, 7)),
        *(mended("layers anew", "logits", seed, many) for seed in (1, 7)),
    ]
    for cut in ("layers", "layers anew"):
        mine = [run for run in runs if run["cut"] == cut]
        (tmp_path / f"08_repair.{cut}.json").write_text(json.dumps({"runs": mine}))
    table = repair_table(tmp_path).splitlines()
    assert [line.split(" | ")[1] for line in table[2:]] == [
        "—",
        "labels",
        "labels and logits",
        "labels and logits",
    ]
    assert table[2].startswith("| half of the layers | — |  |  | 0.100 |")
    assert table[3].startswith("| half of the layers | labels | 3 | 1,234 | 0.100 (0.100 to")
    assert table[3].endswith("| 8 |")
    more, tie = repair_verdicts(tmp_path)
    assert more.startswith("half of the layers: logits over labels +80.0% [")
    assert more.endswith("2 seeds: more")
    assert tie.startswith("half of the layers, logits: over random weights +0.0% [")
    assert tie.endswith("2 seeds: a tie")
