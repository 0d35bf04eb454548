"""Run levels, executing notebooks, and the stamps."""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
from collections import namedtuple
from copy import deepcopy

import nbformat
import pytest
from nbformat import v4

from distillkit.course import headline, levels, machine_check, run, run_level, stamp
from distillkit.course.headlines import MIME, find_headline
from distillkit.course.levels import SWITCH, Level
from distillkit.course.notebooks import find_notebooks, normalise, read_notebook
from distillkit.course.pages import page
from distillkit.course.results import (
    fair_fight,
    fair_table,
    marks,
    overview,
    stages_table,
    students,
)
from distillkit.errors import UserError
from distillkit.model_files import SHIPPED

# --- levels ---------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(levels, "_gpu_works", lambda: False)


@pytest.mark.parametrize(("word", "name"), [("smoke", "smoke"), ("CPU", "cpu"), (" gpu ", "gpu")])
def test_the_switch_chooses_the_level(word, name, monkeypatch, no_gpu):
    monkeypatch.setenv(SWITCH, word)
    assert run_level() == Level(name, "cpu")


@pytest.mark.parametrize(("works", "level"), [(False, Level("cpu")), (True, Level("gpu", "cuda"))])
def test_without_the_switch_the_machine_chooses(works, level, monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(levels, "_gpu_works", lambda: works)
    assert run_level() == level


def test_an_unknown_level_is_refused(monkeypatch):
    monkeypatch.setenv(SWITCH, "fast")
    with pytest.raises(UserError, match="'fast': choose one of smoke, cpu, gpu"):
        run_level()


def test_pick_takes_the_value_of_the_level():
    assert [Level(name).pick(smoke=1, cpu=2, gpu=3) for name in levels.LEVELS] == [1, 2, 3]


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_bf16_only_where_it_is_native(capability, precision, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert Level("gpu", "cuda").precision == precision
    assert Level("gpu").precision == "fp32"


@pytest.mark.parametrize("what", ["memory", "disk", "gpu_memory"])
def test_a_machine_that_is_too_small_is_refused_in_a_sentence(what, monkeypatch):
    monkeypatch.setattr(levels, f"free_{what}", lambda: 1.2e9)
    level = Level("gpu", "cuda") if what == "gpu_memory" else Level("cpu")
    level.require(**{f"{what}_gb": 1})
    name = what.replace("gpu_", "GPU ")
    sentence = f"needs 3 GB of free {name} at level {level.name}, and 1.2 GB is free"
    with pytest.raises(UserError, match=sentence):
        level.require(**{f"{what}_gb": 3})


def test_a_precision_is_an_argument_of_the_trainer(monkeypatch):
    assert Level("cpu").mixed_precision == {}
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert Level("gpu", "cuda").mixed_precision == {"fp16": True}


def test_what_is_free_is_measured():
    assert 1e7 < levels.free_memory() < 1e14
    assert 0 < levels.free_disk() < 1e17


def test_describe_names_level_device_and_torch(monkeypatch):
    said = Level("cpu").describe()
    assert "level   cpu" in said and "threads; torch 2." in said and "GB of memory" in said


def test_a_gpu_that_torch_cannot_use_is_said_loudly(monkeypatch, capsys, no_gpu):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("COLAB_GPU", "1")
    (problem,) = machine_check()
    assert "a GPU that torch cannot use" in problem
    assert f"WARNING {problem}" in capsys.readouterr().out
    assert f"WARNING {problem}" in Level("cpu").describe()


def test_another_distillkit_is_noticed(monkeypatch):
    Script = namedtuple("Script", "value")
    Owner = namedtuple("Owner", "entry_points")
    scripts = type("Scripts", (list,), {"select": lambda self, group: self})

    def owned_by(value):
        monkeypatch.setattr(
            levels.metadata, "packages_distributions", lambda: {"distillkit": ["some-package"]}
        )
        monkeypatch.setattr(
            levels.metadata, "distribution", lambda _: Owner(scripts([Script(value)]))
        )
        return levels._name_problem()

    assert "'some-package'" in owned_by("distillkit.main:main")
    assert owned_by("distillkit.cli:main") is None


def test_levels_command(monkeypatch, capsys):
    monkeypatch.setenv(SWITCH, "smoke")
    assert levels.main(argparse.Namespace()) == 0
    assert "level   smoke" in capsys.readouterr().out


# --- executing ------------------------------------------------------------------------------------

MEASURED = """\
import os
from distillkit.course import headline, run_level
held = bytearray(os.urandom(80_000_000))
print(run_level().name, os.environ["HF_HUB_OFFLINE"], os.path.basename(os.getcwd()))
headline("an early figure")
headline("student: 9 of 10")"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Two chapters, one of which fails, executed in place: their home and what was said."""
    home = tmp_path_factory.mktemp("course")
    folder = home / "chapters"
    folder.mkdir()
    passing = v4.new_notebook(
        cells=[v4.new_markdown_cell("# Passing $x^2$"), v4.new_code_cell(MEASURED)],
        metadata={"widgets": {}, "language_info": {"name": "python", "version": "3.0"}},
    )
    failing = v4.new_notebook(
        cells=[v4.new_code_cell("1 + 1"), v4.new_code_cell("# wrong\n1 / 0"), v4.new_code_cell("2")]
    )
    for name, notebook in (("01_failing", failing), ("02_passing", passing)):
        nbformat.write(notebook, folder / f"{name}.ipynb")
    command = [
        *("python", "-m", "distillkit.cli", "run", "--level", "smoke", "--in-place"),
        *("--folder", str(folder)),
    ]
    done = subprocess.run(
        [os.sys.executable, *command[1:]], capture_output=True, text=True, timeout=200
    )
    return home, done


def test_a_failing_chapter_is_named_and_does_not_stop_the_next(executed):
    _, done = executed
    assert done.returncode == 1
    failed = "cell 2 (# wrong): ZeroDivisionError: division by zero"
    assert f"FAILED: {failed}" in done.stdout
    assert done.stdout.index("[1/2] 01_failing") < done.stdout.index("[2/2] 02_passing")
    assert done.stderr == ""


def test_the_table_has_seconds_memory_and_the_last_headline(executed):
    _, done = executed
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("02_passing")]
    _, seconds, megabytes, unit, said = row.split(maxsplit=4)
    assert 0 < float(seconds) < 100
    assert 120 < int(megabytes.replace(",", "")) < 3000 and unit == "MB"
    assert said == "student: 9 of 10"
    assert "Pages to read: file:" in done.stdout


def test_pages_are_written(executed):
    home, _ = executed
    pages = home / "build" / "pages"
    index = (pages / "index.html").read_text()
    assert 'href="02_passing.html"' in index and "FAILED" in index
    assert "student: 9 of 10" in (pages / "02_passing.html").read_text()
    assert "ZeroDivisionError" in (pages / "01_failing.html").read_text()


def test_pages_need_no_network(executed):
    home, _ = executed
    page = (home / "build" / "pages" / "02_passing.html").read_text()
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in page  # a formula that the browser draws itself
    assert "<script" not in page and "$x" not in page


def test_a_formula_with_a_number_has_it_beside_it_and_an_address():
    text = "As in\n\n$$a = b \\tag{2.4}$$\n\nand, without a number,\n\n$$c = d$$"
    body = page(v4.new_notebook(cells=[v4.new_markdown_cell(text)]), "02_tried")
    numbered = body[body.index('id="eq-2.4"') :]
    assert "<div>(2.4)</div>" in numbered and body.count('id="eq-') == 1
    assert "tag" not in numbered[: numbered.index("(2.4)")]
    assert body.count('<math display="block">') == 2


def test_log_p_is_not_one_word():
    body = page(v4.new_notebook(cells=[v4.new_markdown_cell(r"$\log p + \log(q)$")]), "02_tried")
    assert '<mi>log</mi><mspace width="0.167em"></mspace><mi>p</mi>' in body
    assert '<mi>log</mi><mo stretchy="false">(</mo>' in body


def test_in_place_keeps_outputs_in_a_stable_form(executed):
    home, _ = executed
    notebook = read_notebook(home / "chapters" / "02_passing.ipynb")
    code = notebook.cells[1]
    assert code.outputs[0].text == "smoke 1 chapters\n"
    assert code.execution_count == 1 and "execution" not in code.metadata
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}


