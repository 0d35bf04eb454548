"""The lint of notebooks: what nbval lets pass and readers would stumble over."""

import base64
import json
import re
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from distillkit.course.notebooks import ROOT
from distillkit.course.stamp import repository_address, stamp_notebook

MOST = {"cells": 40, "words": 3000, "lines": 15, "columns": 76, "kilobytes": 600, "image": 60}
# An appendix is a place to look things up, not read in one go: it may have more cells.
APPENDIX = MOST | {"cells": 60}
MAGICS = ("%matplotlib inline", "%config InlineBackend")
MACHINE_PATH = re.compile(
    r"(?<![\w./])/(?:home|Users|root|tmp|content|mnt|opt|usr|var|workspace|work)/|"
    r"\b[A-Z]:\\\\?\w|site-packages"
)


def faults(path: Path, place: str) -> list[str]:
    """What is wrong with a notebook that stands at `place` in the repository, in sentences."""
    notebook = nbformat.read(path, as_version=4)
    executed = place.startswith(("chapters/", "solutions/"))
    most = APPENDIX if Path(place).name.startswith("appendix_") else MOST
    found = [*of_the_file(path, notebook, most), *of_the_stamp(notebook, place), *of_ids(path)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found += of_code(cell.source)
            found += [fault for output in cell.outputs for fault in of_output(output)]
        found += of_paths(cell)
    return [*found, *(of_execution(notebook) if executed else ())]


def of_the_file(path, notebook, most):
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    if path.stat().st_size > most["kilobytes"] * 1000:
        yield f"the file has {path.stat().st_size // 1000} KB"
    if len(notebook.cells) > most["cells"]:
        yield f"{len(notebook.cells)} cells"
    if words > most["words"]:
        yield f"{words} words"
    if "widgets" in notebook.metadata:
        yield "metadata.widgets: GitHub would not show the notebook"


def of_ids(path):
    raw = nbformat.reader.reads(path.read_text())
    ids = [cell.get("id") for cell in raw.cells]
    if None in ids or len(set(ids)) < len(ids):
        yield "cells without an id, or two with the same"


def of_the_stamp(notebook, place):
    stamped = deepcopy(notebook)
    stamp_notebook(stamped, place, repository_address())
    sources = [(cell.cell_type, cell.source) for cell in notebook.cells]
    if sources != [(cell.cell_type, cell.source) for cell in stamped.cells]:
        yield "badge or set-up cell not current: make stamp"


def of_code(source):
    lines = source.splitlines()
    if len(lines) > MOST["lines"]:
        yield f"a cell of {len(lines)} lines: {lines[0]}"
    for line in lines:
        if len(line) > MOST["columns"]:
            yield f"a line of {len(line)} columns: {line}"
        if line.strip().startswith(("%", "!")) and not line.strip().startswith(MAGICS):
            yield f"a magic: {line.strip()}"


def of_output(output):
    if output.output_type == "error":
        yield f"an error among the outputs: {output.ename}"
    for kind, data in output.get("data", {}).items():
        size = len(base64.b64decode(data)) if kind in ("image/png", "image/jpeg") else 0
        size = len(data) if kind == "image/svg+xml" else size
        if size > MOST["image"] * 1000:
            yield f"an image of {size // 1000} KB"


def of_paths(cell):
    texts = [cell.source]
    for output in cell.get("outputs", []):
        texts += [output.get("text", ""), *output.get("traceback", [])]
        texts += [text for text in output.get("data", {}).values() if isinstance(text, str)]
    for text in texts:
        if len(text) < 20_000 and (hit := MACHINE_PATH.search(text)):
            yield f"a path of a machine: {text[hit.start() : hit.end() + 20]!r}"


def of_execution(notebook):
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "not executed in order, once each: make chapters"
    if not any(cell.outputs for cell in code):
        yield "no outputs"


NOTEBOOKS = [
    path
    for folder in ("chapters", "solutions", "exercises")
    for path in sorted((ROOT / folder).glob("*.ipynb"))
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path):
    assert faults(path, path.relative_to(ROOT).as_posix()) == []


# --- the lint itself: a notebook that breaks each rule --------------------------------------------

PLACE = "chapters/99_tried.ipynb"


def good():
    """A notebook without a fault."""
    cell = v4.new_code_cell("print(1)", outputs=[v4.new_output("stream", text="1\n")])
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), cell])
    stamp_notebook(notebook, PLACE, repository_address())
    for number, cell in enumerate((notebook.cells[2], notebook.cells[3]), start=1):
        cell.execution_count = number
    return notebook


