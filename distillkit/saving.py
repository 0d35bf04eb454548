"""Checkpoints of a training run: they appear whole, or not at all.

transformers writes a checkpoint file by file into its final folder, and resumes from the last
folder that it finds, half-written or not. Here a checkpoint is written aside and then renamed.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Trainer, TrainerState
from transformers.utils import logging as transformers_logging

from distillkit.errors import UserError

_UNFINISHED = ".unfinished"


class WholeCheckpoints(Trainer):
    """A trainer that a kill at any moment leaves with its earlier checkpoints, and no half one."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, then rename it: a kill leaves the earlier ones, no half."""
        final = Path(super()._get_output_dir(trial))
        aside = final / _UNFINISHED
        self._write_to = str(aside)
        try:
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            with _no_bars():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            self._publish(aside / f"checkpoint-{self.state.global_step}", final)
        finally:
            self._write_to = None
            if self.args.should_save:
                shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _publish(self, written: Path, final: Path) -> None:
        """Rename a written checkpoint into place, then drop those above `save_total_limit`."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best) == written:
            self.state.best_model_checkpoint = str(final / written.name)
        if not self.args.should_save:
            return
        self.state.save_to_json(str(written / "trainer_state.json"))
        # What goes is renamed too before it is deleted: a half-deleted checkpoint is a half one.
        if (final / written.name).exists():
            os.replace(final / written.name, written.with_name("replaced"))
        os.replace(written, final / written.name)
        keep = {str(self.state.best_model_checkpoint), str(final / written.name)}
        limit = self.args.save_total_limit or 0
        for old in checkpoints_in(final)[:-limit] if limit > 0 else []:
            if str(old) not in keep:
                os.replace(old, written.with_name(old.name))

    _write_to: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._write_to or super()._get_output_dir(trial)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hold back the progress bar that saving a model shows: it would tear ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def resumable_state(checkpoint: Path) -> TrainerState:
    """The state of training in a checkpoint that can be resumed from.

    The best checkpoint so far is looked for beside it, wherever the folder was moved or is named
    from. Raises UserError where a file is damaged or missing.
    """
    try:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        for name in ("optimizer.pt", "scheduler.pt"):
            if not zipfile.is_zipfile(checkpoint / name):  # what torch.save writes
                raise OSError(f"{name} is missing or cut off")
        best = checkpoint.parent / f"checkpoint-{state.best_global_step}"
        for folder in {checkpoint, best} if state.best_global_step else {checkpoint}:
            with safe_open(folder / "model.safetensors", "pt"):
                pass
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
        raise UserError(
            f"{checkpoint} is damaged ({' '.join(str(problem).split())}): remove that folder "
            "to go on from an earlier one, or the whole unfinished run"
        ) from problem
    if state.best_global_step and state.best_model_checkpoint != str(best):
        state.best_model_checkpoint = str(best)
        aside = checkpoint / "trainer_state.json.part"
        state.save_to_json(str(aside))
        os.replace(aside, checkpoint / "trainer_state.json")
    return state


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of a training folder, oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))