def test_in_place_leaves_a_failing_chapter_alone(executed):
    home, _ = executed
    notebook = read_notebook(home / "chapters" / "01_failing.ipynb")
    assert not any(cell.outputs for cell in notebook.cells)
    assert sorted(path.name for path in (home / "chapters").iterdir()) == [
        "01_failing.ipynb",
        "02_passing.ipynb",
    ]


def test_widgets_do_not_stay_in_a_notebook():
    view = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
        "text/plain": "IntSlider",
    }
    cell = v4.new_code_cell("slider", outputs=[v4.new_output("display_data", view)])
    cell.metadata["execution"] = {"iopub.status.busy": "now"}
    notebook = v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    normalise(notebook)
    assert notebook.cells[0].outputs == [] and notebook.cells[0].metadata == {}
    assert "widgets" not in notebook.metadata
    once = deepcopy(notebook)
    normalise(notebook)
    assert notebook == once


def test_chapters_are_found_in_order_and_by_name(tmp_path):
    for name in ("10_late", "02_early"):
        nbformat.write(v4.new_notebook(), tmp_path / f"{name}.ipynb")
    assert [path.stem for path in find_notebooks(tmp_path)] == ["02_early", "10_late"]
    assert [path.stem for path in find_notebooks(tmp_path, ["10"])] == ["10_late"]
    with pytest.raises(UserError, match="no chapter '7': there are 02_early, 10_late"):
        find_notebooks(tmp_path, ["7"])
    with pytest.raises(UserError, match="no notebooks in"):
        find_notebooks(tmp_path / "elsewhere")


