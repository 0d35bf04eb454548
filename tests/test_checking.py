"""What a learner meets: functions that misbehave, hints, solutions, quizzes, and kept progress."""

import contextlib
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distillkit.course import (
    check,
    checking,
    hint,
    learner,
    progress,
    quiz,
    reset,
    solution,
    stopping,
)
from distillkit.course import quizzes as quiz_room
from distillkit.course.comparing import Incomparable, normal, same
from distillkit.course.exercises import all_exercises, exercise
from distillkit.course.exercises.definition import Case, Exercise
from distillkit.course.exercises.drawing import Draw
from distillkit.course.judging import judge
from distillkit.course.observing import observe
from distillkit.course.showing import inline
from distillkit.course.surroundings import MOST_PRINTED

KL = exercise("2.2")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Progress in a folder of the test's own, and checks that do not raise."""
    monkeypatch.setenv(learner.HOME, str(tmp_path / "home"))
    monkeypatch.delenv(checking.SWITCH, raising=False)
    monkeypatch.setattr(learner, "_unkept", {})
    return tmp_path / "home"


def right(student, teacher, T):
    log_p, log_q = F.log_softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


# --- functions that misbehave ---------------------------------------------------------------------


def loops_for_ever(student, teacher, T):
    end = time.monotonic() + 4  # for ever, as far as the check can know
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            time.sleep(0.001)


def endless(student, teacher, T):
    while True:
        pass


def prints_for_ever(student, teacher, T):
    while True:
        print("again")


def sleeps(student, teacher, T):
    time.sleep(6)


def calls_itself(student, teacher, T):
    return calls_itself(student, teacher, T)


def changes(student, teacher, T):
    student.div_(T)
    teacher.div_(T)
    return right(student, teacher, 1.0)


def raises(student, teacher, T):
    scaled = student / T
    return scaled[99]


def leaves(student, teacher, T):
    sys.exit(3)


def prints(student, teacher, T):
    print("shape", tuple(student.shape))
    return right(student, teacher, T)


MISBEHAVE = {
    endless: "not done after 1.5 seconds, and was stopped",
    prints_for_ever: "again ⏎ again",
    calls_itself: "calls itself without an end",
    changes: "changes its argument `student_logits` in place",
    raises: "line 3 of your function raised IndexError: index 99 is out of bounds",
    leaves: "Your function ends the program (SystemExit)",
}


def not_implemented_further_down(student, teacher, T):
    def helper():
        raise NotImplementedError("for sparse tensors")

    return helper()


def computes_with_gradients(student, teacher, T):
    student.requires_grad_()
    return right(student, teacher, T)


def endless_with_gradients(student, teacher, T):
    while student.requires_grad:
        pass
    return right(student, teacher, T)


def raises_with_gradients(student, teacher, T):
    if student.requires_grad:
        raise OverflowError("too large")
    return right(student, teacher, T)


MISBEHAVE |= {
    not_implemented_further_down: "raised NotImplementedError: for sparse tensors",
    computes_with_gradients: "changes its argument `student_logits` in place",
}
RETURN = {
    "Is the `return` missing?": None,
    "returns a dict; expected a tensor of shape (2, 3)": {"loss": 1},
    "returns a str; expected a tensor": "0.5",
    "returns a Linear; expected a tensor": torch.nn.Linear(1, 1),
    "has shape (); expected (2, 3)": 0.5,
    "has shape (1, 6); expected (2, 3)": torch.zeros(1, 6),
    "returns a tuple; expected a tensor": (torch.zeros(2, 3), 1.0),
}


@pytest.mark.parametrize("function", MISBEHAVE, ids=lambda function: function.__name__)
def test_a_function_that_misbehaves_gets_its_own_answer(function):
    verdict = judge(KL, function)
    assert verdict.state == "not yet" and verdict.mistake is None
    assert MISBEHAVE[function] in str(verdict)


@pytest.mark.parametrize("sentence", RETURN)
def test_a_result_of_the_wrong_kind_is_named(sentence):
    verdict = judge(KL, lambda student, teacher, T: RETURN[sentence])
    assert verdict.state == "not yet" and sentence in str(verdict)


def test_nan_and_half_precision_are_named():
    broken = judge(KL, lambda s, t, T: right(s, t, T) * float("nan"))
    assert "NaN or infinite values where the target is finite" in str(broken)
    half = judge(KL, lambda s, t, T: right(s, t, T).half())
    assert "torch.float16, which keeps three digits" in str(half)


def test_complex_numbers_are_named():
    for value in (torch.zeros(2, 3) + 1j, np.zeros((2, 3), dtype=complex), [[1j] * 3] * 2, 1j):
        verdict = judge(KL, lambda s, t, T, value=value: value)
        assert verdict.state == "not yet" and "made of complex numbers" in str(verdict)


