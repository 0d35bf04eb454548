"""What the students of all experiments share: the arguments of a training run."""

from pathlib import Path
from typing import Any

from distillkit.training import DistillationArguments


def run_arguments(
    folder: str | Path, trial: dict, *, steps: int, batch_size: int, seed: int, **more: Any
) -> DistillationArguments:
    """Those of a run with the loss of a tuning trial, silent, that keeps no checkpoint."""
    settings: dict[str, Any] = {
        "alpha": trial.get("alpha", 0.0),
        "temperature": trial.get("temperature", 1.0),
        "label_smoothing_factor": trial.get("smoothing", 0.0),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "bucket_by_length": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": seed,
    }
    return DistillationArguments(str(folder), **settings | more)


def at_its_best(every: int, eval_batch_size: int) -> dict[str, Any]:
    """More of them: judge every so many steps, and end with the weights of the best one."""
    return {
        "per_device_eval_batch_size": eval_batch_size,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
