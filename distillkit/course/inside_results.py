"""What chapter 06 reads of its long experiments: `06_inside.*.json` and `06_distilbert.json`.

Everything here copes with what is there so far: arms and seeds that are missing are left out, and
where nothing is recorded yet a sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.course.results import RESULTS, marks, recorded
from distillkit.errors import UserError
from distillkit.intervals import bootstrap_interval

__all__ = [
    "distilbert_runs",
    "distilbert_table",
    "inside_curves",
    "inside_gaps",
    "inside_runs",
    "inside_table",
    "inside_verdicts",
]

ROLES_OF = {
    "labels": "labels",
    "logits": "distilled",
    "hidden": "hidden",
    "cosine": "cosine",
    "attention": "attention",
    "relations": "relations",
}
COLUMNS = {"nll": 2, "copied": 3, "own": 4}  # of a point of a curve: step, CPU seconds, …
PUBLISHED = "| *DistilBERT, as published* | | *40 %* | | *60 %* | | | *97 % (GLUE)* |"
NOT_YET = "*Nothing is recorded yet: `python experiments/{script}` (hours) writes it.*"
NOTHING_COMMON = "*Nothing to compare yet: no arm shares a finished seed with logits alone.*"
SEEDS = 5
BEGUN_AS_A_PIECE = ("labels", "logits", "cosine")
STARTS = {"random": "random weights", "teacher": "the teacher's layers"}

Run = dict[str, Any]


def inside_runs(folder: Path = RESULTS) -> dict[tuple[str, str], list[Run]]:
    """(arm, where it begins: "random" or "teacher") -> the finished runs, by seed."""
    runs: dict[tuple[str, str], list[Run]] = {}
    for content in _recorded("06_inside.*.json", folder):
        for run in content["runs"]:
            if "success" in run:  # a tuning trial has none
                runs.setdefault((run["arm"], run["begin"]), []).append(run)
    order = [(arm, begin) for begin in ("random", "teacher") for arm in ROLES_OF]
    return {key: sorted(runs[key], key=lambda run: run["seed"]) for key in order if key in runs}


def inside_curves(
    what: str = "copied", *, begin: str = "random", seconds: bool = False, folder: Path = RESULTS
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """role -> (steps, or mean CPU seconds, (points,); values (seeds, points)) to be drawn.

    what: "nll", or that of "copied" values or of the "own" words.
    """
    curves = {}
    for (arm, where), runs in inside_runs(folder).items():
        if where == begin:
            table = _table(runs)
            x = table[:, :, 1].mean(axis=0) if seconds else table[0, :, 0]
            curves[ROLES_OF[arm]] = x, table[:, :, COLUMNS[what]]
    return curves


def inside_table(folder: Path = RESULTS) -> str:
    """beginning × arm × (NLL of copied values and own words, CPU time, visits served).

    What is not there yet, arms or seeds, stands in a line below.
    """
    from distillkit.plots import ROLES  # and matplotlib with it

    lines = [
        "| begins from | student | seeds | copied values | own words | CPU s "
        "| visits served | least to greatest |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (arm, begin), runs in inside_runs(folder).items():
        taken = sum(run["curve"][-1][1] for run in runs) / len(runs)
        low, high = bootstrap_interval(marks(runs))
        shares = [run["success"] for run in runs]
        lines.append(
            f"| {STARTS[begin]} | {ROLES[ROLES_OF[arm]].name} | {len(runs)} "
            f"| {_spread(runs, 'copied')} | {_spread(runs, 'own')} | {taken:.0f} "
            f"| {sum(shares) / len(runs):.1%} [{low:.1%}, {high:.1%}] "
            f"| {min(shares):.1%} to {max(shares):.1%} |"
        )
    if len(lines) == 2:
        return NOT_YET.format(script="06_inside.py")
    return "\n".join(lines) + _still_to_come(inside_runs(folder))


def inside_gaps(
    arm: str,
    what: str = "copied",
    *,
    than: str = "logits",
    begin: str = "random",
    than_begin: str | None = None,
    at: str = "steps",
    folder: Path = RESULTS,
) -> list[float]:
    """How much lower the NLL of an arm is than another's, seed by seed (below 0: it is higher).

    at: "steps", after the last step that both have; "time", after the CPU seconds in which the
    quicker of the two runs of a seed was done, on the line between two points; "best", in the test
    worlds, each at its own best checkpoint. Empty where the two share no seed.
    """
    found = inside_runs(folder)
    mine = {run["seed"]: run for run in found.get((arm, begin), [])}
    its = {run["seed"]: run for run in found.get((than, than_begin or begin), [])}
    gaps = []
    for seed in sorted(mine.keys() & its.keys()):
        pair = its[seed], mine[seed]
        if at == "best":
            one, other = (run[what] for run in pair)
        else:
            axis = 1 if at == "time" else 0
            end = min(run["curve"][-1][axis] for run in pair)
            one, other = (_at(run["curve"], axis, end, COLUMNS[what]) for run in pair)
        gaps.append(one - other)
    return gaps


def inside_verdicts(folder: Path = RESULTS) -> str:
    """Which arm is better than logits alone, at equal steps, equal time, and best against best.

    In Markdown, a line an arm: the gain in nats for each copied token, with the least and greatest
    over seeds, and whether all seeds agree.
    """
    from distillkit.plots import ROLES

    lines = [
        "| beside logits alone | copied values, equal steps | equal CPU time "
        "| best against best | own words, equal steps |",
        "|---|---|---|---|---|",
    ]
    for arm, role in ROLES_OF.items():
        gaps = [
            inside_gaps(arm, "copied", at=at, folder=folder) for at in ("steps", "time", "best")
        ]
        gaps.append(inside_gaps(arm, "own", folder=folder))
        if arm != "logits" and all(gaps):
            told = " | ".join(map(verdict, gaps))
            lines.append(f"| {ROLES[role].name} | {told} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING_COMMON


def verdict(gaps: Sequence[float]) -> str:
    """Gains of one arm over another, seed by seed, in words: all seeds must agree to call it.

    >>> verdict([0.2, 0.1, 0.3])
    'better by 0.200 (+0.100 to +0.300)'
    >>> verdict([0.2, -0.1, 0.3])
    'undecided: 2 of 3 seeds better (-0.100 to +0.300)'
    """
    mean, spread = sum(gaps) / len(gaps), f"({min(gaps):+.3f} to {max(gaps):+.3f})"
    if len(gaps) < 3:
        return f"{len(gaps)} of 5 seeds so far {spread}"
    if min(gaps) > 0 or max(gaps) < 0:
        return f"{'better' if mean > 0 else 'worse'} by {abs(mean):.3f} {spread}"
    better = sum(gap > 0 for gap in gaps)
    return f"undecided: {better} of {len(gaps)} seeds better {spread}"


def distilbert_runs(folder: Path = RESULTS) -> dict[str, list[Run]]:
    """arm -> the finished runs of `06_distilbert.json`, "teacher" first; {} where there is none."""
    runs: dict[str, list[Run]] = {}
    for content in _recorded("06_distilbert.json", folder):
        for run in content["runs"]:
            if "accuracy" in run:  # the pre-trained teacher has none
                runs.setdefault(run["arm"], []).append(run)
    return {arm: runs[arm] for arm in sorted(runs, key=lambda arm: arm != "teacher")}


def distilbert_table(folder: Path = RESULTS) -> str:
    """arm × (size, speed, NLL of gaps, accuracy, share of the teacher's), beside the published.

    "faster" is the teacher's time over the student's, minus one, as the paper counts its 60 %.
    """
    found = distilbert_runs(folder)
    if "teacher" not in found:
        return NOT_YET.format(script="06_distilbert.py")
    lines = [
        "| model | parameters | smaller | ms a text | faster | NLL of gaps "
        "| accuracy (least to greatest) | of the teacher's |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
        PUBLISHED,
    ]
    [pre_trained] = _recorded("06_distilbert.json", folder)
    gaps = {run["arm"]: run["gap_nll"] for run in pre_trained["runs"] if "gap_nll" in run}
    teacher = found["teacher"]
    for arm, runs in found.items():
        size, slow = runs[0]["parameters"], _mean(runs, "milliseconds")
        smaller = 1 - size / teacher[0]["parameters"]
        faster = _mean(teacher, "milliseconds") / slow - 1
        share = _mean(runs, "accuracy") / _mean(teacher, "accuracy")
        own = [run["gap_nll"] for run in runs if "gap_nll" in run]
        gap = sum(own) / len(own) if own else gaps["pre-trained"]
        compared = (f"{smaller:.0%}", f"{faster:.0%}") if arm != "teacher" else ("", "")
        name = {"triple": "**triple loss**", "random": "triple loss, random beginning"}.get(
            arm, arm
        )
        lines.append(
            f"| {name} | {size:,} | {compared[0]} | {slow:.2f} | {compared[1]} | {gap:.2f} "
            f"| {_accuracy(runs)} | {share:.1%} |"
        )
    return "\n".join(lines)


def _recorded(pattern: str, folder: Path) -> list[Run]:
    try:
        return recorded(pattern, folder)
    except UserError:  # nothing yet
        return []


def _still_to_come(runs: dict[tuple[str, str], list[Run]]) -> str:
    from distillkit.plots import ROLES

    parts = []
    for begin, arms in (("random", tuple(ROLES_OF)), ("teacher", BEGUN_AS_A_PIECE)):
        names = []
        for arm in arms:
            count = len(runs.get((arm, begin), ()))
            so_far = f" ({count} of {SEEDS} seeds are there)" if count else ""
            if count < SEEDS:
                names.append(f"{ROLES[ROLES_OF[arm]].name}{so_far}")
        if names:
            parts.append(f"from {STARTS[begin]}: {' · '.join(names)}")
    return f"\n\n*Still to come, {'; '.join(parts)}.*" if parts else ""


def _table(runs: Sequence[Run]) -> np.ndarray:
    """(seeds, points, columns), cut to the points that all runs have."""
    points = min(len(run["curve"]) for run in runs)
    return np.array([run["curve"][:points] for run in runs], dtype=float)


def _at(curve: Sequence[Sequence[float]], axis: int, place: float, column: int) -> float:
    table = np.array(curve, dtype=float)
    return float(np.interp(place, table[:, axis], table[:, column]))


def _mean(runs: Sequence[Run], name: str) -> float:
    values = [run[name][0] if isinstance(run[name], list) else run[name] for run in runs]
    return sum(values) / len(values)


def _spread(runs: Sequence[Run], name: str) -> str:
    values = [run[name] for run in runs]
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _accuracy(runs: Sequence[Run]) -> str:
    values = [run["accuracy"] for run in runs]
    return f"{sum(values) / len(values):.1%} ({min(values):.1%} to {max(values):.1%})"