@pytest.mark.parametrize("content", ["not json", "[]", "{}"])
def test_a_file_that_is_no_notebook_is_refused(content, tmp_path):
    path = tmp_path / "01.ipynb"
    path.write_text(content)
    with pytest.raises(UserError, match="is not a notebook"):
        read_notebook(path)


def test_the_table_lines_up():
    outcomes = [
        run.Outcome("04_the_student", 71.23, 1812.4, "distilled 0.9"),
        run.Outcome("5", 3, 9),
    ]
    lines = run.table(outcomes).splitlines()
    assert lines[2] == "04_the_student      71.2     1,812 MB  distilled 0.9"
    assert lines[3] == "5                    3.0         9 MB"


def test_a_headline_outside_a_notebook_is_printed(capsys):
    headline("nine of ten")
    assert capsys.readouterr().out == "nine of ten\n"


def test_a_notebook_without_a_headline_has_none():
    output = v4.new_output("display_data", {MIME: {"headline": "x"}})
    cell = v4.new_code_cell("", outputs=[v4.new_output("stream", text="x"), output])
    assert find_headline(v4.new_notebook()) == ""
    assert find_headline(v4.new_notebook(cells=[v4.new_markdown_cell("x"), cell])) == "x"


# --- stamps ---------------------------------------------------------------------------------------

ADDRESS = "https://github.com/someone/some-course"
PLACE = "chapters/04_the_student.ipynb"


@pytest.fixture
def stamped():
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell("1"), v4.new_code_cell("2")]
    notebook = v4.new_notebook(cells=cells)
    stamp.stamp_notebook(notebook, PLACE, ADDRESS)
    return notebook


def test_stamping_adds_badge_and_set_up(stamped):
    badge, title, setup, *rest = stamped.cells
    assert f"github/someone/some-course/blob/main/{PLACE}" in badge.source
    assert title.source == "# Title"
    assert f'url = "{ADDRESS}"' in setup.source and setup.metadata.tags == ["setup"]
    assert [cell.source for cell in rest] == ["1", "2"]
    nbformat.validate(stamped)


def test_stamping_twice_changes_nothing_and_a_new_address_replaces_the_old(stamped):
    stamped.cells[2].execution_count = 1
    once = deepcopy(stamped)
    stamp.stamp_notebook(stamped, PLACE, ADDRESS)
    assert stamped == once
    stamp.stamp_notebook(stamped, PLACE, "https://github.com/another/house")
    assert "someone" not in json.dumps(stamped) and len(stamped.cells) == len(once.cells)


def test_every_stamp_in_this_checkout_is_current(tmp_path):
    repository = stamp.repository_address()
    for path in stamp.notebook_paths():
        notebook = read_notebook(path)
        before = deepcopy(notebook)
        stamp.stamp_notebook(notebook, path.relative_to(stamp.ROOT).as_posix(), repository)
        assert notebook == before, f"{path.name}: make stamp"
    readme = (stamp.ROOT / "README.md").read_text()
    chapters = [path.name for path in (stamp.ROOT / "chapters").glob("*.ipynb")]
    assert stamp.stamp_readme(readme, chapters, repository) == readme
    for name, content in stamp.recorded_blocks().items():
        assert stamp.stamp_block(readme, name, content) == readme, f"{name}: make stamp"


def test_only_seeds_that_all_arms_have_finished_are_compared(tmp_path):
    def run(arm, seed, successes, **more):
        return {"arm": arm, "size": 100, "seed": seed, "nll": 0.5 + seed, **more} | (
            {"successes": successes, "success": successes.count("1") / 4} if successes else {}
        )

    files = {
        "labels": [run("labels", 1000, ""), run("labels", 0, "0011"), run("labels", 1, "0000")],
        "distilled": [run("distilled", 0, "0111"), run("distilled", 2, "1111")],
    }
    for arm, runs in files.items():
        (tmp_path / f"04_fair_fight.{arm}.json").write_text(json.dumps({"runs": runs}))
    fight = fair_fight(tmp_path)
    assert {arm: [run["seed"] for run in sizes[100]] for arm, sizes in fight.items()} == {
        "labels": [0],
        "distilled": [0],
    }
    assert marks(fight["distilled"][100]) == [[False, True, True, True]]
    table = fair_table(tmp_path).splitlines()
    assert "| 100 | student, labels | 1 | 0.500 (0.500 to 0.500) | 50.0% [" in table[2]
    assert "student, distilled" in table[3] and "75.0%" in table[3]
    assert table[3].endswith("| 75.0% to 75.0% |")


