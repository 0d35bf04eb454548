"""Answers that get the numbers right in another way than by solving the exercise."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from distillkit import losses
from distillkit.course import check, checking, learner, watching
from distillkit.course.bench import target
from distillkit.course.exercises import all_exercises, losses_by_hand
from distillkit.course.exercises.definition import Case
from distillkit.course.exercises.drawing import Draw
from distillkit.course.judging import examine, judge
from distillkit.course.observing import observe
from distillkit.evaluation import calibration_of
from distillkit.losses import distillation_loss, forward_kl, label_loss, masked_mean
from distillkit.pruning import NofM, Unstructured, wanda_mask

EXERCISES = {each.number: each for each in all_exercises()}
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
    verdict = judge(EXERCISES["2.2"], forward_kl)
    assert verdict.state == "used the library" and "`forward_kl`" in str(verdict)
    hidden = judge(EXERCISES["2.2"], lambda a, b, t: forward_kl(a, b, t) * 1.0)
    assert hidden.state == "used the library"
    whole = judge(
        EXERCISES["2.3"],
        lambda s, t, y, a, T: distillation_loss(s, t, y, alpha=a, temperature=T),
    )
    assert whole.state == "used the library"


def right(student, teacher, T):
    log_p, log_q = F.log_softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def in_a_private_piece(student, teacher, T):
    log_p, log_q = F.log_softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    return losses._expectation(log_p.exp(), log_p - log_q)


def through_a_method(student, teacher, T):
    log_p, log_q = F.log_softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    return losses.ForwardKL()._value(log_p, log_q)


def in_properties_alone(student, teacher, T):
    return (forward_kl if student.requires_grad else right)(student, teacher, T)


def without_a_profiler(student, teacher, T):
    before = sys.getprofile()
    sys.setprofile(None)
    try:
        return forward_kl(student, teacher, T)
    finally:
        sys.setprofile(before)


def through_torch(student, teacher, T):
    return torch.vmap(lambda s, t: forward_kl(s, t, T))(student, teacher)


class BackwardOfTheLibrary(torch.autograd.Function):
    @staticmethod
    def forward(context, student, teacher, T):
        context.save_for_backward(student, teacher)
        context.T = T
        return right(student, teacher, T)

    @staticmethod
    def backward(context, slope):
        student, teacher = context.saved_tensors
        return slope.unsqueeze(-1) * forward_kl.gradient(student, teacher, context.T), None, None


LIBRARY = {
    in_a_private_piece: "`_expectation`",
    through_a_method: "`forward_kl`",
    in_properties_alone: "`forward_kl`",
    without_a_profiler: "`forward_kl`",
    through_torch: "`forward_kl`",
    BackwardOfTheLibrary.apply: "`forward_kl`",
}


@pytest.mark.parametrize("answer", LIBRARY, ids=lambda answer: answer.__qualname__)
def test_the_library_is_noticed_wherever_it_is_called(answer):
    verdict = judge(EXERCISES["2.2"], answer)
    assert verdict.state == "used the library" and LIBRARY[answer] in str(verdict)


def test_the_library_is_noticed_in_threads_that_began_before_the_check():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(right, torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), 1.0).result()
        answer = lambda s, t, T: pool.submit(forward_kl, s, t, T).result()  # noqa: E731
        assert judge(EXERCISES["2.2"], answer).state == "used the library"


def test_private_pieces_of_what_an_exercise_names_are_noticed():
    for number in FUNCTIONS:
        found = {each.__qualname__ for each in watching.pieces(EXERCISES[number])}
        assert {"_expectation", "ForwardKL._gradient", "log_softmax", "loss_with"} <= found
        assert EXERCISES[number].oracle.__qualname__ in found
    others = {each.__qualname__ for each in watching.pieces(EXERCISES["4.3"])}
    assert "paired_difference_interval" in others


def test_what_properties_and_oracles_call_is_not_the_learners_doing():
    for number in FUNCTIONS:
        each = EXERCISES[number]
        parts = [piece for piece in watching.pieces(each) if piece is not each.oracle]
        case = Case("x", tuple(plain(each.cases(Draw(0))[0].arguments)))
        run = observe(each.oracle, [case], seconds=5, watched=parts)
        assert run.outcomes[0].error is None and run.used == "", number


def test_watched_functions_are_themselves_again_afterwards():
    before = {each: (each.__code__, each.__kwdefaults__) for each in _watched()}
    judge(EXERCISES["2.2"], forward_kl)
    judge(EXERCISES["2.2"], lambda s, t, T: sys.exit())
    assert {each: (each.__code__, each.__kwdefaults__) for each in _watched()} == before
    assert forward_kl(torch.zeros(2), torch.zeros(2)) == 0.0


def _watched():
    return watching.pieces(EXERCISES["2.2"])


def test_the_library_is_noticed_in_a_thread_in_pieces_and_under_the_exercises():
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

    def weighed(weight, inputs, mask, sparsity):
        norms = (inputs * mask[..., None]).square().sum((0, 1)).sqrt()
        return wanda_mask(weight, norms, Unstructured(sparsity))

    def grouped(weight, n, m):
        return NofM(n, m).keep(weight.abs())

    for number, answer in (("3.3", counted), ("8.1", weighed), ("8.2", grouped)):
        assert judge(EXERCISES[number], answer).state == "used the library", number
    for number, answer in (("2.2", elsewhere), ("2.2", losses_by_hand.kl), ("2.3", pieces)):
        verdict = judge(EXERCISES[number], answer)
        assert verdict.state == "used the library", number


# --- tables of what is known ----------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Progress in a folder of the test's own, and checks that do not raise."""
    monkeypatch.setenv(learner.HOME, str(tmp_path / "home"))
    monkeypatch.delenv(checking.SWITCH, raising=False)
    monkeypatch.setattr(learner, "_unkept", {})


