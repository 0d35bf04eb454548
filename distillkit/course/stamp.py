"""Write the repository's address into the notebooks and the README, from its one place.

The address is `[project.urls] Repository` in pyproject.toml. `make stamp` puts a Colab badge and a
set-up cell into every notebook, and the badge and the clone command into the README, and changes
nothing where they are right already. It renews the README's blocks of results, too; that of the
exercises is also renewed by each run of their tests, with the same function.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from distillkit.course.notebooks import ROOT, normalise, read_notebook, write_notebook
from distillkit.course.results import overview
from distillkit.errors import UserError

BADGE_TAG = "colab-badge"
SETUP_TAG = "setup"
FOLDERS = ("chapters", "exercises", "solutions")

SETUP = """\
# Set-up for Colab. On your own machine this cell does nothing.
import importlib.util
import os
from subprocess import run

if "COLAB_RELEASE_TAG" in os.environ:
    url = "{repository}"
    if importlib.util.find_spec("distillkit") is None:
        if not os.path.isdir("course"):
            run(f"git clone -q --depth 1 {{url}} course".split(), check=True)
        run(["pip", "install", "-q", "--no-deps", "./course"], check=True)
    if os.path.isdir("course/{folder}"):
        os.chdir("course/{folder}")
    from distillkit.course import machine_check
    _ = machine_check()"""

README_BLOCK = """\
<!-- stamped: `make stamp` writes this block -->
{badge}```
git clone {repository}
cd {name}
make run
make test
```
<!-- /stamped -->"""


def repository_address(root: Path = ROOT) -> str:
    """The repository's address, as pyproject.toml has it."""
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    return str(project["urls"]["Repository"]).rstrip("/")


def badge(repository: str, notebook: str) -> str:
    """The Markdown of the badge that opens `notebook` (its path in the repository) in Colab."""
    owner_and_name = "/".join(repository.split("/")[-2:])
    link = f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{notebook}"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})]({link})"


def stamp_notebook(notebook: NotebookNode, place: str, repository: str) -> None:
    """Put the badge first and the set-up cell before the first other code cell, in place.

    `place` is the notebook's path in the repository, such as "chapters/04_the_student.ipynb".
    """
    normalise(notebook)
    first = new_markdown_cell(badge(repository, place), id=BADGE_TAG)
    setup_source = SETUP.format(repository=repository, folder=place.split("/")[0])
    setup = new_code_cell(setup_source, id=SETUP_TAG)
    for cell, tag in ((first, BADGE_TAG), (setup, SETUP_TAG)):
        cell.metadata["tags"] = [tag]
    old = [cell for cell in notebook.cells if SETUP_TAG in cell.metadata.get("tags", [])]
    if old:
        setup.execution_count = old[0].execution_count
    stamped = {BADGE_TAG, SETUP_TAG}
    cells = [cell for cell in notebook.cells if not stamped & set(cell.metadata.get("tags", []))]
    kinds = [cell.cell_type for cell in cells]
    at = kinds.index("code") if "code" in kinds else len(cells)
    notebook.cells = [first, *cells[:at], setup, *cells[at:]]


def stamp_readme(text: str, chapters: list[str], repository: str) -> str:
    """The README with its stamped block renewed; the badge leads to the first chapter."""
    button = badge(repository, f"chapters/{min(chapters)}") + "\n\n" if chapters else ""
    block = README_BLOCK.format(
        badge=button, repository=repository, name=repository.rsplit("/", 1)[-1]
    )
    pattern = re.compile(r"<!-- stamped.*?<!-- /stamped -->", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError("README.md needs one block from <!-- stamped … --> to <!-- /stamped -->")
    return pattern.sub(lambda _: block, text)


def stamp_block(text: str, name: str, content: str) -> str:
    """The README with one block of measured results renewed."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError(f"README.md needs one block from {begin} to {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def renew_blocks(blocks: dict[str, str], root: Path = ROOT) -> bool:
    """Renew blocks of the README, name -> content; whether it was not up to date before."""
    readme = root / "README.md"
    old = new = readme.read_text(encoding="utf-8")
    for name, content in blocks.items():
        new = stamp_block(new, name, content)
    return _write_if_new(readme, old, new)


def recorded_blocks(root: Path = ROOT) -> dict[str, str]:
    """The blocks that show what long runs have recorded: name -> content."""
    return {"results": overview(root / "experiments" / "results")}


def notebook_paths(root: Path = ROOT) -> Iterator[Path]:
    """Every notebook of a checkout that carries a stamp."""
    for folder in FOLDERS:
        yield from sorted((root / folder).glob("*.ipynb"))


def stamp_all(root: Path = ROOT) -> list[Path]:
    """Stamp the README and all notebooks of a checkout; the files that changed."""
    repository = repository_address(root)
    changed = []
    for path in notebook_paths(root):
        notebook = read_notebook(path)
        before = deepcopy(notebook)
        stamp_notebook(notebook, path.relative_to(root).as_posix(), repository)
        if notebook != before:
            write_notebook(path, notebook)
            changed.append(path)
    if _stamp_readme(root, repository):
        changed.append(root / "README.md")
    return changed


def _stamp_readme(root: Path, repository: str) -> bool:
    """Renew the README as a whole; whether it was not up to date before."""
    from distillkit.course.matrix import rows, table  # which need torch

    readme = root / "README.md"
    old = readme.read_text(encoding="utf-8")
    chapters = [path.name for path in (root / "chapters").glob("*.ipynb")]
    stamped = _write_if_new(readme, old, stamp_readme(old, chapters, repository))
    return renew_blocks(recorded_blocks(root) | {"exercises": table(rows(root))}, root) or stamped


def _write_if_new(place: Path, old: str, new: str) -> bool:
    """Write a file, whole, where its text has changed; whether it has."""
    if new != old:
        aside = place.with_name(f"{place.name}.part")
        aside.write_text(new, encoding="utf-8")
        os.replace(aside, place)
    return new != old


def main() -> int:
    """Stamp this checkout and say what changed."""
    changed = stamp_all()
    for path in changed:
        print(f"stamped {path.relative_to(ROOT)}")
    if not changed:
        print("Every stamp is current.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
