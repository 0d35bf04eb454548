"""Notebook files: found in order, read, and written in one stable form."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillkit.errors import UserError

if TYPE_CHECKING:  # seconds to import, and a chapter that asks for ROOT needs none of it
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: notebooks live beside the package, not in it."""

_WIDGET = "application/vnd.jupyter.widget-view+json"


def find_notebooks(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of a folder in order, or those whose file name begins with one of `names`.

    Raises UserError when there are none.
    """
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        raise UserError(f"no notebooks in {folder}: run this in a checkout of the course")
    for name in names:
        if not any(path.name.startswith(name) for path in paths):
            known = ", ".join(path.stem for path in paths)
            raise UserError(f"no chapter {name!r}: there are {known}")
    return [path for path in paths if not names or path.name.startswith(tuple(names))]


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook; UserError when the file is not one."""
    import nbformat

    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError, AttributeError) as error:
        raise UserError(f"{path} is not a notebook: {error}") from error
    return notebook


def definitions(path: Path) -> dict[str, Any]:
    """The imports and the functions of a notebook, without the rest of it.

    So that a test, or a long experiment, uses what the reader sees. UserError as `read_notebook`.
    """
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    tree = ast.Module([], [])
    for cell in read_notebook(path).cells:
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            tree.body += [node for node in ast.parse(cell.source).body if isinstance(node, kept)]
    names: dict[str, Any] = {}
    exec(compile(tree, path.name, "exec"), names)
    return names


def write_notebook(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook whole or not at all."""
    import nbformat

    aside = path.with_name(path.name + ".part")
    nbformat.write(notebook, aside)
    os.replace(aside, path)


def normalise(notebook: NotebookNode) -> None:
    """Take out, in place, what changes from run to run without meaning anything.

    Widgets' state (without it GitHub does not show the notebook), widgets themselves (each figure
    with sliders has a static twin), times of execution, and the version of Python.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number}")
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_widget(output)]


def _is_widget(output: dict[str, Any]) -> bool:
    return _WIDGET in output.get("data", {})
