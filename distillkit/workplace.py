"""Where a run works until it is done: nothing half-written stands under a final name."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distillkit.errors import UserError


@contextmanager
def workplace(out: Any, run: dict, resume: bool, parameters: int) -> Iterator[Path]:
    """The folder of the unfinished work: left there when interrupted, removed when done."""
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    work = Path(f"{out}.unfinished")
    check_new(Path(out), work, resume)
    try:
        work.mkdir(parents=True, exist_ok=True)
        _check_room(work, parameters)
        _check_same_run(work / "run.json", run)
        shutil.rmtree(work / "result", ignore_errors=True)
        yield work
    except BaseException as problem:
        if not any(work.glob("*/checkpoint-*")):  # nothing that could be resumed
            shutil.rmtree(work, ignore_errors=True)
        if not _is_failed_write(problem):
            raise
        reason = " ".join(str(problem).split())
        raise UserError(
            f"{work} cannot be written ({reason}): make room or choose another place, then run the "
            "same command again with --resume"
        ) from problem
    shutil.rmtree(work, ignore_errors=True)


def _is_failed_write(problem: BaseException) -> bool:
    """The writers of torch and of safetensors have errors of their own for a full disk."""
    if isinstance(problem, RuntimeError):
        return "PytorchStreamWriter" in str(problem)
    return isinstance(problem, (OSError, SafetensorError))


def check_new(out: Path, work: Path, resume: bool) -> None:
    if out.exists():
        raise UserError(f"{out} exists already: give another --out, or move it away")
    if work.exists() and not resume:
        raise UserError(
            f"an unfinished run lies in {work}: go on with --resume, or remove that folder"
        )


def _check_room(work: Path, parameters: int) -> None:
    """Weights and Adam's two moments for three checkpoints, and the result."""
    need, free = 4 * parameters * (3 * 3 + 1), shutil.disk_usage(work).free
    if need > free:
        raise UserError(
            f"no space left on the disk: about {need / 1e6:,.0f} MB are needed in {work.parent}, "
            f"and {free / 1e6:,.0f} MB are free"
        )


def _check_same_run(file: Path, run: dict) -> None:
    """Writes down what this run is; on resume, it must be what it was."""
    mine = json.loads(json.dumps(run))
    if file.exists():
        try:
            old = _flat(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{file} is damaged: remove {file.parent} and start anew") from error
        differing = [key for key, value in _flat(mine).items() if old.get(key) != value]
        if differing:
            key = differing[0]
            raise UserError(
                f"the unfinished run in {file.parent} had {key} {old.get(key)}, now it is "
                f"{_flat(mine)[key]}: resume with the same, or remove that folder"
            )
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps(mine, indent=1), encoding="utf-8")
    os.replace(aside, file)


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        leaves |= {f"{prefix}{key}": value} if inner is None else inner
    return leaves
