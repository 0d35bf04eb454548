"""The matrix: right answers are accepted, and every known wrong one is refused as what it is."""

import json
import os
import shutil
import statistics
import time
import warnings

import nbformat
import pytest
import torch
from other_styles import OTHER_STYLES
from other_styles_01_04 import OTHER_STYLES_01_04

from distillkit.course import building, matrix, stamp
from distillkit.course.bench import SLOW, Bench, as_function
from distillkit.course.comparing import normal, same
from distillkit.course.exercises import all_exercises, exercise
from distillkit.course.exercises.definition import OFFERED
from distillkit.course.exercises.drawing import Draw
from distillkit.course.judging import examine, judge
from distillkit.course.notebooks import ROOT, read_notebook
from distillkit.course.observing import call
from distillkit.errors import UserError

EXERCISES = {each.number: each for each in all_exercises()}
SETTINGS = [(seed, dtype) for seed in (1, 2) for dtype in (torch.float32, torch.float64)]


@pytest.fixture(scope="module")
def answers():
    """What the solutions, and what the untouched exercises give to `check`."""
    return matrix.all_answers()


@pytest.fixture(scope="module")
def run():
    """The matrix, made once: what the tests assert, and what the README shows."""
    return {row.exercise.number: row for row in matrix.rows()}


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_is_done_and_the_stub_not_started(number, run):
    assert run[number].solution.state == "done", run[number].solution
    assert run[number].stub.state == "not started"


MUTANTS = [(number, mutant) for number in EXERCISES for mutant in EXERCISES[number].mutants]


@pytest.mark.parametrize(("number", "mutant"), MUTANTS, ids=lambda x: getattr(x, "name", x))
def test_a_wrong_answer_is_refused_with_its_own_sentence(number, mutant, run):
    each, verdict = EXERCISES[number], run[number].wrong[mutant.name]
    assert verdict.state == "not yet" and verdict.mistake is mutant, verdict
    assert mutant.sentence in str(verdict) and mutant.sentence in verdict.sentences
    assert not any(other.sentence in str(verdict) for other in each.mutants if other is not mutant)


@pytest.mark.parametrize(("number", "mutant"), MUTANTS, ids=lambda x: getattr(x, "name", x))
def test_no_two_wrong_answers_are_indistinguishable(number, mutant):
    asked = EXERCISES[number].kind == "predict"
    function = as_function(mutant.answer)
    bench = Bench(EXERCISES[number], function, 0, torch.float32)
    names = [each.name for each in bench.mistakes([] if asked else bench.failing(function))]
    assert names == [mutant.name]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("seed", "dtype"), SETTINGS)
def test_the_matrix_holds_for_other_seeds_types_and_threads(seed, dtype, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert [row for row in matrix.rows(seed=seed, dtype=dtype) if not row.good] == []
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 13))
def test_the_matrix_holds_for_every_draw(seed):
    assert [
        (row.exercise.number, row.missed) for row in matrix.rows(seed=seed) if not row.good
    ] == []


STYLES = [
    (number, function)
    for number, functions in (OTHER_STYLES | OTHER_STYLES_01_04).items()
    for function in functions
]


@pytest.mark.parametrize(("number", "function"), STYLES, ids=lambda x: getattr(x, "__name__", x))
def test_a_right_answer_in_another_style_passes(number, function):
    for seed, dtype in [(0, torch.float32), (3, torch.float64)]:
        verdict = judge(EXERCISES[number], function, seed=seed, dtype=dtype)
        assert verdict.state == "done", verdict


def test_every_loss_to_write_has_three_other_styles():
    written = [each.number for each in EXERCISES.values() if each.kind == "write"]
    losses = [number for number in written if EXERCISES[number].chapter == "02"]
    assert all(len(OTHER_STYLES.get(number, ())) >= 3 for number in losses), losses


FUNCTIONS = [number for number, each in EXERCISES.items() if each.kind != "predict"]


# --- definitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", EXERCISES)
def test_a_definition_is_whole(number):
    each = EXERCISES[number]
    assert 1 <= each.difficulty <= 5 and 1 <= each.minutes <= 60 and each.title
    assert len(each.hints) >= 2
    assert len(each.mutants) >= 3
    for texts in ({m.sentence for m in each.mutants}, {m.name for m in each.mutants}):
        assert len(texts) == len(each.mutants)
    assert all(mutant.seen and mutant.sentence for mutant in each.mutants)
    if each.kind != "predict":
        assert not any(mutant.seen == OFFERED for mutant in each.mutants)
        assert len(each.cases(Draw(0))) >= 3
    assert (each.given is not None) == (each.kind == "mend")


@pytest.mark.parametrize("number", FUNCTIONS)
def test_other_seeds_draw_other_cases(number):
    def drawn(seed):
        cases = EXERCISES[number].cases(Draw(seed))
        return [normal(a) for case in cases for a in case.arguments if not callable(a)]

    def equal(one, other):
        return len(one) == len(other) and all(map(same, one, other, [0.0] * len(one)))

    assert equal(drawn(0), drawn(0)) and not equal(drawn(0), drawn(1))


def test_an_unknown_exercise_is_named():
    with pytest.raises(UserError, match=r"no exercise '9\.9': there are .*2\.2, 2\.3"):
        exercise("9.9")


