"""What chapter 07 reads of its two long experiments: every method, and the best student.

Both may be half done: an arm that has no finished run is left out, and two arms are compared on the
seeds that both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.course.results import RESULTS, marks, recorded, students
from distillkit.intervals import bootstrap_interval, paired_difference_interval

__all__ = [
    "METHODS",
    "best_student_table",
    "best_student_verdict",
    "method_curves",
    "method_runs",
    "methods_table",
    "methods_verdicts",
    "speakers",
    "tuning_table",
]

Run = dict[str, Any]
SHIPPED = "front-desk-student"
NOT_YET = "(`python experiments/07_best_student.py` has not been run yet)"

METHODS = {
    "labels": "labels",
    "smoothing": "label smoothing",
    "written_greedy": "the teacher's text, greedy",
    "written_sampled": "the teacher's text, sampled",
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "jensen_shannon": "Jensen-Shannon",
    "skew_kl": "skew KL",
    "total_variation": "total variation",
    "logits_mse": "MSE of the logits",
    "one_turn": "on-policy, one turn",
    "on_policy": "on-policy, whole visits",
    "on_policy_half": "on-policy, every other step",
}
"""The arms of `experiments/07_methods.py`, in the chapter's order, and their names."""


def method_runs(folder: Path = RESULTS) -> dict[str, list[Run]]:
    """arm -> its finished runs, by seed; recorded by `experiments/07_methods.py`."""
    made: dict[str, list[Run]] = {}
    for content in recorded("07_methods.*.json", folder):
        for run in content["runs"]:
            if "success" in run:  # a tuning trial has none, nor has the measurement of memory
                made.setdefault(run["arm"], []).append(run)
    return {arm: sorted(made[arm], key=lambda run: run["seed"]) for arm in METHODS if arm in made}


def methods_table(folder: Path = RESULTS) -> str:
    """method × (visits served, NLL, calibration, KL to the teacher, time, memory), in Markdown.

    Means over the seeds, with the least and the greatest where there are several; visits with their
    interval over visitors and seeds. Seconds are CPU seconds of one training, and beside them the
    teacher's, which are spent once.
    """
    lines = [
        "| method | seeds | visits served | NLL | ECE | KL, desk's words | KL, own words "
        "| CPU s + teacher's | MB |",
        "|---|---:|---|---|---|---|---|---:|---:|",
    ]
    peaks = _peaks(folder)
    for arm, runs in method_runs(folder).items():
        low, high = bootstrap_interval(marks(runs))
        served = f"{_mean(runs, 'success'):.1%} [{low:.1%}, {high:.1%}]"
        measures = [_spread(runs, name) for name in ("nll", "calibration_error")]
        measures += [_spread(runs, name) for name in ("kl", "kl_own_words")]
        seconds = sum(run["curve"][-1][1] for run in runs) / len(runs)
        time = f"{seconds:.0f} + {runs[0]['teacher_seconds']:.0f}"
        peak = f"{peaks[arm]:,.0f}" if arm in peaks else "—"
        cells = [METHODS[arm], len(runs), served, *measures, time, peak]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def tuning_table(folder: Path = RESULTS) -> str:
    """The two trials of each arm and their validation NLL, in Markdown; the better one is bold."""
    lines = ["| method | trial | NLL | trial | NLL |", "|---|---|---:|---|---:|"]
    tried: dict[str, list[Run]] = {}
    for content in recorded("07_methods.*.json", folder):
        for run in content["runs"]:
            if "tried" in run:
                tried.setdefault(run["arm"], []).append(run)
    for arm in (arm for arm in METHODS if arm in tried):
        best = min(tried[arm], key=lambda run: run["best_validation"])
        cells = [METHODS[arm]]
        for run in tried[arm]:
            value = f"{run['best_validation']:.3f}"
            named = ", ".join(f"{key} {setting}" for key, setting in run["tried"].items())
            cells += [named, f"**{value}**" if run is best else value]
        lines.append(f"| {' | '.join(cells + [''] * (5 - len(cells)))} |")
    return "\n".join(lines)


def method_curves(
    arms: Sequence[str] = tuple(METHODS),
    folder: Path = RESULTS,
    *,
    measure: str = "curve",
    by: str = "steps",
) -> dict[str, tuple[list[float], list[float]]]:
    """arm -> (x, mean over its seeds) of "curve" (validation NLL) or "served" (development visits).

    by: "steps", or "seconds" of CPU time with what the teacher spent before.
    """
    curves = {}
    for arm, runs in method_runs(folder).items():
        points = list(zip(*(run[measure] for run in runs), strict=True)) if arm in arms else []
        if points:
            place = 1 if by == "seconds" else 0
            before = runs[0]["teacher_seconds"] if by == "seconds" else 0.0
            x = [before + sum(each[place] for each in point) / len(point) for point in points]
            curves[arm] = x, [sum(each[2] for each in point) / len(point) for point in points]
    return curves


