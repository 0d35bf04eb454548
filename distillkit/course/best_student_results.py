"""What chapter 07 reads of `experiments/07_best_student.py`: how far the shipped student goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.course.results import RESULTS, marks, recorded, students
from distillkit.intervals import paired_difference_interval, paired_ratio_interval

__all__ = ["WAYS", "best_student_table", "best_student_verdicts", "speakers"]

Run = dict[str, Any]
TEACHER, SHIPPED = "front-desk-teacher", "front-desk-student"
NOT_YET = "(`python experiments/07_best_student.py` has not been run yet)"

WAYS = {
    "forward_kl": "forward KL",
    "forward_kl_longer": "forward KL, longer",
    "logits_mse": "MSE of the logits",
    "labels": "labels",
    "on_policy": "its own words, reverse KL",
    "on_policy_jsd": "its own words, Jensen-Shannon",
    "mixed": "half on-policy, half forward KL",
}
"""The arms of `experiments/07_best_student.py`, and their names."""


def speakers(folder: Path = RESULTS) -> dict[str, np.ndarray]:
    """role -> which of the same 1,000 test visitors it served, (1000,) booleans.

    The shipped student, distilled and of labels, by `experiments/00_students.py`; and the teacher,
    as soon as `experiments/07_best_student.py` has measured it.
    """
    served = {run["name"]: run for run in students(folder)}
    found = {"distilled": served[SHIPPED], "labels": served[f"{SHIPPED}-labels"]}
    measured = _taken_further(folder)
    if measured:
        found = {"teacher": measured[0], **found}
    return {role: np.array(marks([run])[0]) for role, run in found.items()}


def best_student_table(folder: Path = RESULTS) -> str:
    """The runs of `experiments/07_best_student.py` in Markdown, with the share of the teacher's.

    Development visitors are for the choice, test visitors for the report.
    """
    measured = _taken_further(folder)
    if not measured:
        return NOT_YET
    teacher, *runs = measured
    lines = [
        "| goes on by | seed | steps | CPU s | development | test, 1,000 visitors | NLL "
        "| share of the teacher's |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for run in (teacher, *runs):
        cells = [run.get("model") or WAYS.get(run["arm"], run["arm"]), run.get("seed", "")]
        cells += [run.get("steps", ""), run.get("cpu_seconds", "")]
        cells += [f"{run['development']:.1%}"]
        cells += [f"{run['success']:.1%} [{run['low']:.1%}, {run['high']:.1%}]"]
        cells += [f"{run['nll']:.4f}", f"{run['success'] / teacher['success']:.1%}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def best_student_verdicts(folder: Path = RESULTS, *, aim: float = 0.97) -> list[str]:
    """What the arm chosen on development visitors serves, and what each arm gained by going on."""
    measured = _taken_further(folder)
    if len(measured) < 2:
        return [NOT_YET]
    teacher, shipped, *runs = measured
    groups = {arm: [run for run in runs if run["arm"] == arm] for arm in WAYS}
    groups = {arm: group for arm, group in groups.items() if group}
    everyone = {"as shipped": [shipped], **groups}
    best = max(everyone, key=lambda arm: _mean(everyone[arm], "development"))
    share = _mean(everyone[best], "success") / teacher["success"]
    served = marks(everyone[best])
    low, high = paired_ratio_interval(served, marks([teacher] * len(served)))
    reached = "reaches" if low >= aim else "does not reach" if high < aim else "may reach"
    said = [
        f"chosen on development visitors: {WAYS.get(best, shipped['model'])}. It serves "
        f"{share:.1%} [{low:.1%}, {high:.1%}] of what the teacher serves; by that it {reached} "
        f"{aim:.0%}."
    ]
    for arm, group in groups.items():
        gain = _mean(group, "success") - shipped["success"]
        low, high = _fewer(group, shipped)
        count = len({run["seed"] for run in group})
        alone = "one training: " if count == 1 else f"{count} trainings: "
        change = "more" if low > 0 else "fewer" if high < 0 else "no sure change"
        said.append(
            f"going on by {WAYS[arm]}: {gain:+.1%} [{low:+.1%}, {high:+.1%}], {alone}{change}"
        )
    missing = [name for arm, name in WAYS.items() if arm not in groups]
    if missing:
        said.append(f"still to come: {'; '.join(missing)}")
    if "labels" not in groups:
        said.append("without the arm of labels, a gain may be that of more steps alone")
    return said


def _fewer(ours: Sequence[Run], theirs: Run) -> tuple[float, float]:
    """The interval of the difference in visits, of all visitors."""
    return paired_difference_interval(marks(ours), marks([theirs] * len(ours)))


def _taken_further(folder: Path) -> list[Run]:
    """The teacher, the shipped student, and those that went on from it; nothing where none is."""
    if not (folder / "07_best_student.json").exists():
        return []
    [content] = recorded("07_best_student.json", folder)
    order = [TEACHER, SHIPPED]
    key = lambda run: order.index(run["model"]) if "model" in run else len(order)  # noqa: E731
    return sorted(content["runs"], key=key)


def _mean(runs: Sequence[Run], name: str) -> float:
    return float(sum(run[name] for run in runs) / len(runs))
