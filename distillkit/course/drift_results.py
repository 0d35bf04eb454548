"""What chapter 07 reads of `experiments/07_drift.py`: the same visitors, served twice.

Every figure has its interval over visitors, and a sentence claims a difference only where the
interval of the paired difference leaves zero out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distillkit.course.results import RESULTS, recorded

Group = dict[str, Any]
Curves = dict[str, tuple[list[float], list[float]]]


def drift_groups(folder: Path = RESULTS) -> dict[str, list[Group]]:
    """student -> its groups of turns, the last of them "all"; as recorded."""
    [content] = recorded("07_drift.json", folder)
    return {run["student"]: run["groups"] for run in content["runs"]}


def drift_curves(student: str, folder: Path = RESULTS) -> tuple[Curves, Curves]:
    """Two maps by role, "desk_words" and "own_words", for `plots.lines`: curves, and their bands.

    curves: role -> (mean turn of each group, KL there). bands: role -> (low, high).
    """
    groups = drift_groups(folder)[student][:-1]
    turns = [group["mean_turn"] for group in groups]
    curves, bands = {}, {}
    for role, side in (("desk_words", "desk"), ("own_words", "own")):
        curves[role] = turns, [group[side] for group in groups]
        lows, highs = zip(*(group[f"{side}_interval"] for group in groups), strict=True)
        bands[role] = list(lows), list(highs)
    return curves, bands


def drift_table(folder: Path = RESULTS) -> str:
    """student × turns: KL on both kinds of words, and their quotient, in Markdown."""
    lines = [
        "| student | turns | visitors | KL, desk's words | KL, own words | own/desk |",
        "|---|---|---:|---|---|---|",
    ]
    for student, groups in drift_groups(folder).items():
        for group in groups:
            low, high = group["ratio_interval"]
            cells = [student, group["turns"], group["visitors"]]
            cells += [_nats(group, "desk"), _nats(group, "own")]
            cells += [f"{group['ratio']:.2f} [{low:.2f}, {high:.2f}]"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def drift_verdicts(folder: Path = RESULTS) -> list[str]:
    """A sentence for each student: how much further it is on its own words, and in which turns."""
    return [_verdict(student, groups) for student, groups in drift_groups(folder).items()]


def _verdict(student: str, groups: list[Group]) -> str:
    *parts, whole = groups
    low, high = whole["ratio_interval"]
    named: dict[str, list[str]] = {"further": [], "nearer": [], "undecided": []}
    for part in parts:
        named[_side(part)].append(part["turns"])
    told = [f"{how} in turns {', '.join(turns)}" for how, turns in named.items() if turns]
    sides = {
        "further": "further from its teacher on its own words",
        "nearer": "nearer to its teacher on its own words",
        "undecided": "no difference that is sure",
    }
    return (
        f"{student}: {sides[_side(whole)]}, {whole['ratio']:.2f} times [{low:.2f}, {high:.2f}] "
        f"over all turns ({'; '.join(told)})"
    )


def _side(group: Group) -> str:
    low, high = group["difference_interval"]
    return "further" if low > 0 else "nearer" if high < 0 else "undecided"


def _nats(group: Group, side: str) -> str:
    low, high = group[f"{side}_interval"]
    return f"{group[side]:.4f} [{low:.4f}, {high:.4f}]"