def says(notebook, folder):
    path = folder / "99_tried.ipynb"
    path.write_text(json.dumps(notebook))  # nbformat would mend some faults on the way
    return faults(path, PLACE)


def prints(notebook, text):
    notebook.cells[-1].outputs[0].text = text


def shows(notebook, **data):
    notebook.cells[-1].outputs.append(v4.new_output("display_data", data))


def image(kilobytes):
    return {"image/png": base64.b64encode(bytes(kilobytes * 1000)).decode()}


BAD = {
    "600 KB|601 KB|602 KB": lambda nb: prints(nb, "x" * 600_500),
    "41 cells": lambda nb: nb.cells.extend(v4.new_markdown_cell("x") for _ in range(37)),
    "words": lambda nb: nb.cells.append(v4.new_markdown_cell("word " * 3001)),
    "metadata.widgets": lambda nb: nb.metadata.update(widgets={}),
    "without an id": lambda nb: nb.cells[0].update(id=nb.cells[1].id),
    "badge or set-up": lambda nb: nb.cells[0].update(source="a badge of another house"),
    "set-up cell not current": lambda nb: nb.cells[2].update(source="import torch"),
    "a cell of 16 lines": lambda nb: nb.cells[-1].update(source="x = 1\n" * 16),
    "a line of 77 columns": lambda nb: nb.cells[-1].update(source="x" * 77),
    "a magic: %load": lambda nb: nb.cells[-1].update(source="%load_ext autoreload"),
    "a magic: !pip": lambda nb: nb.cells[-1].update(source="if True:\n    !pip install torch"),
    "an error among": lambda nb: nb.cells[-1].outputs.append(
        v4.new_output("error", ename="KeyError", evalue="x", traceback=[])
    ),
    "an image of 61 KB": lambda nb: shows(nb, **image(61)),
    "a path of a machine": lambda nb: prints(nb, "saved to /home/ada/student"),
    "path of a machine: 'site": lambda nb: prints(nb, "lib/site-packages/torch: a warning"),
    "not executed in order": lambda nb: nb.cells[-1].update(execution_count=7),
    "in order, once each": lambda nb: nb.cells[-1].update(execution_count=None),
    "no outputs": lambda nb: nb.cells[-1].update(outputs=[]),
}


def test_the_lint_finds_nothing_in_a_good_notebook(tmp_path):
    notebook = good()
    shows(notebook, **image(59))
    prints(notebook, "a share of 1/2, see chapters/04_the_student.ipynb and https://a.org/home/b")
    assert says(notebook, tmp_path) == []


@pytest.mark.parametrize(("more", "faulty"), [(36, False), (56, False), (57, True)])
def test_an_appendix_may_have_more_cells(more, faulty, tmp_path):
    notebook = good()
    notebook.cells.extend(v4.new_markdown_cell("x") for _ in range(more))
    path, place = tmp_path / "appendix_tried.ipynb", "chapters/appendix_tried.ipynb"
    stamp_notebook(notebook, place, repository_address())
    path.write_text(json.dumps(notebook))
    assert faults(path, place) == ([f"{4 + more} cells"] if faulty else [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sentence", BAD)
def test_the_lint_finds_what_is_wrong(sentence, tmp_path):
    notebook = good()
    BAD[sentence](notebook)
    said = says(notebook, tmp_path)
    assert len([fault for fault in said if re.search(sentence, fault)]) == 1, said


@pytest.mark.parametrize(
    "path", sorted((ROOT / "chapters").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_a_chapter_asks_for_its_memory_where_it_decides_its_level(path):
    """Not in its middle, after a quarter of an hour."""
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    [first] = [source for source in sources if "level = run_level()" in source]
    assert re.search(r"^level\.require\(memory_gb=", first, re.MULTILINE)
