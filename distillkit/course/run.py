"""Execute the chapters in order, each in a fresh kernel, and show what they measured.

Behind `distillkit run` and `make run`: a line for each chapter, HTML pages, and a table of chapter,
seconds, peak memory and headline figure. A chapter that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import html
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # comes with ipykernel
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from distillkit.course.headlines import find_headline
from distillkit.course.levels import LEVELS, SWITCH, level_name
from distillkit.course.notebooks import (
    ROOT,
    find_notebooks,
    normalise,
    read_notebook,
    write_notebook,
)
from distillkit.course.pages import page

CELL_SECONDS = 1800
"""A cell that takes longer than this is taken for one that hangs."""


@dataclass(frozen=True)
class Outcome:
    """What executing one chapter showed."""

    name: str
    seconds: float
    peak_mb: float
    headline: str = ""
    error: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `distillkit run`."""
    parser.add_argument(
        "chapters", nargs="*", help="beginnings of file names, such as 04 (default: all of them)"
    )
    parser.add_argument(
        "--level", choices=LEVELS, help=f"run level (default: what {SWITCH} says, else cpu)"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "chapters", help="the notebooks")
    parser.add_argument(
        "--pages", type=Path, help="where the HTML pages go (default: build/pages in the checkout)"
    )
    parser.add_argument(
        "--in-place", action="store_true", help="keep the outputs in the notebooks themselves"
    )


def main(args: argparse.Namespace) -> int:
    """Execute the chapters that were asked for; 0 when all of them ran without an error."""
    level = args.level or level_name() or "cpu"
    paths = find_notebooks(args.folder, args.chapters)
    pages = args.pages or args.folder.resolve().parent / "build" / "pages"
    plural = "s" if len(paths) > 1 else ""
    print(f"Executing {len(paths)} chapter{plural} at level {level}: {LEVELS[level]}.", flush=True)
    outcomes = []
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path.stem} …", flush=True)
        outcome = run_chapter(path, level=level, pages=pages, in_place=args.in_place)
        print(f"      {_verdict(outcome)}", flush=True)
        outcomes.append(outcome)
    index = write_index(outcomes, pages, level)
    print(f"\n{table(outcomes)}\n\nPages to read: {index.resolve().as_uri()}")
    return int(any(outcome.error for outcome in outcomes))


def run_chapter(path: Path, *, level: str, pages: Path, in_place: bool = False) -> Outcome:
    """Execute one notebook in a fresh kernel and write its page.

    With `in_place` the notebook is replaced by the executed one, unless it failed.
    """
    notebook = read_notebook(path)
    outcome = execute(notebook, path, level)
    normalise(notebook)
    pages.mkdir(parents=True, exist_ok=True)
    (pages / f"{path.stem}.html").write_text(page(notebook, path.stem), encoding="utf-8")
    if in_place and outcome.error is None:
        write_notebook(path, notebook)
    return outcome


def execute(notebook: NotebookNode, path: Path, level: str) -> Outcome:
    """Fill the outputs of a notebook, working in its folder; an error ends it and is reported."""
    folder = path.resolve().parent
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_spec_manager=_ThisPython()),
        timeout=CELL_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    _clear(notebook)
    start = time.perf_counter()
    with (
        client.setup_kernel(env=_environment(level), cleanup_kc=True),
        _PeakMemory(_kernel_process(client)) as memory,
    ):
        error = _execute_cells(client, path.stem)
    seconds = time.perf_counter() - start
    return Outcome(path.stem, seconds, memory.peak / 1e6, find_headline(notebook), error)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table in plain text."""
    rows = [("chapter", "seconds", "peak memory", "headline")]
    rows += [_row(outcome) for outcome in outcomes]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{a:{width}}  {b:>8}  {c:>11}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def write_index(outcomes: Sequence[Outcome], pages: Path, level: str) -> Path:
    """Write the page that leads to the chapters' pages; return its path."""
    rows = []
    for outcome in outcomes:
        name, seconds, memory, said = map(html.escape, _row(outcome))
        link = f'<a href="{name}.html">{name}</a>'
        rows.append(f"<tr><td>{link}<td>{seconds}<td>{memory}<td>{said}</tr>")
    page = _INDEX.format(level=html.escape(level), rows="\n".join(rows))
    index = pages / "index.html"
    index.write_text(page, encoding="utf-8")
    return index


_INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Distilling Dialogue</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
padding: 0 1rem }} td, th {{ text-align: left; padding: .3rem 1rem .3rem 0 }}</style>
<h1>Distilling Dialogue</h1>
<p>Executed at level {level}.</p>
<table><tr><th>chapter<th>seconds<th>peak memory<th>headline</tr>
{rows}
</table></html>
"""


class _ThisPython(KernelSpecManager):
    """Kernels of the Python that runs this, whatever kernels the user has registered."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        command.append("--log-level=CRITICAL")  # errors reach the reader through the cells
        return KernelSpec(argv=command, display_name="Python 3", language="python")


class _PeakMemory:
    """The most memory that a process and its children held together, in bytes."""

    def __init__(self, pid: int, interval: float = 0.2) -> None:
        self.peak = 0
        self._process = psutil.Process(pid)
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self._held(), _high_water(self._process.pid))

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak = max(self.peak, self._held())

    def _held(self) -> int:
        total = 0
        try:
            for process in [self._process, *self._process.children(recursive=True)]:
                total += process.memory_info().rss
        except psutil.Error:  # one of them ended while we looked
            pass
        return total


def _high_water(pid: int) -> int:
    """The kernel's own record of a process's peak, which sampling can miss (Linux only)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 if kilobytes else 0


def _environment(level: str) -> dict[str, str]:
    """The kernel's environment: the level, no hub below level gpu, and this very distillkit."""
    environment = dict(os.environ)
    environment[SWITCH] = level
    if level != "gpu":
        environment["HF_HUB_OFFLINE"] = "1"
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def _kernel_process(client: NotebookClient) -> int:
    kernel = getattr(client.km, "provisioner", None)
    return int(kernel.pid)  # type: ignore[union-attr]


def _execute_cells(client: NotebookClient, name: str) -> str | None:
    """Execute until the first error; what went wrong, in a sentence."""
    cells = list(enumerate(client.nb.cells))
    for index, cell in tqdm(cells, desc=f"      {name}", unit="cell", leave=False, disable=None):
        try:
            client.execute_cell(cell, index)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as problem:
            begins = cell.source.strip().partition("\n")[0]
            return f"cell {index + 1} ({begins}): {_in_words(problem)}"
    return None


def _clear(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def _in_words(problem: Exception) -> str:
    if isinstance(problem, CellExecutionError):
        return f"{problem.ename}: {problem.evalue}".partition("\n")[0]
    if isinstance(problem, CellTimeoutError):
        return f"it took more than {CELL_SECONDS} seconds"
    return "the kernel died, most likely because the memory was used up"


def _verdict(outcome: Outcome) -> str:
    if outcome.error:
        return f"FAILED after {outcome.seconds:.0f} s: {outcome.error}"
    said = f": {outcome.headline}" if outcome.headline else ""
    return f"{outcome.seconds:.0f} s, {outcome.peak_mb:,.0f} MB{said}"


def _row(outcome: Outcome) -> tuple[str, str, str, str]:
    said = f"FAILED: {outcome.error}" if outcome.error else outcome.headline
    return outcome.name, f"{outcome.seconds:.1f}", f"{outcome.peak_mb:,.0f} MB", said