def test_a_loop_that_catches_everything_is_stopped_or_said_to_go_on():
    before = threading.active_count()
    verdict = judge(KL, loops_for_ever)
    assert "not done after 1.5 seconds" in str(verdict)
    assert "Restart the kernel" in str(verdict) and threading.active_count() <= before + 1


def test_what_cannot_be_stopped_is_said_and_the_notebook_goes_on():
    start = time.perf_counter()
    verdict = judge(KL, sleeps)
    assert time.perf_counter() - start < 5  # waiting counts by half, and a sleep is not broken off
    assert "cannot be stopped from here. Restart the kernel" in str(verdict)


@pytest.mark.skipif(sys.platform == "win32", reason="nobody else can interrupt us there")
def test_a_check_that_is_interrupted_leaves_no_loop_behind():
    judge(KL, right)  # so that the loop is met and no import
    before = set(threading.enumerate())
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        judge(KL, endless)
    end = time.perf_counter() + 5
    while left := set(threading.enumerate()) - before:
        assert time.perf_counter() < end, left
        time.sleep(0.01)
    assert judge(KL, right).state == "done"


def test_a_check_works_outside_the_main_thread():
    said = []
    thread = threading.Thread(target=lambda: said.append(judge(KL, endless)))
    thread.start()
    thread.join()
    assert "was stopped" in str(said[0])


def test_what_a_right_function_prints_is_held_back_and_told(capsys):
    verdict = judge(KL, prints)
    assert verdict.state == "done" and "printed this" in str(verdict)
    assert "shape (2, 3, 5)" in str(verdict) and capsys.readouterr().out == ""
    run = observe(prints_for_ever, [Case("x", (1, 2, 3))], seconds=0.1)
    assert len(run.printed) <= MOST_PRINTED and run.late


def test_errors_and_warnings_are_held_back_as_well(capsys):
    def complains(student, teacher, T):
        print("to the errors", file=sys.stderr)
        warnings.warn("have a care", stacklevel=1)
        return right(student, teacher, T)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda text, *_, **__: print(text, file=sys.stderr)
        verdict = judge(KL, complains)
    assert verdict.state == "done" and "to the errors ⏎ have a care" in str(verdict)
    assert capsys.readouterr() == ("", "")


def test_a_thread_that_was_left_behind_does_not_speak_in_the_next_check(capsys):
    ended = threading.Event()

    def goes_on():
        while not ended.is_set():
            print("from before")
            time.sleep(0.001)

    def leaves_a_thread(student, teacher, T):
        threading.Thread(target=goes_on, daemon=True).start()
        return right(student, teacher, T)

    def slowly(student, teacher, T):
        time.sleep(0.02)
        return right(student, teacher, T)

    try:
        assert judge(KL, leaves_a_thread).state == "done"
        assert "from before" not in str(judge(KL, slowly))
    finally:
        ended.set()
    assert "from before" in capsys.readouterr().out


def test_functions_of_torch_that_were_replaced_are_put_back_and_named():
    own = F.log_softmax, torch.Tensor.log_softmax

    def replaces(student, teacher, T):
        F.log_softmax = lambda x, dim: own[1](x, dim)
        torch.Tensor.log_softmax = lambda x, dim: own[0](x, dim)
        return right(student, teacher, T)

    verdict = judge(KL, replaces)
    assert (F.log_softmax, torch.Tensor.log_softmax) == own
    told = "replaced `torch.Tensor.log_softmax`, `torch.nn.functional.log_softmax`, for everybody"
    assert verdict.state == "done" and told in str(verdict)


