"""The matrix: right answers are accepted, and every known wrong one is refused as what it is."""

import json
import shutil
import statistics
import time

import nbformat
import pytest
import torch
from other_styles import OTHER_STYLES
from other_styles_01_04 import OTHER_STYLES_01_04

from distillkit.course import building, matrix
from distillkit.course.bench import Bench, as_function, target
from distillkit.course.comparing import normal, same
from distillkit.course.exercises import all_exercises, exercise
from distillkit.course.exercises.definition import OFFERED
from distillkit.course.exercises.drawing import Draw
from distillkit.course.judging import judge
from distillkit.course.notebooks import ROOT, read_notebook
from distillkit.course.observing import call
from distillkit.errors import UserError

EXERCISES = {each.number: each for each in all_exercises()}
SETTINGS = [(seed, dtype) for seed in (1, 2) for dtype in (torch.float32, torch.float64)]


@pytest.fixture(scope="module")
def answers():
    """What the solutions, and what the untouched exercises give to `check`."""
    return matrix.all_answers()


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_is_done_and_the_stub_not_started(number, answers):
    solved, begun = answers
    verdict = judge(EXERCISES[number], solved[number])
    assert verdict.state == "done", verdict
    assert judge(EXERCISES[number], begun[number]).state == "not started"


MUTANTS = [(number, mutant) for number in EXERCISES for mutant in EXERCISES[number].mutants]


@pytest.mark.parametrize(("number", "mutant"), MUTANTS, ids=lambda x: getattr(x, "name", x))
def test_a_wrong_answer_is_refused_with_its_own_sentence(number, mutant):
    each = EXERCISES[number]
    verdict = matrix.wrong(each, mutant)
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


# --- cheats ---------------------------------------------------------------------------------------

FUNCTIONS = [number for number, each in EXERCISES.items() if each.kind != "predict"]


def first_case(number):
    """The arguments of a case that anybody may know, and the right result there."""
    case = EXERCISES[number].cases(Draw(0))[0]
    return case.arguments, target(EXERCISES[number], case)


@pytest.mark.parametrize("number", FUNCTIONS)
def test_a_constant_does_not_pass(number):
    _, right = first_case(number)
    for constant in (0.0, 1.0, right):
        assert judge(EXERCISES[number], lambda *_, c=constant: c).state == "not yet"


@pytest.mark.parametrize("number", FUNCTIONS)
def test_a_fit_of_one_case_does_not_pass(number):
    known, right = first_case(number)
    wrong = EXERCISES[number].mutants[0].answer

    def fitted(*arguments):
        first, other = arguments[0], known[0]
        if isinstance(first, torch.Tensor) and first.shape == other.shape and first.equal(other):
            return right
        return wrong(*arguments)

    assert judge(EXERCISES[number], fitted).state == "not yet"


def test_the_librarys_own_function_is_noticed_kindly():
    from distillkit.losses import distillation_loss, forward_kl

    verdict = judge(EXERCISES["2.2"], forward_kl)
    assert verdict.state == "used the library" and "`forward_kl`" in str(verdict)
    hidden = judge(EXERCISES["2.2"], lambda a, b, t: forward_kl(a, b, t) * 1.0)
    assert hidden.state == "used the library"
    whole = judge(
        EXERCISES["2.3"],
        lambda s, t, y, a, T: distillation_loss(s, t, y, alpha=a, temperature=T),
    )
    assert whole.state == "used the library"


def test_the_library_is_noticed_in_a_thread_in_pieces_and_under_the_exercises():
    from concurrent.futures import ThreadPoolExecutor

    from distillkit.course.exercises import losses_by_hand
    from distillkit.evaluation import calibration_of
    from distillkit.losses import forward_kl, label_loss, masked_mean

    def elsewhere(s, t, T):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(forward_kl, s, t, T).result()

    def pieces(s, t, labels, alpha, T):
        soft = masked_mean(forward_kl(s, t, T), labels != -100)
        return alpha * T**2 * soft + (1 - alpha) * label_loss(s, labels)

    def counted(logits, labels, bins):
        hits = logits.argmax(-1) == labels
        return calibration_of(
            logits.softmax(-1).amax(-1).flatten(), hits.flatten(), bins=bins
        ).error

    assert judge(EXERCISES["3.3"], counted).state == "used the library"
    for number, answer in (("2.2", elsewhere), ("2.2", losses_by_hand.kl), ("2.3", pieces)):
        verdict = judge(EXERCISES[number], answer)
        assert verdict.state == "used the library", number


# --- definitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", EXERCISES)
def test_a_definition_is_whole(number):
    each = EXERCISES[number]
    assert 1 <= each.difficulty <= 5 and 1 <= each.minutes <= 60 and each.title
    assert len(each.hints) >= 2
    assert len(each.mutants) >= 3
    assert len({mutant.sentence for mutant in each.mutants}) == len(each.mutants)
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
        start = time.perf_counter()
        judge(EXERCISES[number], answers[0][number])
        return time.perf_counter() - start

    taken = {number: min(seconds(number) for _ in range(3)) for number in EXERCISES}
    assert statistics.median(taken.values()) <= 0.1, taken
    assert max(taken.values()) <= 2.0, taken


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


def test_the_table_counts(answers):
    first, _, *lines = matrix.table().splitlines()
    count, wrong = len(EXERCISES), len(MUTANTS)
    assert f"{count} exercises, {wrong} wrong answers, {wrong} caught" in first
    assert f"{count} of {count} solutions accepted" in first
    assert len(lines) == count + 2


def test_a_case_is_called_with_copies():
    case = EXERCISES["2.2"].cases(Draw(0))[0]
    before = case.arguments[0].clone()
    outcome = call(lambda a, b, t: a.zero_(), case)
    assert outcome.changed == (0,) and case.arguments[0].equal(before)
