"""Derive the exercises from their one source: solutions/NN_*.ipynb -> exercises/NN_*.ipynb.

    python -m distillkit.course.building

In the source, what the learner writes stands between `# BEGIN SOLUTION` and `# END SOLUTION`. The
heading and the box of an exercise are filled in from its definition, in the source too. The same
source gives the same bytes; what has no source any more is removed.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from distillkit.course.exercises import exercise
from distillkit.course.exercises.definition import Exercise
from distillkit.course.notebooks import ROOT, read_notebook, write_notebook
from distillkit.course.stamp import repository_address, stamp_notebook
from distillkit.errors import UserError

REGION = re.compile(
    r"^(?P<indent>[ ]*)# BEGIN SOLUTION\n(?P<body>.*?)^[ ]*# END SOLUTION(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
HEADING = re.compile(r"\A## (\d+\.\d+)\b[^\n]*(?:\n\n>[^\n]*)?")
STUB = "raise NotImplementedError  # your code here"


def build_all(root: Path = ROOT) -> list[Path]:
    """Renew the heads of the sources and all exercises of a checkout; the files that changed."""
    changed = []
    wanted = set()
    for path in sorted((root / "solutions").glob("*.ipynb")):
        source = read_notebook(path)
        before = deepcopy(source)
        renew_heads(source)
        if source != before:
            write_notebook(path, source)
            changed.append(path)
        place = root / "exercises" / path.name
        wanted.add(place)
        changed += _write_if_new(place, derived_text(source, path.name))
    for left in sorted(set((root / "exercises").glob("*.ipynb")) - wanted):
        left.unlink()
        changed.append(left)
    return changed


def derived_text(source: NotebookNode, name: str) -> str:
    """The exercise notebook of a source, as the text of its file."""
    return nbformat.writes(derived(source, name)) + "\n"


def derived(source: NotebookNode, name: str) -> NotebookNode:
    """The exercise notebook of a source: no outputs, and stubs in the place of solutions."""
    notebook = deepcopy(source)
    notebook.metadata.pop("jupytext", None)
    asked: Exercise | None = None
    for cell in notebook.cells:
        asked = heading_of(cell) or asked
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = stubbed(cell.source, asked)
    stamp_notebook(notebook, f"exercises/{name}", repository_address())
    return notebook


def renew_heads(notebook: NotebookNode) -> None:
    """Write title, kind, difficulty and minutes over the statements, in place."""
    for cell in notebook.cells:
        if each := heading_of(cell):
            cell.source = each.head() + HEADING.sub("", cell.source)


def heading_of(cell: NotebookNode) -> Exercise | None:
    """The exercise whose statement a cell begins."""
    found = HEADING.match(cell.source) if cell.cell_type == "markdown" else None
    return exercise(found.group(1)) if found else None


def stubbed(source: str, asked: Exercise | None) -> str:
    """A cell with stubs in the place of its solution regions."""
    if source.count("# BEGIN SOLUTION") != len(REGION.findall(source)):
        raise UserError(f"a region without its end: {source.partition(chr(10))[0]}")
    given = asked.given if asked else None

    def stub(region: re.Match[str]) -> str:
        if given is not None:
            return inspect.getsource(given)
        names = _assigned(region.group("body"))
        lines = [f"{name} = ..." for name in names] or [STUB]
        return textwrap.indent("\n".join(lines), region.group("indent")) + "\n"

    return REGION.sub(stub, source).rstrip("\n")


def solved_cell(path: Path, number: str) -> str | None:
    """The cells that solve an exercise, without the marks of their regions."""
    asked = None
    found = []
    for cell in read_notebook(path).cells:
        asked = heading_of(cell) or asked
        if asked and asked.number == number and REGION.search(cell.source):
            found.append(re.sub(r"^ *# (?:BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.M))
    return "\n\n".join(text.rstrip("\n") for text in found) or None


def _assigned(body: str) -> list[str]:
    """The names of a region at the left margin that is made of assignments alone."""
    if body.startswith(" "):
        return []
    statements = ast.parse(body).body
    names = [
        ast.unparse(target)
        for each in statements
        if isinstance(each, ast.Assign)
        for target in each.targets
    ]
    return names if all(isinstance(each, ast.Assign) for each in statements) else []


def _write_if_new(place: Path, text: str) -> Iterator[Path]:
    if place.exists() and place.read_bytes() == text.encode():
        return
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(text.encode())
    yield place


def main() -> int:
    """Build, and say what changed."""
    changed = build_all()
    for path in changed:
        print(f"{'built' if path.exists() else 'removed'} {path.relative_to(ROOT)}")
    if not changed:
        print("Every exercise is current.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
