"""Where a measured number comes from: the command, the code, the day, the machine."""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from distillkit import __version__
from distillkit.benchmark import machine


def provenance() -> dict[str, Any]:
    """The command that runs, the commit of this code, the date, the versions and the machine."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "distillkit": __version__,
        "machine": machine(),
    }


def _commit() -> str | None:
    """The commit of this code, with a + when it has been changed since; None outside git."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*here, "status", "--porcelain", "-uno"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")