def test_a_wrong_function_may_raise_what_a_mutant_raises_without_taking_its_name():
    def broken(*_):
        raise ValueError("x")

    verdict = judge(EXERCISES["2.2"], broken)
    assert verdict.mistake is None and "raised ValueError: x" in str(verdict)


# --- how long it takes ----------------------------------------------------------------------------


def test_a_check_is_quick(answers):
    def seconds(number):
        start = time.process_time()  # of computing: other processes share the cores
        assert examine(EXERCISES[number], answers[0][number], seed=5).state == "done"
        return time.process_time() - start

    taken = {number: min(seconds(number) for _ in range(3)) for number in EXERCISES}
    assert statistics.median(taken.values()) <= 0.1, taken
    assert max(taken.values()) <= 2.0, taken


@pytest.mark.parametrize("number", FUNCTIONS)
def test_properties_call_at_most_twice_a_case_so_a_slow_function_gets_through(number, answers):
    calls = []

    def counted(*arguments):
        calls.append(1)
        return answers[0][number](*arguments)

    assert all(each.holds(counted, Draw(1)) for each in EXERCISES[number].properties)
    assert len(calls) <= SLOW * len(EXERCISES[number].cases(Draw(0)))


# --- one source -----------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """The notebooks of this checkout, as git has them."""
    for folder in ("solutions", "exercises"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def test_exercises_are_built_and_nothing_is_left_over(checkout):
    assert building.build_all(checkout) == [], "make exercises"
    left = checkout / "exercises" / "99_left.ipynb"
    left.write_text("{}")
    assert building.build_all(checkout) == [left] and not left.exists()


def test_the_same_source_gives_the_same_bytes(checkout):
    before = {path.name: path.read_bytes() for path in (checkout / "exercises").iterdir()}
    shutil.rmtree(checkout / "exercises")
    building.build_all(checkout)
    after = {path.name: path.read_bytes() for path in (checkout / "exercises").iterdir()}
    assert before == after and before


def test_nothing_of_a_solution_is_left_in_an_exercise():
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        text = (ROOT / "exercises" / path.name).read_text()
        assert "SOLUTION" not in text
        assert all(not cell.get("outputs") for cell in json.loads(text)["cells"])


def test_every_exercise_has_a_heading_a_check_and_a_solution(answers):
    found = []
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        notebook = read_notebook(path)
        headed = [each for cell in notebook.cells if (each := building.heading_of(cell))]
        for each in headed:
            assert each.chapter == path.name[:2]
            assert building.solved_cell(path, each.number)
        found += [each.number for each in headed]
    assert found == sorted(found) and set(found) == set(EXERCISES) == set(answers[0])


def test_regions_become_stubs():
    function = "def f(x):\n    # BEGIN SOLUTION\n    return x\n    # END SOLUTION"
    assert building.stubbed(function, None) == f"def f(x):\n    {building.STUB}"
    values = "# BEGIN SOLUTION\na = 1\nb = [2,\n     3]\n# END SOLUTION\nprint(a)"
    assert building.stubbed(values, None) == "a = ...\nb = ...\nprint(a)"
    with pytest.raises(UserError, match="a region without its end"):
        building.stubbed("# BEGIN SOLUTION\nx = 1", None)
    given = building.stubbed("# BEGIN SOLUTION\nx = 1\n# END SOLUTION", EXERCISES["2.4"])
    assert given.startswith("def soft_loss(") and given.endswith("mean()")


def test_heads_come_from_the_definition():
    cell = nbformat.v4.new_markdown_cell("## 2.2 An old title\n\n> an old box\n\nThe statement.")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    for _ in range(2):
        building.renew_heads(notebook)
        head, box, statement = notebook.cells[0].source.split("\n\n")
        assert head == f"## 2.2 · {EXERCISES['2.2'].title}" and statement == "The statement."
        assert box == "> write it · difficulty ●●○○○ · 10 minutes"


def test_the_table_counts(run):
    first, _, *lines = matrix.table(run.values()).splitlines()
    count, wrong = len(EXERCISES), len(MUTANTS)
    assert f"{count} exercises, {wrong} wrong answers, {wrong} caught" in first
    assert f"{count} of {count} solutions accepted" in first
    assert len(lines) == count + 2


def shown_in_the_readme(run, root):
    """Write the table of a run into the README; where nobody would commit it, insist on that."""
    if stamp.renew_blocks({"exercises": matrix.table(run.values())}, root):
        told = "README.md did not show what the matrix found: commit it as this run wrote it"
        assert not os.environ.get("CI"), told
        warnings.warn(told, stacklevel=1)


def test_the_readme_shows_what_this_run_found(run):
    shown_in_the_readme(run, ROOT)


def test_a_readme_that_is_stale_is_renewed_and_does_not_land(run, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("# X\n<!-- exercises -->\nold\n<!-- /exercises -->\n")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="commit it"):
        shown_in_the_readme(run, tmp_path)
    assert f"**{len(EXERCISES)} exercises" in readme.read_text()
    shown_in_the_readme(run, tmp_path)
    readme.write_text(readme.read_text().replace("caught", "met"))
    monkeypatch.delenv("CI")
    with pytest.warns(UserWarning, match="commit it"):
        shown_in_the_readme(run, tmp_path)


def test_a_case_is_called_with_copies():
    case = EXERCISES["2.2"].cases(Draw(0))[0]
    before = case.arguments[0].clone()
    outcome = call(lambda a, b, t: a.zero_(), case)
    assert outcome.changed == (0,) and case.arguments[0].equal(before)