def test_what_torch_wraps_when_its_compiler_loads_is_not_put_back():
    code = (
        "from distillkit.course.exercises import exercise\n"
        "from distillkit.course.judging import judge\n"
        "from other_styles_01_04 import train_with_kl_div\n"
        "print(judge(exercise('4.1'), train_with_kl_div))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert "Done" in found.stdout and "replaced" not in found.stdout


def test_bytes_may_be_written_too():
    def writes(student, teacher, T):
        sys.stdout.buffer.write(b"bytes\n")
        return right(student, teacher, T)

    assert "bytes" in str(judge(KL, writes))


def test_surroundings_are_as_before(tmp_path):
    folder = Path.cwd()

    def moves(student, teacher, T):
        os.chdir(tmp_path)
        torch.set_default_dtype(torch.float64)
        return right(student, teacher, T)

    assert judge(KL, moves).state == "done"
    assert Path.cwd() == folder and torch.get_default_dtype() is torch.float32


def test_what_else_a_function_switches_is_switched_back():
    def switches(student, teacher, T):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        warnings.simplefilter("error")
        sys.setrecursionlimit(200)
        torch.autograd.set_detect_anomaly(True)
        return right(student, teacher, T)

    def state():
        numbers = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
        limit = sys.getrecursionlimit(), torch.is_anomaly_enabled(), len(warnings.filters)
        return numbers, random.getstate(), limit

    before = state()
    assert judge(KL, switches).state == "done"
    assert state() == before


@contextlib.contextmanager
def elsewhere():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("switched", [torch.no_grad, torch.inference_mode, elsewhere])
def test_what_the_notebook_has_switched_changes_no_verdict(switched):
    solved = exercise("3.2")
    with switched():
        assert judge(KL, right).state == "done"
        assert judge(KL, lambda s, t, T: right(t, s, T)).mistake is not None
        found = [judge(solved, each.answer).mistake for each in solved.mutants]
    assert found == list(solved.mutants)


def test_a_property_that_takes_for_ever_is_stopped_in_time_and_told():
    start = time.process_time()
    verdict = judge(KL, endless_with_gradients)
    assert time.process_time() - start < 2
    assert verdict.state == "not yet" and verdict.mistake is None
    assert "gives the right numbers, but for" in str(verdict)


def test_what_a_property_made_the_function_raise_is_told_beside_its_sentence():
    verdict = judge(KL, raises_with_gradients)
    assert verdict.state == "not yet"
    assert "line 3 of your function raised OverflowError: too large" in str(verdict)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: x.flip(0).numpy()[::-1],
        lambda x: x.numpy().astype(">f8"),
        lambda x: x.numpy().astype(np.longdouble),
    ],
)
def test_arrays_and_lists_may_be_returned_where_gradients_do_not_matter(form):
    number = "2.6"  # the gradient by hand
    solved = exercise(number)
    answer = lambda s, t, T: form(forward_gradient(s, t, T))  # noqa: E731
    assert judge(solved, answer).state == "done"


def test_lists_of_tensors_may_be_returned_with_their_gradients():
    def row_by_row(student, teacher, T):
        pairs = zip(student, teacher, strict=True)
        return [[right(s, t, T) for s, t in zip(*pair, strict=True)] for pair in pairs]

    assert judge(KL, row_by_row).state == "done"
    detached = judge(KL, lambda *given: [row.detach() for row in right(*given)])
    assert "no gradient arrives" in str(detached)


def forward_gradient(student, teacher, T):
    return (F.softmax(student / T, -1) - F.softmax(teacher / T, -1)) * T


