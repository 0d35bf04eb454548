"""What chapter 08 reads of its long experiments: `08_pruning.json` and `08_repair.*.json`.

They may be half done: what has no finished run is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillkit.course.results import RESULTS, marks, recorded
from distillkit.intervals import bootstrap_interval, paired_difference_interval

__all__ = ["pruning_runs", "pruning_table", "repair_runs", "repair_table", "repair_verdicts"]

Run = dict[str, Any]

MODELS = {"teacher": "teacher", "twin": "its twin, with outliers"}
METHODS = {"whole": "—", "magnitude": "magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}
CUTS = {
    "neurons": "half of the neurons",
    "layers": "half of the layers",
    "2:4": "2:4 zeros",
    "neurons anew": "…, random weights",
    "layers anew": "…, random weights",
}
LESSONS = {"none": "—", "labels": "labels", "logits": "labels and logits"}


def pruning_runs(folder: Path = RESULTS) -> dict[tuple[str, str, str], list[Run]]:
    """(model, pattern, method) -> its runs, one for each set of calibration texts."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for content in recorded("08_pruning.json", folder):
        for run in content["runs"]:
            key = run["model"], run.get("pattern", ""), run["method"]
            found.setdefault(key, []).append(run)
    places = {name: place for place, name in enumerate((*MODELS, *METHODS))}
    ordered = sorted(found, key=lambda key: (places[key[0]], key[1], places[key[2]]))
    return {key: found[key] for key in ordered}


def pruning_table(folder: Path = RESULTS) -> str:
    """model × weights gone × method: error of the outputs, NLL, visits served; in Markdown.

    Means over the calibration sets with the least and the greatest; visits with their interval.
    """
    lines = [
        "| model | weights gone | method | sets | error of outputs | NLL | visits served |",
        "|---|---|---|---:|---|---|---|",
    ]
    for (model, pattern, method), runs in pruning_runs(folder).items():
        cells = [MODELS[model], pattern or "none", METHODS[method], len(runs)]
        cells += [_spread(runs, "error"), _spread(runs, "nll"), _served(runs)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def repair_runs(folder: Path = RESULTS) -> dict[tuple[str, str], list[Run]]:
    """(cut, lesson) -> its finished runs, by seed; the lesson "none" has one run and no seed."""
    found: dict[tuple[str, str], list[Run]] = {}
    for content in recorded("08_repair.*.json", folder):
        for run in content["runs"]:
            if "success" in run:  # a tuning trial has none
                found.setdefault((run["cut"], run["lesson"]), []).append(run)
    places = {name: place for place, name in enumerate((*CUTS, *LESSONS))}
    ordered = sorted(found, key=lambda key: (places[key[0]], places[key[1]]))
    return {key: sorted(found[key], key=lambda run: run.get("seed", 0)) for key in ordered}


def repair_table(folder: Path = RESULTS) -> str:
    """cut × lesson: parameters, NLL and visits served in test towns, CPU seconds; in Markdown."""
    lines = [
        "| what was cut | learns from | seeds | parameters | NLL | visits served | CPU s |",
        "|---|---|---:|---:|---|---|---:|",
    ]
    for (cut, lesson), runs in repair_runs(folder).items():
        trained = "seed" in runs[0]
        size = f"{runs[0]['parameters']:,}" if trained else ""
        seconds = f"{sum(run['cpu_seconds'] for run in runs) / len(runs):.0f}" if trained else ""
        cells = [CUTS[cut], LESSONS[lesson], len(runs) if trained else "", size]
        cells += [_spread(runs, "nll"), _served(runs), seconds]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def repair_verdicts(folder: Path = RESULTS) -> list[str]:
    """Do logits mend more than labels, cut by cut? And does the piece beat random weights?

    Visitor by visitor, on the seeds that both have; an interval that holds zero is a tie.
    """
    runs = repair_runs(folder)
    pairs = [((cut, "logits"), (cut, "labels"), f"{CUTS[cut]}: logits over labels") for cut in CUTS]
    pairs += [
        ((cut, lesson), (f"{cut} anew", lesson), f"{CUTS[cut]}, {lesson}: over random weights")
        for cut in ("neurons", "layers")
        for lesson in ("labels", "logits")
    ]
    said = []
    for ours, theirs, named in pairs:
        if common := _common(runs.get(ours, []), runs.get(theirs, [])):
            mine, its = (marks(each) for each in zip(*common, strict=True))
            low, high = paired_difference_interval(mine, its)
            gain = sum(a["success"] - b["success"] for a, b in common) / len(common)
            word = "more" if low > 0 else "fewer" if high < 0 else "a tie"
            said.append(
                f"{named} {gain:+.1%} [{low:+.1%}, {high:+.1%}], {len(common)} seeds: {word}"
            )
    return said


def _common(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    by_seed = {run["seed"]: run for run in theirs}
    return [(run, by_seed[run["seed"]]) for run in ours if run["seed"] in by_seed]


def _served(runs: Sequence[Run]) -> str:
    low, high = bootstrap_interval(marks(runs))
    return f"{sum(run['success'] for run in runs) / len(runs):.1%} [{low:.1%}, {high:.1%}]"


def _spread(runs: Sequence[Run], name: str) -> str:
    values = [run[name] for run in runs]
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread}"
