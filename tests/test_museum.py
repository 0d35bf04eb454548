"""The museum of broken distillers: what hangs there, and that the wrong form shows."""

import re

import pytest

from distillkit.course.notebooks import ROOT, read_notebook

MUSEUM = read_notebook(ROOT / "chapters" / "appendix_museum.ipynb").cells
FORM = re.compile(r"^\| (.+?) \| (.+?) \| (\S+) \| (\S+) \|$", re.MULTILINE)
THREAD = re.compile(
    r"^\[([\w.-]+/[\w.-]+#\d+)\]\(https://github\.com/([\w.-]+/[\w.-]+)/issues/\d+\)$"
)


def table():
    """(piece, where it was seen, wrong, right) of each row of the executed table."""
    [text] = [
        output.data["text/markdown"]
        for cell in MUSEUM
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]
    return FORM.findall(text)[1:]


def test_at_least_fifteen_public_bugs_with_their_threads():
    rows = table()
    seen_in = [THREAD.match(seen) for _, seen, *_ in rows]
    assert len([thread for thread in seen_in if thread]) >= 15
    assert len({piece for piece, *_ in rows}) == len(rows)


def test_a_source_of_two_pieces_is_counted_once():
    [said] = [
        output.data["text/plain"]
        for cell in MUSEUM
        for output in cell.get("outputs", [])
        if "public sources" in output.get("data", {}).get("text/plain", "")
    ]
    rows = table()
    sources = {seen for _, seen, *_ in rows}
    assert len(sources) < len(rows)
    assert said == f"{len(rows)} mistakes from {len(sources)} public sources"


@pytest.mark.parametrize(("piece", "wrong", "right"), [(a, c, d) for a, _, c, d in table()])
def test_a_piece_differs_from_its_right_form(piece, wrong, right):
    assert wrong != right
    assert right != "nan"


def test_every_piece_says_how_one_notices_it():
    prose = " ".join(cell.source for cell in MUSEUM if cell.cell_type == "markdown")
    assert prose.count("*Notice") >= len(table()) - 2  # three pieces of the last room share one
