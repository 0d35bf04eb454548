"""How a long experiment keeps its results: run by run, with provenance, able to go on."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distillkit.evaluation import TaskSuccess
from distillkit.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def served(success: TaskSuccess) -> dict[str, Any]:
    """What a record keeps of the visitors: share, interval, each one's mark, common failures."""
    low, high = success.interval()
    return {
        "success": success.rate,
        "low": low,
        "high": high,
        "successes": "".join("01"[won] for won in success.successes),
        "failures": dict(success.failures.most_common(5)),
    }


class Record:
    """A JSON file of runs, each found again by its key; written whole after every run."""

    def __init__(self, name: str, folder: Path = RESULTS):
        self.path = folder / name
        self.content: dict[str, Any] = {"runs": []}
        if self.path.exists():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def runs(self) -> list[dict]:
        return self.content["runs"]

    def find(self, **key: Any) -> dict | None:
        """The run that has been made with this key, if any."""
        for run in self.runs:
            if all(run.get(name) == value for name, value in key.items()):
                return run
        return None

    def once(self, make: Callable[[], dict], **key: Any) -> dict:
        """The run of this key: read, or made and written."""
        found = self.find(**key)
        if found is None:
            began = time.time()
            found = {**key, **make(), "seconds": round(time.time() - began, 1)}
            made = provenance()
            found |= {"commit": made["commit"], "date": made["date"]}
            self.runs.append(found)
            self.write()
            print(" ".join(f"{name}={value}" for name, value in key.items()), flush=True)
        return found

    def best_trial(
        self, trials: list[dict], train: Callable[[dict], dict], *, named: str = "trial", **key: Any
    ) -> dict:
        """The trial whose run has the best validation NLL. Each run's key holds it as `named`."""
        runs = [
            (self.once(lambda trial=trial: train(trial), **key, **{named: trial}), trial)
            for trial in trials
        ]
        return min(runs, key=lambda run: run[0]["best_validation"])[1]

    def write(self, **fields: Any) -> None:
        """Write the file aside and rename it."""
        self.content.update(fields)
        self.content["provenance"] = provenance()
        text = json.dumps(self.content, indent=1, ensure_ascii=False) + "\n"
        aside = self.path.with_suffix(".part")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, self.path)