def test_an_import_is_not_broken_off_and_costs_no_time(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(2.0)\nready = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def imports(student, teacher, T):
        import slow_to_import

        assert slow_to_import.ready
        return right(student, teacher, T)

    assert judge(KL, imports).state == "done"
    assert sys.modules.pop("slow_to_import").ready


def test_asking_again_for_what_is_loaded_is_no_loading():
    def imports_for_ever(student, teacher, T):
        while True:
            importlib.import_module("json")

    start = time.process_time()
    assert "was stopped" in str(judge(KL, imports_for_ever))
    assert time.process_time() - start < 2


def test_loading_for_ever_has_its_end(tmp_path, monkeypatch):
    (tmp_path / "loaded_again.py").write_text("sum(range(1_000_000))\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stopping, "MOST_LOADING", 0.3)

    def loads_for_ever(student, teacher, T):
        while True:
            importlib.import_module("loaded_again")
            del sys.modules["loaded_again"]

    start = time.process_time()
    assert "was stopped" in str(judge(KL, loads_for_ever))
    assert time.process_time() - start < 2.5


def waits(seconds):
    """A right function that takes so long a call."""

    def waiting(student, teacher, T):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(0.005)
        return right(student, teacher, T)

    return waiting


def test_a_slow_function_that_is_right_is_done_and_told(capsys, home):
    check("2.2", waits(0.3))
    said = capsys.readouterr().out
    assert "Done" in said and "It is right, and slow: a call takes about 0." in said
    check("2.2", waits(0.01))
    said = capsys.readouterr().out
    assert "Done" in said and "slow" not in said


def test_a_slow_function_is_tried_on_one_other_case_at_least(capsys, home):
    cases = exercise("2.2").cases(Draw(0))
    shown = [case.arguments[0] for case in cases]

    def fitted(student, teacher, T):
        time.sleep(0.3)
        known = any(student.shape == each.shape and student.equal(each) for each in shown)
        return right(student, teacher, T) * (1 if known or student.requires_grad else 2)

    check("2.2", fitted)
    assert "Not yet" in capsys.readouterr().out


def test_a_function_that_is_too_slow_is_told(capsys, home):
    start = time.perf_counter()
    check("2.2", waits(0.8))
    assert "is it very slow?" in capsys.readouterr().out
    assert time.perf_counter() - start < 5


def test_waiting_counts_by_half_so_a_busy_machine_makes_no_function_slow():
    assert judge(KL, waits(0.36)).state == "done"  # five of these: 1.8 s by the clock, 0.9 s count


def test_very_long_results_are_compared_at_once():
    start = time.process_time()
    verdict = judge(KL, lambda s, t, T: [0.0] * 200_000)
    assert verdict.state == "not yet" and time.process_time() - start < 1


def leaves_with_gradients(student, teacher, T):
    if student.requires_grad:
        sys.exit()
    return right(student, teacher, T)


def sleeps_with_gradients(student, teacher, T):
    if student.requires_grad:
        time.sleep(6)
    return right(student, teacher, T)


def test_a_property_tells_who_leaves_and_who_cannot_be_stopped():
    assert "ends the program (SystemExit)" in str(judge(KL, leaves_with_gradients))
    assert "cannot be stopped from here" in str(judge(KL, sleeps_with_gradients))
    assert judge(KL, right).state == "done"  # the next check does not wait for the last one


def test_digits_suffice_to_see_a_difference():
    said = str(judge(KL, lambda s, t, T: right(s, t, T) * (1 + 2e-4)))
    yours, target = (
        re.findall(r"\d\.\d+✗?", part) for part in said.split("   yours ")[1].split("target")
    )
    assert len(yours) == len(target) > 1 and all(cell.endswith("✗") for cell in yours)
    assert not any(mine == f"{goal}✗" for mine, goal in zip(yours, target, strict=True))


def test_a_wrong_number_of_arguments_is_told():
    verdict = judge(KL, lambda student: student)
    assert "cannot be called with the arguments student_logits, teacher_logits, t" in str(verdict)


class Wrapped(torch.nn.Module):
    def forward(self, student, teacher, T):
        return right(student, teacher)


def test_a_wrong_call_inside_an_object_is_not_taken_for_wrong_arguments():
    verdict = str(judge(KL, Wrapped()))
    assert "raised TypeError: right() missing 1 required" in verdict
    assert "cannot be called with" not in verdict


def test_a_long_message_is_cut_and_none_leaves_no_colon():
    def complains(student, teacher, T):
        raise ValueError("x" * 100_000)

    def says_nothing(student, teacher, T):
        raise AssertionError

    assert len(str(judge(KL, complains))) < 1_000
    assert str(judge(KL, says_nothing)).endswith("line 2 of your function raised AssertionError.")


def test_a_check_inside_the_function_is_told_at_once():
    def holds_its_check(student, teacher, T):
        check("2.2", right)
        return right(student, teacher, T)

    start = time.perf_counter()
    assert "the line with check stands inside your function" in str(judge(KL, holds_its_check))
    assert time.perf_counter() - start < 1.5


@pytest.mark.parametrize("value", [range(10**12), torch.zeros(1).expand(2, 3, 10**12)])
def test_what_would_fill_the_memory_is_not_compared(value):
    assert "000,000,000 numbers; expected" in str(judge(KL, lambda s, t, T: value))


def test_largest_and_where_is_a_tuple():
    verdict = judge(KL, lambda s, t, T: right(s, t, T).max(-1))
    assert "returns a tuple; expected a tensor" in str(verdict)


def test_a_closed_output_is_no_mistake():
    def closes(student, teacher, T):
        sys.stdout.close()
        return right(student, teacher, T)

    assert judge(KL, closes).state == "done"


def test_a_check_without_an_answer_says_what_is_wanted(capsys):
    check("2.2")
    check("1.4")
    said = capsys.readouterr().out
    assert "Give check the function itself" in said and "one of 'a', 'b'" in said


def test_the_function_itself_is_asked_for():
    verdict = judge(KL, torch.zeros(2, 3))
    assert verdict.state == "not yet" and "without calling it" in str(verdict)


@pytest.mark.parametrize(
    "answer", ["both", ["both"], ["both", "one", "one"], 3, print, None, {"a": 1}, [["both"]]]
)
def test_an_answer_of_the_wrong_form_is_told_what_is_asked(answer):
    verdict = judge(exercise("2.5"), answer)
    assert verdict.state == "not yet" and "'one', 'between', 'both' once" in str(verdict)


@pytest.mark.parametrize("form", [list, tuple])
def test_an_order_of_sizes_may_be_given_in_numbers(form):
    right = ["300", "1,000", "100", "3,000"]
    assert judge(exercise("4.4"), right).state == "done"
    assert judge(exercise("4.4"), form([300, 1000, 100, 3000])).state == "done"
    assert judge(exercise("4.4"), form(["300", "1000", "100", "3000"])).state == "done"
    swapped = judge(exercise("4.4"), form([100, 300, 1000, 3000]))
    assert swapped.mistake and swapped.mistake.name == "the fewer the better"
    assert "form" in str(judge(exercise("4.4"), form([300, 1000, 100, 30])))


@pytest.mark.parametrize(
    ("number", "answer", "told"),
    [
        ("4.4", [1000, 100, 300, 3000], "This is not the order"),
        ("3.4", 0.3, "Your 0.3 is not near enough"),
        ("0.1", [1, 2, 3], "Not all of these numbers are near enough"),
    ],
)
def test_an_unknown_prediction_is_sent_to_a_hint(number, answer, told):
    verdict = judge(exercise(number), answer)
    assert verdict.state == "not yet" and verdict.mistake is None
    assert told in str(verdict) and f'hint("{number}")' in str(verdict)
    assert "chapter" not in str(verdict)


def test_cases_and_properties_are_counted_in_words_that_fit():
    def said(number, function):
        return str(judge(exercise(number), function)).splitlines()[1]

    def served(wanted, booked, untrue):
        return ((wanted == booked).all(1) & (untrue == 0)).double().mean()

    def excess(logits, p, labels):
        token = (torch.xlogy(p, p) - p * logits.log_softmax(-1)).sum(-1)
        return token[labels != -100].mean()

    assert said("0.3", served) == "4 cases come out right."
    assert "3 cases come out right, and one property holds: what must" in said("3.5", excess)
    assert "5 cases come out right, and 3 properties hold: what must" in said("2.2", right)


@pytest.mark.parametrize("cut", [lambda x: x.detach(), lambda x: torch.tensor(x.tolist())])
def test_a_detached_student_is_told_that_no_gradient_arrives(cut):
    verdict = str(judge(KL, lambda student, teacher, T: right(cut(student), teacher, T)))
    assert "no gradient arrives" in verdict and "finite" not in verdict


def test_counts_that_differ_in_the_last_digits_are_shown_in_full():
    def more(*shape):
        return exercise("1.1").oracle(*shape) + 1000

    lines = str(judge(exercise("1.1"), more)).splitlines()
    assert "134516008✗" in lines[-2] and "134515008" in lines[-1]


def stub(student, teacher, T):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [..., stub, lambda student, teacher, T: ...])
def test_not_started(answer):
    verdict = judge(KL, answer)
    assert verdict.state == "not started" and 'hint("2.2")' in str(verdict)


# --- comparing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        [[1.0, 2.0], [3.0, 4.0]],
        np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32),
        torch.tensor([[1, 2], [3, 4]]),
        [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])],
        [range(1, 3), range(3, 5)],
    ],
)
def test_the_same_numbers_are_the_same_in_any_form(value):
    assert same(normal(value), torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(), 1e-4)


