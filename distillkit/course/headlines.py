"""The one figure of a chapter, from a cell of its notebook to the table of `make run`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillkit.course.showing import in_notebook

MIME = "application/x-distillkit-headline+json"


def headline(text: str) -> None:
    """Show the measured result by which a chapter wants to be remembered, in one short sentence.

    The reader sees the sentence; `distillkit run` finds it among the outputs and puts it into its
    table. The last headline of a chapter counts.
    """
    if not in_notebook():
        print(text)
        return
    from IPython.display import display

    display({"text/plain": text, MIME: {"headline": text}}, raw=True)


def find_headline(notebook: Mapping[str, Any]) -> str:
    """The last headline among the outputs of a notebook, or an empty string."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    found = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    return found[-1]["headline"] if found else ""