def test_the_table_of_the_stages(tmp_path):
    runs = [
        {
            "arm": arm,
            "nll": 0.25 + seed,
            "by_origin": {"copied": 1.0 + seed, "own": 0.25},
            "success": 0.5 * seed,
            "successes": "10" if seed else "00",
        }
        for arm in ("turns", "few turns")
        for seed in (0, 1)
    ]
    (tmp_path / "03_stages.student.json").write_text(json.dumps({"runs": runs}))
    table = stages_table(tmp_path).splitlines()
    assert len(table) == 4
    assert table[2].startswith("| turns | 2 | 0.750 (0.250 to 1.250) | 1.500 | 0.250 | 25.0% [")
    assert table[3].endswith("| 0.0% to 50.0% |")


def test_the_students_that_ship_stand_from_small_to_large(tmp_path):
    def run(name, arm, parameters):
        measured = {"nll": 0.2, "success": 0.5, "low": 0.4, "high": 0.6, "bytes": 1_500_000}
        return {"name": name, "arm": arm, "parameters": parameters, **measured}

    tuning = {"arm": "labels", "parameters": 2, "best_validation": 0.3}
    files = {
        "labels": [tuning, run("a-labels", "labels", 2), run("b-labels", "labels", 1)],
        "distilled": [run("a", "distilled", 2), run("b", "distilled", 1)],
    }
    for arm, runs in files.items():
        (tmp_path / f"00_students.{arm}.json").write_text(json.dumps({"runs": runs}))
    teacher = run("", "", 9) | {"floor": 0.1}
    (tmp_path / "01_teacher.json").write_text(json.dumps({"runs": [teacher]}))
    assert [made["name"] for made in students(tmp_path)] == ["b", "b-labels", "a", "a-labels"]
    table = overview(tmp_path).splitlines()
    assert table[3] == "| front-desk-teacher | 9 | 1.50 | 0.200 | 50.0% [40.0%, 60.0%] |"
    assert [line.split()[1] for line in table[4:]] == ["b", "b-labels", "a", "a-labels"]


def test_every_student_that_ships_has_its_results():
    assert {made["name"] for made in students()} == set(SHIPPED[1:])


def test_stamping_a_checkout_twice_writes_once(tmp_path, stamped):
    (tmp_path / "chapters").mkdir()
    nbformat.write(v4.new_notebook(), tmp_path / PLACE)
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nname = "x"\n[project.urls]\nRepository = "{ADDRESS}"\n'
    )
    shutil.copytree(stamp.ROOT / "experiments" / "results", tmp_path / "experiments" / "results")
    blocks = "<!-- stamped -->\n<!-- /stamped -->\n<!-- results -->\nold\n<!-- /results -->\n"
    blocks += "<!-- exercises -->\n<!-- /exercises -->\n"
    (tmp_path / "README.md").write_text("# X\n" + blocks)
    changed = stamp.stamp_all(tmp_path)
    assert [path.name for path in changed] == ["04_the_student.ipynb", "README.md"]
    readme = (tmp_path / "README.md").read_text()
    assert f"git clone {ADDRESS}\ncd some-course" in readme
    assert "old" not in readme and overview() in readme
    assert stamp.stamp_all(tmp_path) == []


@pytest.fixture
def setup_cell(stamped, monkeypatch, tmp_path):
    """Run the set-up cell; the commands that it would have run."""
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))

    def execute():
        exec(stamped.cells[2].source, {})
        return commands

    return execute


def test_the_set_up_cell_does_nothing_at_home(setup_cell, monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert setup_cell() == []


def test_the_set_up_cell_installs_on_colab_without_dependencies(setup_cell, monkeypatch, tmp_path):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert setup_cell() == []  # distillkit can be imported here
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    clone, install = setup_cell()
    assert clone == ["git", "clone", "-q", "--depth", "1", ADDRESS, "course"]
    assert install == ["pip", "install", "-q", "--no-deps", "./course"]
    (tmp_path / "course" / "chapters").mkdir(parents=True)
    setup_cell()
    assert os.getcwd() == str(tmp_path / "course" / "chapters")
