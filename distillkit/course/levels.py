"""Run levels: how much a chapter does, decided in one place.

`smoke` runs every cell on almost nothing, `cpu` is a laptop, `gpu` is a Colab T4. Levels change
sizes and names of models, never the code path:

    level = run_level()
    print(level.describe())
    steps = level.pick(smoke=4, cpu=400, gpu=2000)
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from distillkit.errors import UserError

T = TypeVar("T")

LEVELS = {
    "smoke": "every cell, on almost nothing: at most 30 seconds a notebook",
    "cpu": "a laptop: small and real, at most 2 minutes and 3 GB a chapter",
    "gpu": "a Colab T4: hub models, at most 20 minutes and 14 GB a chapter",
}
SWITCH = "DISTILLKIT_RUN"
GB = 1e9


@dataclass(frozen=True)
class Level:
    """A run level and the device that it computes on ("cpu" or "cuda")."""

    name: str
    device: str = "cpu"

    def pick(self, *, smoke: T, cpu: T, gpu: T) -> T:
        """The one of three values that belongs to this level."""
        return {"smoke": smoke, "cpu": cpu, "gpu": gpu}[self.name]

    @property
    def precision(self) -> str:
        """What to train in: "fp32" on a CPU, else "bf16" where it is native, else "fp16".

        A T4 (compute capability 7.5) says that it supports bf16, and emulates it.
        """
        if self.device == "cpu":
            return "fp32"
        import torch

        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"

    @property
    def mixed_precision(self) -> dict[str, bool]:
        """`precision` as arguments of the trainer: {}, {"bf16": True} or {"fp16": True}."""
        return {} if self.precision == "fp32" else {self.precision: True}

    def require(
        self, *, memory_gb: float = 0.0, disk_gb: float = 0.0, gpu_memory_gb: float = 0.0
    ) -> None:
        """Refuse, in a sentence, to start on a machine without enough free memory or disk.

        Gigabytes are of 10⁹ bytes; the memory is the machine's, the GPU's is asked for apart and
        only where there is one, and the disk is the one of the working directory. Raises UserError.
        """
        needs = [("memory", memory_gb, free_memory()), ("disk", disk_gb, free_disk())]
        if self.device == "cuda":
            needs.append(("GPU memory", gpu_memory_gb, free_gpu_memory()))
        for what, wanted, free in needs:
            if free < wanted * GB:
                raise UserError(
                    f"this needs {wanted:.2g} GB of free {what} at level {self.name}, and"
                    f" {free / GB:.1f} GB is free: make room, or try {SWITCH}=smoke"
                )

    def describe(self) -> str:
        """What the first cell of a chapter prints: level, device, memory, and what is wrong."""
        import torch

        device = f"CPU, {torch.get_num_threads()} threads"
        if self.device == "cuda":
            card = torch.cuda.get_device_properties(0)
            device = f"{card.name}, {card.total_memory / GB:.1f} GB, {self.precision}"
        lines = [
            f"level   {self.name}: {LEVELS[self.name]}",
            f"device  {device}; torch {torch.__version__}",
            f"free    {free_memory() / GB:.1f} GB of memory, {free_disk() / GB:.0f} GB of disk",
        ]
        return "\n".join(lines + [f"WARNING {problem}" for problem in _problems()])


def level_name() -> str | None:
    """What the switch says, or None where it is not set. Raises UserError for an unknown level."""
    name = os.environ.get(SWITCH, "").strip().lower()
    if name and name not in LEVELS:
        raise UserError(f"{SWITCH} is {name!r}: choose one of {', '.join(LEVELS)}")
    return name or None


def run_level() -> Level:
    """The level of this run: what the switch says, else "gpu" with a usable GPU and "cpu" without.

    Level "gpu" on a machine without one runs the same code on the CPU, for tests with local models.
    """
    name = level_name()
    if name in ("smoke", "cpu"):
        return Level(name)
    if _gpu_works():
        return Level("gpu", "cuda")
    return Level(name or "cpu")


def machine_check() -> list[str]:
    """Say loudly what is wrong with this machine or its set-up; return the sentences."""
    problems = _problems()
    for problem in problems:
        print(f"{'!' * 72}\nWARNING {problem}\n{'!' * 72}")
    return problems


def free_memory() -> float:
    """Bytes of memory that a program can still get, here or in this container."""
    import psutil  # comes with accelerate

    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        used = float((group / "memory.current").read_text())
        rows = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    cached = sum(float(row.split()[1]) for row in rows if row.startswith("inactive_file "))
    return min(free, limit - used + cached)


def free_gpu_memory() -> float:
    """Bytes free on the first GPU."""
    import torch

    return float(torch.cuda.mem_get_info(0)[0])


def free_disk() -> float:
    """Bytes free where the program works."""
    return float(shutil.disk_usage(".").free)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`distillkit levels` takes no arguments of its own."""


def main(args: argparse.Namespace) -> int:
    """Print the three levels, the one that would run here, and what is wrong with the machine."""
    print(f"Choose with the environment variable {SWITCH}:")
    for name, meaning in LEVELS.items():
        print(f"  {name:7} {meaning}")
    print(f"\nHere and now:\n{run_level().describe()}")
    return 0


def _gpu_works() -> bool:
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        return bool(torch.ones(1, device="cuda").sum().item() == 1)
    except RuntimeError:  # a driver too old, or a card that this build has no kernels for
        return False


def _problems() -> list[str]:
    checks = (_python_problem(), _name_problem(), _gpu_problem())
    return [problem for problem in checks if problem]


def _python_problem() -> str | None:
    if (3, 11) <= sys.version_info < (3, 14):
        return None
    return (
        f"this is Python {sys.version.split()[0]}, and the course is tried on 3.11, 3.12 and 3.13"
    )


def _name_problem() -> str | None:
    """Another project publishes a package of the same import name (Arcee's DistillKit)."""
    for owner in metadata.packages_distributions().get("distillkit", []):
        scripts = metadata.distribution(owner).entry_points.select(group="console_scripts")
        if not any(script.value == "distillkit.cli:main" for script in scripts):
            return (
                f"the installed package {owner!r} also owns the import name distillkit and is not"
                f" this course's: give the course its own environment, or `pip uninstall {owner}`"
            )
    return None


def _gpu_problem() -> str | None:
    has_card = Path("/dev/nvidia0").exists() or os.environ.get("COLAB_GPU", "0") not in ("", "0")
    if not has_card or level_name() in ("smoke", "cpu") or _gpu_works():
        return None
    return (
        "this machine has a GPU that torch cannot use, so everything would run on the CPU, slowly:"
        " install a torch built for CUDA (on Colab: Runtime > Disconnect and delete runtime)"
    )