def methods_verdicts(folder: Path = RESULTS, *, against: str = "forward_kl") -> list[str]:
    """A sentence for each arm: does it win, lose or tie in visits served, beside `against`?

    Visitor by visitor, on the seeds that both have; an interval that holds zero is a tie. Then the
    arm that serves most, and what does not pay: what costs more seconds and does not win.
    """
    runs = method_runs(folder)
    if against not in runs:
        return [f"{METHODS[against]}: no finished run yet"]
    said, verdicts = [], {}
    for arm in (arm for arm in runs if arm != against):
        pair = _paired(runs[arm], runs[against])
        if not pair:
            continue
        ours, theirs = map(list, zip(*pair, strict=True))
        gain = _mean(ours, "success") - _mean(theirs, "success")
        low, high = paired_difference_interval(marks(ours), marks(theirs))
        verdicts[arm] = "wins" if low > 0 else "loses" if high < 0 else "ties"
        count = f"{len(pair)} seed{'s' * (len(pair) > 1)}"
        said.append(
            f"{METHODS[arm]} {verdicts[arm]}: {gain:+.1%} [{low:+.1%}, {high:+.1%}], {count}"
        )
    best = max(runs, key=lambda arm: _mean(runs[arm], "success"))
    said.append(f"serves most: {METHODS[best]}, {_mean(runs[best], 'success'):.1%}")
    dear = [
        METHODS[arm]
        for arm, verdict in verdicts.items()
        if verdict != "wins" and _cost(runs[arm]) > 1.1 * _cost(runs[against])
    ]
    if dear:
        said.append(f"costs more and does not win: {', '.join(dear)}")
    return said


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
        cells = [run.get("model") or METHODS.get(run["arm"], run["arm"]), run.get("seed", "")]
        cells += [run.get("steps", ""), run.get("cpu_seconds", "")]
        cells += [f"{run['development']:.1%}"]
        cells += [f"{run['success']:.1%} [{run['low']:.1%}, {run['high']:.1%}]"]
        cells += [f"{run['nll']:.4f}", f"{run['success'] / teacher['success']:.1%}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def best_student_verdict(folder: Path = RESULTS, *, aim: float = 0.97) -> str:
    """Whether the arm chosen on development visitors reaches `aim` of the teacher's visits."""
    measured = _taken_further(folder)
    if len(measured) < 2:
        return NOT_YET
    teacher, *runs = measured
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    groups = {arm: [run for run in runs if run["arm"] == arm] for arm in arms}
    best = max(groups.values(), key=lambda group: _mean(group, "development"))
    share = _mean(best, "success") / teacher["success"]
    both = [[teacher] * len(best), best]
    low, high = paired_difference_interval(*(marks(each) for each in both[::-1]))
    reached = "reaches" if share >= aim else "does not reach"
    name = best[0].get("model") or METHODS.get(best[0]["arm"], best[0]["arm"])
    return (
        f"chosen on development visitors: {name}. It {reached} {aim:.0%} of the teacher's visits: "
        f"{share:.1%}, {low:+.1%} to {high:+.1%} of all visits beside the teacher"
    )


def _taken_further(folder: Path) -> list[Run]:
    """The teacher, the shipped student, and those that went on from it; nothing where none is."""
    if not (folder / "07_best_student.json").exists():
        return []
    [content] = recorded("07_best_student.json", folder)
    return sorted(content["runs"], key=lambda run: "teacher" not in run.get("model", ""))


def _paired(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    by_seed = {run["seed"]: run for run in theirs}
    return [(run, by_seed[run["seed"]]) for run in ours if run["seed"] in by_seed]


def _peaks(folder: Path) -> dict[str, float]:
    contents = recorded("07_methods.*.json", folder)
    return {
        run["arm"]: run["peak_mb"]
        for content in contents
        for run in content["runs"]
        if "peak_mb" in run
    }


def _cost(runs: Sequence[Run]) -> float:
    return float(sum(run["curve"][-1][1] + run["teacher_seconds"] for run in runs) / len(runs))


def _mean(runs: Sequence[Run], name: str) -> float:
    return float(sum(run[name] for run in runs) / len(runs))


def _spread(runs: Sequence[Run], name: str) -> str:
    values = [run[name] for run in runs]
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{_mean(runs, name):.3f}{spread}"