def test_what_differs():
    assert normal(" Both ") == "both"
    assert not same(normal(1.0), normal([1.0]), 1e-4)
    assert not same(normal([1.0, 2.0]), normal([1.0, 2.001]), 1e-4)
    assert same(normal([1.0, float("inf")]), normal([1.00001, float("inf")]), 1e-4)
    assert not same(normal("a"), normal(1.0), 1e-4)
    assert same(normal(["a", "b"]), normal(("A", "b")), 1e-4)
    for value in (None, {}, object(), torch.tensor(1j)):
        with pytest.raises(Incomparable):
            normal(value)


# --- check, hint, solution ------------------------------------------------------------------------


def kept(home):
    return json.loads((home / "progress.json").read_text())


def test_a_check_prints_and_is_kept(capsys, home):
    check("2.2", stub)
    check("2.2", lambda s, t, T: right(t, s, T))
    assert kept(home)["exercises"]["2.2"] == {
        "state": "not yet",
        "checks": 1,
        "hints": 0,
        "solution_asked": 0,
    }
    check("2.2", right)
    check("2.2", stub)
    assert kept(home)["exercises"]["2.2"]["state"] == "done"
    said = capsys.readouterr().out
    assert said.index("Not started") < said.index("You computed KL(q‖p)") < said.index("Done")
    assert "yours" in said and "target" in said and "✗" in said


def test_under_tests_a_check_that_fails_raises(monkeypatch, capsys):
    monkeypatch.setenv(checking.SWITCH, "raise")
    check("2.2", right)
    with pytest.raises(checking.NotDone, match="Not started"):
        check("2.2", stub)


def test_an_unknown_number_is_told_and_nothing_raised(capsys):
    for function in (lambda n: check(n, 1), hint, solution, reset):
        function("9.9")
        assert "no exercise '9.9': there are" in capsys.readouterr().out


def test_hints_come_one_at_a_time_and_the_solution_last(capsys):
    count = len(KL.hints)
    for number in range(1, count + 1):
        hint("2.2")
        assert f"Hint {number} of {count}: {KL.hints[number - 1]}" in capsys.readouterr().out
    hint("2.2")
    assert "That was the last hint" in capsys.readouterr().out
    solution("2.2")
    said = capsys.readouterr().out
    assert "def token_kl" in said and "SOLUTION" not in said


