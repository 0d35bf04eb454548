"""What the experiments of chapter 05 recorded, as the chapter reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillkit.course.results import RESULTS, clinc_table, recorded
from distillkit.errors import UserError

CHANGES: dict[str, dict[str, float]] = {
    "as above": {},
    "T = 1": {"temperature": 1.0},
    "T = 4": {"temperature": 4.0},
    "alpha 0.5": {"alpha": 0.5},
    "900 steps": {"steps": 900},
    "rate 0.002": {"rate": 0.002},
}


def repaired_runs(
    kind: str, folder: Path = RESULTS, *, measure: str = "accuracy"
) -> dict[str, list[float]]:
    """What was repaired (or put back) -> the student's accuracy with each seed, in their order.

    Recorded by `experiments/05_repairs.py`.

    kind: "repaired", one fault after the other, each on top of the one before; "put back", one
    fault alone in the repaired loop; "rate" and "alpha": the repaired loop with other values.
    """
    [content] = recorded("05_repairs.json", folder)
    found: dict[str, list[float]] = {}
    for run in sorted(content["runs"], key=lambda run: run["seed"]):
        if run["kind"] == kind:
            found.setdefault(run["name"], []).append(run[measure])
    return found


def shares_of(runs: Sequence[float]) -> str:
    """The mean of some shares, and each: "70.0% (60.0%, 80.0%)"."""
    return f"{sum(runs) / len(runs):.1%} ({', '.join(f'{run:.1%}' for run in runs)})"


def intent_runs(arm: str, folder: Path = RESULTS, **setting: Any) -> list[float]:
    """Accuracy in new towns of the runs of one setting, without smoothing, a number a seed.

    Recorded by `experiments/05_front_desk_intents.py`, whose names the setting has.
    """
    [content] = recorded("05_front_desk_intents.json", folder)
    return [
        run["test"]["accuracy"]
        for run in content["runs"]
        if run["arm"] == arm
        and not run["setting"].get("smoothing")
        and setting.items() <= run["setting"].items()
    ]


def intent_duels(folder: Path = RESULTS) -> dict[str, tuple[list[float], list[float]]]:
    """What was changed -> accuracy in new towns of the distilled and of the labels' student.

    Both have 300 labelled texts; a number a seed, in one order.
    """
    base = {"texts": 300, "steps": 300, "rate": 0.005, "alpha": 0.9, "temperature": 2.0}
    found = {}
    for name, change in CHANGES.items():
        its = base | change
        alone = its | {"alpha": 0.0, "temperature": 1.0}
        found[name] = (
            intent_runs("distilled", folder, **its),
            intent_runs("labels", folder, **alone),
        )
    return found


def teacher_entropy(part: str = "train", folder: Path = RESULTS) -> dict[str, float]:
    """T -> mean entropy (nats) of what the front desk's teacher says of texts of "train" or "test".

    Recorded by `experiments/05_front_desk_intents.py`.
    """
    [content] = recorded("05_front_desk_intents.json", folder)
    [found] = [run["entropy"] for run in content["runs"] if run["arm"] == "teacher"]
    return {temperature: round(value, 2) for temperature, value in found[part].items()}


def clinc_so_far(folder: Path = RESULTS) -> str:
    """The table of CLINC150, or where nobody has made it, a sentence that says how."""
    try:
        return clinc_table(folder)
    except UserError as missing:
        return str(missing)
