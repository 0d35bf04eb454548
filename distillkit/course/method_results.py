"""What chapter 07 reads of `experiments/07_methods.py`: every method of distillation.

It may be half done: an arm that has no finished run is left out, and two arms are compared on the
seeds that both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillkit.course.results import RESULTS, marks, recorded
from distillkit.intervals import bootstrap_interval, paired_difference_interval

__all__ = [
    "METHODS",
    "method_curves",
    "method_runs",
    "methods_summary",
    "methods_table",
    "methods_verdicts",
    "speaking_verdicts",
    "tuning_table",
]

Run = dict[str, Any]

METHODS = {
    "labels": "labels",
    "smoothing": "label smoothing",
    "written_greedy": "the teacher's text (greedy)",
    "written_sampled": "the teacher's text (sampled)",
    "forward_kl": "forward KL",
    "forward_kl_weight": "forward KL, its weight tuned",
    "reverse_kl": "reverse KL",
    "reverse_kl_late": "reverse KL after forward KL",
    "jensen_shannon": "Jensen-Shannon",
    "skew_kl": "skew KL",
    "total_variation": "total variation",
    "logits_mse": "MSE of the logits",
    "one_turn": "on-policy (one turn)",
    "on_policy": "on-policy (whole visits)",
    "on_policy_half": "on-policy (every other step)",
}
"""The arms of `experiments/07_methods.py`, in the chapter's order, and their names."""

SPEAKING = ("one_turn", "on_policy", "on_policy_half")
TEXTS = ("written_greedy", "written_sampled")
LEAST_SEEDS = 3
"""With fewer, an interval says something about these students, and nothing about the method."""


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
        clock = " (wall)" if arm in TEXTS else ""  # what `sequence_level` notes of its writing
        time = f"{seconds:.0f} + {runs[0]['teacher_seconds']:.0f}{clock}"
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
            named = ", ".join(_setting(*each) for each in run["tried"].items())
            cells += [named, f"**{value}**" if run is best else value]
        lines.append(f"| {' | '.join(cells + [''] * (5 - len(cells)))} |")
    return "\n".join(lines)


def method_curves(
    arms: Sequence[str] = tuple(METHODS),
    folder: Path = RESULTS,
    *,
    measure: str = "curve",
    by: str = "steps",
    until: float = float("inf"),
) -> dict[str, tuple[list[float], list[float]]]:
    """arm -> (x, mean over its seeds) of "curve" (validation NLL) or "served" (development visits).

    by: "steps", or "seconds" of CPU time with what the teacher spent before. until: the last step
    that is wanted: over the last quarter of a run the rate falls, and a run of fewer seconds would
    have let it fall earlier.
    """
    curves = {}
    for arm, runs in method_runs(folder).items():
        points = list(zip(*(run[measure] for run in runs), strict=True)) if arm in arms else []
        points = [point for point in points if point[0][0] <= until]
        if points:
            place = 1 if by == "seconds" else 0
            before = runs[0]["teacher_seconds"] if by == "seconds" else 0.0
            x = [before + sum(each[place] for each in point) / len(point) for point in points]
            curves[arm] = x, [sum(each[2] for each in point) / len(point) for point in points]
    return curves


def methods_verdicts(folder: Path = RESULTS, *, against: str = "forward_kl") -> list[str]:
    """A sentence for each arm: more, fewer or a tie in visits served, beside `against`?

    Visitor by visitor, on the seeds that both have; an interval that holds zero is a tie, and fewer
    than `LEAST_SEEDS` seeds give no verdict on a method. Then what costs more seconds and does not
    win, of the arms that have a verdict.
    """
    runs = method_runs(folder)
    if against not in runs:
        return [f"{METHODS[against]}: no finished run yet"]
    said, dear = [], []
    for arm in (arm for arm in runs if arm != against):
        if found := _beside(runs[arm], runs[against]):
            verdict, figures = found
            said.append(f"{METHODS[arm]}: {figures}; {verdict}")
            costs = _cost(runs[arm]) > 1.1 * _cost(runs[against])
            if verdict in ("a tie", "loses") and costs:
                dear.append(METHODS[arm])
    if dear:
        said.append(f"costs more and does not win: {', '.join(dear)}")
    return said


def methods_summary(folder: Path = RESULTS) -> list[str]:
    """Who serves most so far, whose NLL is best, whether they are one; and which arms are missing.

    The NLL of students of the teacher's text is left out: it is that of other words.
    """
    runs = method_runs(folder)
    served = max(runs, key=lambda arm: _mean(runs[arm], "success"))
    likely = [arm for arm in runs if arm not in TEXTS]
    best = min(likely, key=lambda arm: _mean(runs[arm], "nll"))
    same = "the same one" if served == best else "not the same one"
    said = [
        f"most visits so far: {METHODS[served]}, {_mean(runs[served], 'success'):.1%} "
        f"({_seeds(len(runs[served]))})",
        f"best NLL so far, of those that read the desk's words: {METHODS[best]}, "
        f"{_mean(runs[best], 'nll'):.3f}; {same}",
    ]
    missing = [name for arm, name in METHODS.items() if arm not in runs]
    if missing:
        said.append(f"still to come: {'; '.join(missing)}")
    return said


def speaking_verdicts(folder: Path = RESULTS) -> list[str]:
    """Does speaking earn its price? Every arm on policy beside forward KL, in visits and own KL."""
    runs, said = method_runs(folder), []
    for arm in (arm for arm in SPEAKING if arm in runs and "forward_kl" in runs):
        pair = _paired(runs[arm], runs["forward_kl"])
        if found := _beside(runs[arm], runs["forward_kl"]):
            verdict, figures = found
            ours, theirs = (_mean(each, "kl_own_words") for each in zip(*pair, strict=True))
            said.append(
                f"{METHODS[arm]} beside forward KL: {figures}; KL on its own words "
                f"{ours:.3f} for {theirs:.3f}; {verdict}"
            )
    return said or ["on-policy beside forward KL: no finished runs of both yet"]


def _beside(ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[str, str] | None:
    """The verdict, and the difference in visits with its interval; None without a common seed."""
    pair = _paired(ours, theirs)
    if not pair:
        return None
    ours, theirs = map(list, zip(*pair, strict=True))
    gain = _mean(ours, "success") - _mean(theirs, "success")
    low, high = paired_difference_interval(marks(ours), marks(theirs))
    count = _seeds(len(pair))
    verdict = "wins" if low > 0 else "loses" if high < 0 else "a tie"
    if len(pair) < LEAST_SEEDS:
        return f"{count}: no verdict on the method", f"{gain:+.1%} [{low:+.1%}, {high:+.1%}]"
    return verdict, f"{gain:+.1%} [{low:+.1%}, {high:+.1%}], {count}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _setting(key: str, value: object) -> str:
    """A setting in words: "temperature 1", or the divergence that a method speaks by."""
    if key == "divergence":
        return METHODS[str(value).partition(":")[0]]
    return f"{key.replace('_', ' ')} {value:g}"


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
