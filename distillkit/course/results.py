"""The recorded numbers of long experiments, as the chapters read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillkit.course.notebooks import ROOT
from distillkit.errors import UserError
from distillkit.intervals import bootstrap_interval

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


def fair_fight(folder: Path = RESULTS) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """arm -> conversations -> a run for each training seed that all arms have finished.

    Recorded by `experiments/04_fair_fight.py`. Seeds are in the same order for all arms, so the
    visitors' marks of two arms can be compared pair by pair.
    """
    runs: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for content in recorded("04_fair_fight.*.json", folder):
        for run in content["runs"]:
            if "success" in run:  # a tuning trial has none
                runs.setdefault(run["arm"], {})[run["size"], run["seed"]] = run
    shared = sorted(set.intersection(*map(set, runs.values()))) if runs else []
    return {
        arm: {size: [made[key] for key in shared if key[0] == size] for size, _ in shared}
        for arm, made in runs.items()
    }


def marks(runs: Sequence[dict[str, Any]]) -> list[list[bool]]:
    """Which visitors each run served, (seeds, visitors), as the bootstrap intervals take them."""
    return [[mark == "1" for mark in run["successes"]] for run in runs]


def fair_table(folder: Path = RESULTS) -> str:
    """conversations × arm × (NLL, task success), in Markdown, with their spread over seeds."""
    from distillkit.plots import ROLES  # and matplotlib with it

    lines = [
        "| conversations | student | seeds | NLL (least to greatest) | visits served "
        "| least to greatest |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    fight = fair_fight(folder)
    for size in sorted({size for sizes in fight.values() for size in sizes}):
        for arm in (role for role in ROLES if role in fight):
            runs = fight[arm][size]
            lines.append(
                f"| {size:,} | {ROLES[arm].name} | {len(runs)} "
                f"| {_spread([run['nll'] for run in runs])} | {_served(runs)} |"
            )
    return "\n".join(lines)


def stages_table(folder: Path = RESULTS) -> str:
    """stages × (NLL, of copied and of own tokens, visits served), in Markdown, over seeds.

    Recorded by `experiments/03_stages.py` at the student's size.
    """
    [content] = recorded("03_stages.student.json", folder)
    lines = [
        "| stages | seeds | NLL (least to greatest) | copied | own | visits served "
        "| least to greatest |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in dict.fromkeys(run["arm"] for run in content["runs"]):
        runs = [run for run in content["runs"] if run["arm"] == arm]
        copied, own = (
            sum(run["by_origin"][kind] for run in runs) / len(runs) for kind in ("copied", "own")
        )
        lines.append(
            f"| {arm} | {len(runs)} | {_spread([run['nll'] for run in runs])} "
            f"| {copied:.3f} | {own:.3f} | {_served(runs)} |"
        )
    return "\n".join(lines)


def intents_table(folder: Path = RESULTS) -> str:
    """The runs of `experiments/05_front_desk_intents.py` in Markdown: a line a setting.

    Accuracy in towns whose names the training texts hold, then in new ones; means over seeds, with
    the least and the greatest.
    """
    [content] = recorded("05_front_desk_intents.json", folder)
    lines = [
        "| learns from | α | T | texts | steps | rate | seeds | accuracy, known | new "
        "| out of scope found | NLL, new |",
        "|---|---:|---:|---:|---:|---:|---:|---|---|---|---|",
    ]
    for runs in _alike(content["runs"], "arm", "setting"):
        its = runs[0]["setting"]
        told = runs[0]["arm"] + (", smoothed" if its.get("smoothing") else "")
        cells = [told, its.get("alpha", "—"), its.get("temperature", "—")]
        cells += [f"{its.get('texts', 6000):,}", its["steps"], its["rate"], len(runs)]
        cells += [_shares(runs, "known", "accuracy"), _shares(runs, "test", "accuracy")]
        cells += [_shares(runs, "test", "recall_out_of_scope")]
        cells += [_spread([run["test"]["nll"] for run in runs])]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def clinc_table(folder: Path = RESULTS) -> str:
    """The runs of `experiments/05_clinc150.py` in Markdown: a line an arm and size."""
    [content] = recorded("05_clinc150.json", folder)
    judged = [{**run, "test": run} for run in content["runs"] if "accuracy" in run]
    lines = [
        "| learns from | labels | seeds | accuracy in scope | out of scope found | NLL | ECE |",
        "|---|---:|---:|---|---|---|---|",
    ]
    for runs in _alike(judged, "arm", "size"):
        labels = 0 if runs[0]["arm"] == "unlabelled" else runs[0]["size"]
        measures = [_shares(runs, "test", name) for name in ("accuracy", "recall_out_of_scope")]
        measures += [_spread([run[name] for run in runs]) for name in ("nll", "calibration_error")]
        cells = (runs[0]["arm"], f"{labels:,}", len(runs), *measures)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _alike(runs: Sequence[dict[str, Any]], *keys: str) -> list[list[dict[str, Any]]]:
    """The runs in groups that agree in `keys`, in the order of their first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run[key] for key in keys]), []).append(run)
    return list(groups.values())


def _shares(runs: Sequence[dict[str, Any]], part: str, name: str) -> str:
    found = [run[part][name] for run in runs]
    return f"{sum(found) / len(found):.1%} ({min(found):.1%} to {max(found):.1%})"


def students(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The runs of `experiments/00_students.py`, whose models ship: small to large, distilled first.

    Each has its "name", which is the shipped model's.
    """
    runs = [run for file in recorded("00_students.*.json", folder) for run in file["runs"]]
    shipped = [run for run in runs if "name" in run]  # a tuning trial has none
    return sorted(shipped, key=lambda run: (run["parameters"], run["arm"]))


def overview(folder: Path = RESULTS) -> str:
    """The table of the README: the shipped models, in towns that they have never seen."""
    teacher = recorded("01_teacher.json", folder)[0]["runs"][0]
    lines = [
        "| model | parameters | MB | NLL | visits served |",
        "|---|---:|---:|---:|---:|",
        _line("the desk itself (the truth)", None, teacher["floor"], "100 %"),
        _line("front-desk-teacher", teacher, teacher["nll"], _share(teacher)),
    ]
    lines += [_line(run["name"], run, run["nll"], _share(run)) for run in students(folder)]
    return "\n".join(lines)


def _line(name: str, run: dict[str, Any] | None, nll: float, share: str) -> str:
    size = f"{run['parameters']:,} | {run['bytes'] / 1e6:.2f}" if run else " | "
    return f"| {name} | {size} | {nll:.3f} | {share} |"


def _share(run: dict[str, Any]) -> str:
    return f"{run['success']:.1%} [{run['low']:.1%}, {run['high']:.1%}]"


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _served(runs: Sequence[dict[str, Any]]) -> str:
    low, high = bootstrap_interval(marks(runs))
    shares = [run["success"] for run in runs]
    mean = f"{sum(shares) / len(runs):.1%} [{low:.1%}, {high:.1%}]"
    return f"{mean} | {min(shares):.1%} to {max(shares):.1%}"
