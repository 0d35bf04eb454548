"""The recorded numbers of long experiments, as the chapters read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distillkit.course.notebooks import ROOT
from distillkit.errors import UserError

RESULTS = ROOT / "experiments" / "results"


def recorded(pattern: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The contents of the result files whose names match, such as "04_fair_fight.*.json".

    Raises UserError where there is none, with the command that makes them.
    """
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise UserError(
            f"found no experiments/results/{pattern}: get it from the repository, or run "
            "`make results` (hours)"
        )
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def overview(folder: Path = RESULTS) -> str:
    """The table of the README: the shipped models, in towns that they have never seen."""
    teacher = recorded("01_teacher.json", folder)[0]["runs"][0]
    files = recorded("02_students.*.json", folder)
    students = {run["arm"]: run for file in files for run in file["runs"]}
    lines = [
        "| model | parameters | MB | NLL | visits served |",
        "|---|---:|---:|---:|---:|",
        _line("the desk itself (the truth)", None, teacher["floor"], "100 %"),
        _line("teacher", teacher, teacher["nll"], _share(teacher)),
    ]
    names = {"distilled": "student, distilled", "labels": "student, labels alone"}
    lines += [_line(names[arm], run, run["nll"], _share(run)) for arm, run in students.items()]
    return "\n".join(lines)


def _line(name: str, run: dict[str, Any] | None, nll: float, share: str) -> str:
    size = f"{run['parameters']:,} | {run['bytes'] / 1e6:.2f}" if run else " | "
    return f"| {name} | {size} | {nll:.3f} | {share} |"


def _share(run: dict[str, Any]) -> str:
    return f"{run['success']:.1%} [{run['low']:.1%}, {run['high']:.1%}]"