def test_a_solution_is_shown_at_once_only_when_hints_are_read(capsys):
    hint("2.3")
    capsys.readouterr()
    solution("2.3")
    said = capsys.readouterr().out
    assert "2 hints are unread" in said and "def " not in said
    solution("2.3")
    assert "def kd_loss" in capsys.readouterr().out


def test_a_verdict_in_html_is_escaped_and_has_a_picture():
    verdict = judge(KL, lambda s, t, T: right(s, t, T) + 1)
    html = verdict._repr_html_()
    assert html.count("<table>") == 3 and "✗" in html and "<script" not in html
    broken = judge(KL, lambda s, t, T: {}["<script>"])
    assert "&lt;script&gt;" in broken._repr_html_() and "<script" not in broken._repr_html_()


def test_a_large_tensor_is_cut():
    wide = Exercise(
        *("9.1", "Wide", "write", 1, 1, ("a", "b")),
        oracle=lambda x: [[0.0] * 20 for _ in range(30)],
        mutants=(),
        cases=lambda draw: [Case("x", (torch.zeros(30, 20),))],
    )
    said = str(judge(wide, lambda x: x + 1))
    assert "the first 6 × 7 of (30, 20)" in said and len(said.splitlines()) < 20


def test_what_is_shown_of_a_large_tensor_has_a_difference_in_it():
    wide = Exercise(
        *("9.1", "Wide", "write", 1, 1, ("a", "b")),
        oracle=lambda x: [[0.0] * 20 for _ in range(30)],
        mutants=(),
        cases=lambda draw: [Case("x", (torch.zeros(30, 20),))],
    )
    for row, column, place in ((12, 10, "rows 9 to 14, columns 7 to 13"), (29, 19, "24 to 29")):
        change = torch.zeros(30, 20)
        change[row, column] = 1
        verdict = judge(wide, lambda x, change=change: x + change)
        assert str(verdict).count("1✗") == 1 and place in str(verdict)
        assert "1✗" in verdict._repr_html_()
    flat = Exercise(
        *("9.2", "Flat", "write", 1, 1, ("a", "b")),
        oracle=lambda x: list(range(12)),
        mutants=(),
        cases=lambda draw: [Case("x", (torch.zeros(12),))],
    )
    assert "0✗" in str(judge(flat, lambda x: [*range(11), 0]))
    said = judge(flat, lambda x: [*range(1, 11), 14]).sentences[0]
    assert said.endswith("expected (12,). Missing: 0, 11. Too many: 14.")
    assert (
        judge(flat, lambda x: [("a", 1)])
        .sentences[0]
        .endswith("expected a list of 12 numbers, or a tensor of shape (12,).")
    )


PARTS = Exercise(
    *("9.3", "Parts", "write", 1, 1, ("a", "b")),
    oracle=lambda x: (x, [[2 * v for v in row] for row in x], "end"),
    mutants=(),
    cases=lambda draw: [Case("x", (torch.ones(2, 3),))],
)


def test_of_a_result_in_parts_the_first_that_differs_is_named_and_shown():
    assert judge(PARTS, lambda x: (x, 2 * x, "end")).state == "done"
    verdict = judge(PARTS, lambda x: (x, 3 * x, "end"))
    assert "Compare yours with the target below" in verdict.sentences[0]
    assert "With x, in part 2 of 3:" in str(verdict) and str(verdict).count("3✗") == 6
    assert "in part 2 of 3" in verdict._repr_html_()
    [told] = judge(PARTS, lambda x: (x, x.T, "end")).sentences
    assert told == "With x, in part 2 of 3, your result has shape (3, 2); expected (2, 3)."
    [told] = judge(PARTS, lambda x: (x * torch.nan, x.T, "end")).sentences
    assert "in part 1 of 3" in told and "NaN" in told


def test_a_part_that_is_no_tensor_has_no_picture():
    verdict = judge(PARTS, lambda x: (x, 2 * x, "stop"))
    assert verdict.beside is None and "Try a small case by hand" in verdict.sentences[0]
    verdict = judge(PARTS, lambda x: (x, "stop", "end"))
    assert verdict.beside is None and verdict.state == "not yet"
    assert "has 2 parts; expected 3" in str(judge(PARTS, lambda x: (x, 2 * x)))


def test_a_mistake_of_readers_gets_no_line_about_where_it_was_seen():
    wrong = {mutant.name: mutant for mutant in exercise("7.4").mutants}
    assert "good company" not in str(judge(exercise("7.4"), wrong["one reply a prompt"].answer))
    assert "good company: deepeval" in str(judge(exercise("7.4"), wrong["doubles kept"].answer))


# --- progress -------------------------------------------------------------------------------------