def plain(arguments):
    return [each.tolist() if isinstance(each, torch.Tensor) else each for each in arguments]


def table_of(number, seeds):
    """A function that knows the right results of the cases of some seeds, and else gives 0."""
    each = EXERCISES[number]
    cases = [case for seed in seeds for case in each.cases(Draw(seed))]
    known = [(plain(case.arguments), each.oracle(*plain(case.arguments))) for case in cases]

    def looked_up(*given):
        return next((right for arguments, right in known if arguments == plain(given)), 0)

    return looked_up


@pytest.mark.parametrize("number", ["0.2", "1.2", "2.2", "4.5"])
def test_a_table_of_the_first_seeds_is_no_solution(number, capsys, home):
    answer = table_of(number, range(13))
    if not EXERCISES[number].properties:
        assert judge(EXERCISES[number], answer).state == "done"
    check(number, answer)
    assert "Not yet" in capsys.readouterr().out


def test_each_check_draws_other_cases_and_says_how_to_see_them_again(monkeypatch, capsys, home):
    drawn = []
    monkeypatch.setattr(Draw, "__init__", noting(Draw.__init__, drawn))
    answer = table_of("0.2", [0])
    for _ in range(2):
        check("0.2", answer)
    seeds = [int(line.split("seed=")[1].split("`")[0]) for line in told(capsys)]
    assert len(set(seeds)) == 2 and set(seeds) <= set(drawn) and min(seeds) > 0
    check("0.2", answer, seed=seeds[0])
    assert told(capsys) and drawn[-1] == seeds[0]


def noting(init, drawn):
    def noted(self, seed=0, *more):
        drawn.append(seed)
        init(self, seed, *more)

    return noted


def told(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if "drawn anew" in line]


def test_a_seed_gives_the_same_verdict_again():
    answer = table_of("0.3", [0])
    one, other = (str(examine(EXERCISES["0.3"], answer, 77)) for _ in range(2))
    assert one == other and "seed=77" in one
    assert str(examine(EXERCISES["0.3"], answer, 78)) != one


def test_threads_may_check_at_once():
    states = []
    threads = [
        threading.Thread(target=lambda: states.append(judge(EXERCISES["2.2"], right).state))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == ["done"] * 4 and forward_kl(torch.zeros(2), torch.zeros(2)) == 0.0


# --- near misses ----------------------------------------------------------------------------------


def keeps_by(gate_of):
    """8.4 with another function on the gate."""

    def cut(gate, up, down, inputs, keep):
        hidden = gate_of(inputs @ gate.T) * (inputs @ up.T)
        kept = (hidden.norm(dim=0) * down.norm(dim=0)).topk(keep).indices.sort().values
        return gate[kept], up[kept], down[:, kept]

    return cut


def rounds_with_torch(weight, scale, bits):
    last = 2 ** (bits - 1) - 1
    return torch.fake_quantize_per_tensor_affine(weight.float(), scale, 0, -last, last)


def cuts_but_for_a_crumb(weight, hessian, column, cut):
    inverse = torch.linalg.inv(hessian[column:, column:])
    result = weight.clone()
    result[:, column:] -= torch.outer(weight[:, column] / inverse[0, 0] * cut, inverse[0])
    result[cut, column] = 1e-7
    return result


NEAR = {
    "Mish": ("8.4", keeps_by(F.mish)),
    "GELU by tanh": ("8.4", keeps_by(lambda x: F.gelu(x, approximate="tanh"))),
    "ReLU": ("8.4", keeps_by(F.relu)),
    "torch's fake quantization": ("9.6", rounds_with_torch),
    "a crumb": ("8.3", cuts_but_for_a_crumb),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", NEAR)
def test_what_is_nearly_right_is_refused_whatever_the_seed(name, seed):
    number, answer = NEAR[name]
    assert judge(EXERCISES[number], answer, seed=seed).state == "not yet"


def test_two_decimals_are_near_enough_and_another_scale_is_not():
    for number, right in (
        ("8.6", [4, 10, 2.12, 2]),
        ("8.6", [4, 10, 2.13, 2]),
        ("9.8", [8.03, 4.12, 4.5, 5, 10.25]),
        ("9.8", [8.03, 4.13, 4.5, 5, 10.25]),
    ):
        assert judge(EXERCISES[number], right).state == "done"
    for first in (8, 8.02, 8.015625):
        assert judge(EXERCISES["9.8"], [first, 4.125, 4.5, 5, 10.25]).mistake


def test_the_silu_of_the_near_misses_is_right():
    assert judge(EXERCISES["8.4"], keeps_by(F.silu)).state == "done"