def test_progress_is_drawn(capsys):
    check("2.2", right)
    hint("2.3")
    quiz("04", "bcabb")
    capsys.readouterr()
    progress()
    said = capsys.readouterr().out
    assert f"1 of {len(all_exercises())} exercises done" in said
    assert f"●   2.2  {KL.title}" in said and "1 hint" in said and "04: quiz 4/5" in said
    reset("2.2")
    reset()
    capsys.readouterr()
    progress()
    assert "0 of" in capsys.readouterr().out


def test_threads_and_processes_lose_no_count(home):
    code = (
        "from distillkit.course import learner\n"
        "def more(progress): progress.of('2.2').checks += 1\n"
        "for _ in range(60): learner.update(more)"
    )
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]

    def more(progress):
        progress.of("2.2").checks += 1

    def job():
        for _ in range(60):
            learner.update(more)

    threads = [threading.Thread(target=job) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    assert kept(home)["exercises"]["2.2"]["checks"] == 240
    assert not list(home.glob("*.part"))


def test_progress_on_the_command_line(home):
    command = [sys.executable, "-m", "distillkit.cli", "progress"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "exercises done" in done.stdout and str(home) in done.stdout


DAMAGED = [
    "",
    "not json",
    "[]",
    "{}",
    '{"format": "another program"}',
    '{"format": "distillkit progress 1", "exercises": {"2.2": {"mood": 1}}, "quizzes": {}}',
    '{"format": "distillkit progress 1", "exercises": {"2.2": 3}, "quizzes": {}}',
    '{"format": "distillkit progress 1", "exercises": {"2.2": {"checks": "x"}}, "quizzes": {}}',
    '{"format": "distillkit progress 1", "exercises": {"2.2": {"hints": -7}}, "quizzes": {}}',
    '{"format": "distillkit progress 1", "exercises": {}, "quizzes": {"04": "x"}}',
    '{"format": "distillkit progress 1", "exercises": {}, "quizzes": {"04": 99}}',
    '{"format": "distillkit progress 1", "exercises": {}, "quizzes": {"04": 3.5}}',
    "[" * 100_000,
    "\x00\x01",
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_or_foreign_file_is_set_aside(content, home, capsys):
    home.mkdir()
    (home / "progress.json").write_text(content)
    hint("2.2")
    said = capsys.readouterr().out
    assert "could not be read" in said and "Hint 1" in said
    assert (home / "progress.damaged-1.json").read_text() == content
    assert kept(home)["exercises"]["2.2"]["hints"] == 1


def test_a_number_is_as_good_as_its_text(home):
    hint(2.2)
    reset(2.2)
    assert "2.2" not in kept(home)["exercises"]


def test_two_damaged_files_are_both_kept(home, capsys):
    home.mkdir()
    for content in ("one", "two"):
        (home / "progress.json").write_text(content)
        hint("2.2")
    assert {path.read_text() for path in home.glob("progress.damaged-*")} == {"one", "two"}


def test_bytes_that_are_no_text_are_set_aside(home, capsys):
    home.mkdir()
    (home / "progress.json").write_bytes(b"\xff\xfe\xfa")
    hint("2.2")
    assert (home / "progress.damaged-1.json").read_bytes() == b"\xff\xfe\xfa"


@pytest.mark.parametrize("why", ["a file in its place", "no right to write"])
def test_where_nothing_can_be_written_the_session_remembers(why, home, capsys, monkeypatch):
    if why == "a file in its place":
        home.write_text("no folder")
    else:
        home.mkdir()

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(learner.os, "replace", refuse)
    hint("2.2")
    assert "cannot be kept in" in capsys.readouterr().out
    hint("2.2")
    said = capsys.readouterr().out
    assert "cannot be kept in" not in said and "Hint 2" in said


def fails_once(call, times=1):
    """A function that is refused the first times, and works afterwards."""
    left = [PermissionError(13, "Permission denied")] * times

    def sometimes(*given, **more):
        if left:
            raise left.pop()
        return call(*given, **more)

    return sometimes


def test_after_one_failed_read_progress_is_written_again(home, capsys, monkeypatch):
    check("2.2", right)
    hint("2.3")
    monkeypatch.setattr(learner.Path, "read_text", fails_once(Path.read_text, times=3))
    hint("2.2")  # an update reads twice: to change the file, and to change what it can
    progress()
    said = capsys.readouterr().out
    assert said.count("cannot be kept in") == 1 and "1 hint" in said
    hint("2.3")
    assert "Hint 2" in capsys.readouterr().out
    records = kept(home)["exercises"]
    assert records["2.2"]["state"] == "done" and records["2.2"]["hints"] == 1
    assert records["2.3"]["hints"] == 2 and learner._unkept == {}


def test_what_could_not_be_written_is_written_later(home, capsys, monkeypatch):
    monkeypatch.setattr(learner.os, "replace", fails_once(os.replace, times=2))
    for number in range(1, 4):
        hint("2.2")
        assert f"Hint {number}" in capsys.readouterr().out
    assert kept(home)["exercises"]["2.2"]["hints"] == 3


def test_the_folder_of_a_user_who_does_not_exist_is_not_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(learner.HOME, "~nosuchuser/course")
    hint("2.2")
    hint("2.2")
    said = capsys.readouterr().out
    assert said.count("there is no user of the name ~nosuchuser") == 1 and "Hint 2" in said
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_is_remembered_for_the_session(capsys, monkeypatch):
    monkeypatch.delenv(learner.HOME)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    hint("2.2")
    hint("2.2")
    said = capsys.readouterr().out
    assert "no folder of your own" in said and "Hint 2" in said and not Path("~").exists()


def test_a_file_that_an_editor_has_marked_is_read(home):
    hint("2.2")
    file = home / "progress.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert learner.read().exercises["2.2"].hints == 1


def test_a_file_appears_whole(home, monkeypatch):
    hint("2.2")
    before = (home / "progress.json").read_text()

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(learner.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        hint("2.2")
    assert (home / "progress.json").read_text() == before


@pytest.mark.parametrize(
    ("platform", "variables", "place"),
    [
        ("linux", {"XDG_DATA_HOME": "/x"}, "/x/distillkit/progress.json"),
        ("linux", {"XDG_DATA_HOME": ""}, ".local/share/distillkit/progress.json"),
        ("darwin", {}, "Library/Application Support/distillkit/progress.json"),
        ("win32", {"LOCALAPPDATA": "/y"}, "/y/distillkit/progress.json"),
        ("win32", {"LOCALAPPDATA": ""}, "AppData/Local/distillkit/progress.json"),
    ],
)
def test_the_platforms_own_folder(platform, variables, place, monkeypatch):
    monkeypatch.delenv(learner.HOME)
    monkeypatch.setattr(learner.sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert learner.path().as_posix().endswith(place)


# --- quizzes --------------------------------------------------------------------------------------

QUIZZES = quiz_room.quizzes()


@pytest.mark.parametrize("chapter", QUIZZES)
def test_a_quiz_has_five_questions_and_one_right_choice_each(chapter):
    questions = QUIZZES[chapter]
    assert len(questions) == learner.QUESTIONS == 5
    for each in questions:
        assert sum(choice.right for choice in each.choices) == 1, each.ask
        assert len(each.choices) >= 3 and all(c.text and c.why for c in each.choices)
        text = " ".join([each.ask, *(c.text + c.why for c in each.choices)])
        assert "$" not in text and "<" not in text  # formulas in Unicode: every viewer shows them
    assert len({each.letter for each in questions}) > 1


def test_a_quiz_is_shown_folded(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(quiz_room, "show", shown.append)
    quiz("04")
    html = shown[0]._repr_html_()
    assert (
        html.count("<details>")
        == html.count("</details>")
        == sum(len(each.choices) for each in QUIZZES["04"])
    )
    assert "<code>alpha=0</code>" in html and "Right" not in str(shown[0])


def test_a_quiz_is_marked(capsys, home):
    letters = "".join(each.letter for each in QUIZZES["04"])
    quiz(4, letters)
    assert "5 of 5 right" in capsys.readouterr().out
    quiz("04", "a" * 5)
    said = capsys.readouterr().out
    right = letters.count("a")
    assert f"{right} of 5 right" in said and said.count("✗") == 5 - right
    assert kept(home)["quizzes"] == {"04": 5}


@pytest.mark.parametrize("answers", ["abc", "abcde", "aaaaaa", "?????"])
def test_answers_that_do_not_fit_are_asked_for_again(answers, capsys, home):
    quiz("04", answers)
    assert "Give 5 letters" in capsys.readouterr().out
    assert not (home / "progress.json").exists()


def test_an_unknown_quiz_is_told(capsys):
    quiz("99")
    assert "no quiz '99': there are 00" in capsys.readouterr().out


def test_the_course_is_imported_without_torch():
    code = "import sys, distillkit.course; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_marks_become_html_and_arithmetic_stays():
    told = "In `a*b*c` the *target* is **not** 2*3*4 <x>"
    html = "In <code>a*b*c</code> the <i>target</i> is <b>not</b> 2*3*4 &lt;x&gt;"
    assert inline(told) == html


@pytest.mark.parametrize(
    ("number", "answer"),
    [("0.1", 10**400), ("2.2", lambda *_: 10**400), ("2.2", lambda s, *_: s.to("meta"))],
)
def test_what_cannot_be_compared_is_told(number, answer, capsys, home):
    check(number, answer)
    assert "Not yet" in capsys.readouterr().out


@pytest.mark.parametrize("answers", [None, ["a", "b"], 3])
def test_answers_that_are_no_text_are_asked_for_again(answers, capsys, home):
    quiz("04", answers)
    assert "Give 5 letters" in capsys.readouterr().out
