"""Every loss against loops in float64, its gradient against autograd, and what must always hold."""

import doctest
import math
from dataclasses import FrozenInstanceError, dataclass

import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from distillkit import losses
from distillkit.cross_tokenizer import universal_logit_distance
from distillkit.errors import UserError
from distillkit.losses import (
    JensenShannon,
    SkewKL,
    distillation_loss,
    forward_kl,
    label_loss,
    logits_mse,
    masked_mean,
    reverse_kl,
    total_variation,
)
from distillkit.sparse_losses import TopKKL

torch.set_num_threads(1)

ORACLES = {
    forward_kl: oracles.forward_kl,
    reverse_kl: oracles.reverse_kl,
    JensenShannon(0.0): oracles.jensen_shannon(0.0),
    JensenShannon(0.1): oracles.jensen_shannon(0.1),
    JensenShannon(0.5): oracles.jensen_shannon(0.5),
    JensenShannon(1.0): oracles.jensen_shannon(1.0),
    SkewKL(0.0): oracles.forward_kl,
    SkewKL(0.1): oracles.skew_kl(0.1),
    total_variation: oracles.total_variation,
    logits_mse: oracles.logits_mse,
    TopKKL(1): oracles.top_k_kl(1),
    TopKKL(3): oracles.top_k_kl(3),
    universal_logit_distance: oracles.universal_logit_distance,
}
ALWAYS_FINITE = [
    JensenShannon(0.1),
    JensenShannon(0.5),
    SkewKL(0.1),
    total_variation,
    universal_logit_distance,
]
every_divergence = pytest.mark.parametrize("divergence", ORACLES, ids=lambda d: d.name)
EXACT = {"rtol": 1e-6, "atol": 1e-10}


@dataclass
class Batch:
    """Logits (B, S, V) in float64, labels (B, S) with ragged holes, and a temperature."""

    student: torch.Tensor
    teacher: torch.Tensor
    labels: torch.Tensor
    temperature: float

    @property
    def lists(self):
        return self.student.tolist(), self.teacher.tolist(), self.labels.tolist()


@st.composite
def batches(draw, forbidden=("nobody", "teacher", "student", "both"), ignore_index=-100):
    """B, S and V all differ; logits from equal to ±1000; whole tokens forbidden by -inf."""
    sizes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 7))
    B, S, V = draw(sizes.filter(lambda size: len(set(size)) == 3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    student, teacher = torch.randn(2, B, S, V, generator=random, dtype=torch.float64)
    kind = draw(st.sampled_from(["plain", "large", "huge", "close"]))
    if kind == "large":
        student, teacher = 20 * student, 20 * teacher
    elif kind == "huge":
        # not equal to the last digit: which of two equal tokens is among the best is anyone's guess
        student, teacher = 1000 * student.sign() + student, 1000 * teacher.sign() + teacher
    elif kind == "close":
        student = teacher + 1e-3 * student
    forbid = torch.rand(B, S, V, generator=random) < 0.4
    forbid.scatter_(-1, torch.randint(V, (B, S, 1), generator=random), False)
    who = draw(st.sampled_from(forbidden))
    if who in ("teacher", "both"):
        teacher = teacher.masked_fill(forbid, -math.inf)
    if who in ("student", "both"):
        student = student.masked_fill(forbid, -math.inf)
    labels = student.argmax(-1)  # a token that can occur
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    labels[torch.rand(B, S, generator=random) >= share] = ignore_index
    return Batch(student, teacher, labels, draw(st.floats(0.25, 8.0)))


def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def some_logits(*shape, seed=0, dtype=torch.float64, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, *shape, generator=random, dtype=torch.float64)).to(dtype)


def autograd(function, logits):
    leaf = logits.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return gradient


# ---- values against the loops


@every_divergence
@examples(40)
@given(batch=batches())
def test_each_token_equals_the_loop(divergence, batch):
    got = divergence(batch.student, batch.teacher, batch.temperature)
    student, teacher, _ = batch.lists
    wanted = oracles.per_token(ORACLES[divergence], student, teacher, batch.temperature)
    assert got.dtype == torch.float64
    assert_close(got, torch.tensor(wanted, dtype=torch.float64), **EXACT)


@every_divergence
@examples(30)
@given(
    batch=batches(forbidden=("nobody", "both")),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    num_items=st.sampled_from([None, 7, 100]),
)
def test_the_whole_loss_equals_the_loop(divergence, batch, alpha, num_items):
    got = distillation_loss(
        batch.student,
        batch.teacher,
        batch.labels,
        alpha=alpha,
        temperature=batch.temperature,
        divergence=divergence,
        num_items=num_items,
    )
    power = divergence.temperature_power
    options = (alpha, batch.temperature, ORACLES[divergence], power, -100, num_items)
    wanted = oracles.distillation_loss(*batch.lists, *options)
    assert_close(got.item(), wanted, **EXACT)


@examples(60)
@given(
    batch=batches(forbidden=("nobody", "student")),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    num_items=st.sampled_from([None, 3]),
)
def test_the_label_loss_equals_the_loop(batch, label_smoothing, num_items):
    student, _, labels = batch.lists
    wanted = oracles.label_loss(student, labels, label_smoothing, -100, num_items)
    got = label_loss(
        batch.student, batch.labels, label_smoothing=label_smoothing, num_items=num_items
    )
    assert_close(got.item(), wanted, **EXACT)


@examples(40)
@given(batch=batches(forbidden=("nobody",)))
def test_masked_mean_equals_the_loop(batch):
    values, mask = batch.student[..., 0], batch.labels != -100
    wanted = oracles.masked_mean(values.tolist(), mask.tolist())
    assert_close(masked_mean(values, mask).item(), wanted, **EXACT)
    assert_close(masked_mean(values, mask.long()).item(), wanted, **EXACT)


@pytest.mark.parametrize("ignore_index", [-1, 0, 3])
def test_another_ignore_index_is_used(ignore_index):
    student, teacher = some_logits(3, 4, 5)
    labels = torch.arange(12).reshape(3, 4) % 5
    labels[1, 2:] = ignore_index
    got = distillation_loss(student, teacher, labels, ignore_index=ignore_index)
    lists = student.tolist(), teacher.tolist(), labels.tolist()
    wanted = oracles.distillation_loss(*lists, 0.5, 2.0, oracles.forward_kl, 2, ignore_index)
    assert_close(got.item(), wanted, **EXACT)
    wanted = oracles.label_loss(lists[0], lists[2], 0.0, ignore_index)
    assert_close(label_loss(student, labels, ignore_index=ignore_index).item(), wanted, **EXACT)


def test_the_defaults_are_the_courses():
    student, teacher = some_logits(3, 4, 5)
    labels = torch.zeros(3, 4, dtype=torch.int32)
    lists = student.tolist(), teacher.tolist(), labels.tolist()
    wanted = oracles.distillation_loss(*lists, 0.5, 2.0, oracles.forward_kl, 2, -100)
    assert_close(distillation_loss(student, teacher, labels).item(), wanted, **EXACT)
    assert_close(forward_kl(student, teacher), forward_kl(student, teacher, 1.0))


def test_other_leading_shapes():
    student, teacher = some_logits(6, 5)
    assert forward_kl(student, teacher).shape == (6,)
    assert forward_kl(student[0], teacher[0]).shape == ()
    flat = distillation_loss(student, teacher, torch.arange(6) % 5)
    folded = (x.reshape(2, 3, 5) for x in (student, teacher))
    assert_close(distillation_loss(*folded, (torch.arange(6) % 5).reshape(2, 3)), flat)


# ---- gradients


@every_divergence
@examples(40)
@given(batch=batches())
def test_the_analytic_gradient_is_autograds(divergence, batch):
    arguments = batch.teacher, batch.temperature
    analytic = divergence.gradient(batch.student, *arguments)
    finite = divergence(batch.student, *arguments).isfinite().unsqueeze(-1)
    by_autograd = autograd(lambda logits: divergence(logits, *arguments), batch.student)
    assert not analytic.requires_grad
    assert analytic[finite.expand_as(analytic)].isfinite().all()
    assert_close(analytic * finite, by_autograd * finite, **EXACT, equal_nan=True)


@every_divergence
def test_gradcheck(divergence):
    student, teacher = some_logits(2, 3, 4)
    student.requires_grad_()
    for temperature in (0.5, 1.0, 3.0):
        assert torch.autograd.gradcheck(lambda x, T=temperature: divergence(x, teacher, T), student)


@pytest.mark.parametrize("divergence", [forward_kl, JensenShannon(0.3), total_variation])
def test_gradcheck_of_the_whole_loss(divergence):
    student, teacher = some_logits(2, 3, 4)
    labels = torch.tensor([[1, -100, 3], [0, 2, -100]])
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: distillation_loss(x, teacher, labels, alpha=0.7, divergence=divergence), student
    )
    assert torch.autograd.gradcheck(lambda x: label_loss(x, labels, label_smoothing=0.1), student)


@every_divergence
def test_the_teacher_gets_no_gradient(divergence):
    student, teacher = (logits.clone().requires_grad_() for logits in some_logits(2, 3, 4))
    labels = torch.zeros(2, 3, dtype=torch.long)
    distillation_loss(student, teacher, labels, divergence=divergence).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None


@every_divergence
def test_a_teacher_run_in_inference_mode_is_accepted(divergence):
    student, teacher = some_logits(2, 3, 4, dtype=torch.float32)
    with torch.inference_mode():
        frozen = teacher * 1.0
    for labels in (torch.zeros(2, 3).long(), torch.tensor([[0, 1, -100], [2, 3, 3]])):
        leaf = student.clone().requires_grad_()
        distillation_loss(leaf, frozen, labels, temperature=1.0, divergence=divergence).backward()
        assert leaf.grad.isfinite().all()


@every_divergence
def test_t_to_its_power_keeps_the_gradients_size(divergence):
    student, teacher = some_logits(5, 8, 50)

    def size(temperature):
        scale = temperature**divergence.temperature_power
        return scale * divergence.gradient(student, teacher, temperature).norm().item()

    for temperature in (8.0, 32.0):
        assert 0.8 < size(4 * temperature) / size(temperature) < 1.25


def test_the_powers_of_t():
    powers = {divergence.name: divergence.temperature_power for divergence in ORACLES}
    assert powers.pop("total_variation") == powers.pop("universal_logit_distance") == 1
    assert powers.pop("logits_mse") == 0
    assert set(powers.values()) == {2}


def test_the_labels_term_does_not_know_the_temperature():
    student, teacher = some_logits(2, 3, 4)
    labels = torch.tensor([[0, 1, 2], [3, -100, 0]])
    plain = F.cross_entropy(student.reshape(-1, 4), labels.reshape(-1))
    for temperature in (0.5, 2.0, 8.0):
        loss = distillation_loss(student, teacher, labels, alpha=0.0, temperature=temperature)
        assert_close(loss, plain)


# ---- what must always hold


@every_divergence
@examples(20)
@given(batch=batches(forbidden=("nobody", "both")))
def test_never_negative_and_zero_at_equality(divergence, batch):
    assert (divergence(batch.student, batch.teacher, batch.temperature) > -1e-9).all()
    twin = divergence(batch.teacher, batch.teacher, batch.temperature)
    assert_close(twin, torch.zeros_like(twin), rtol=0, atol=1e-12)
    slope = divergence.gradient(batch.teacher, batch.teacher, batch.temperature)
    assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)


@examples(30)
@given(batch=batches(), share=st.floats(0.01, 0.99))
def test_bounds_and_symmetry(batch, share):
    pair, T = (batch.student, batch.teacher), batch.temperature
    assert (total_variation(*pair, T) <= 1 + 1e-9).all()
    assert (SkewKL(share)(*pair, T) <= -math.log(share) + 1e-9).all()
    assert (JensenShannon(0.5)(*pair, T) <= math.log(2) + 1e-9).all()
    mirrored = JensenShannon(1 - share)(batch.teacher, batch.student, T)
    assert_close(JensenShannon(share)(*pair, T), mirrored, **EXACT)


@every_divergence
def test_finite_at_logits_of_a_thousand_in_float32(divergence):
    random = torch.Generator().manual_seed(1)
    student, teacher = 1000 * torch.randn(2, 4, 6, 9, generator=random).sign()
    student[0], teacher[0] = 1000.0, -1000.0  # all equal
    labels = torch.arange(24).reshape(4, 6) % 9
    for temperature in (0.25, 1.0, 8.0):
        leaf = student.clone().requires_grad_()
        loss = distillation_loss(
            leaf, teacher, labels, temperature=temperature, divergence=divergence
        )
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()
        assert divergence.gradient(student, teacher, temperature).isfinite().all()


@every_divergence
def test_a_token_forbidden_to_both_changes_nothing(divergence):
    student, teacher = some_logits(2, 3, 4)
    forbidden = torch.full((2, 3, 2), -math.inf, dtype=torch.float64)
    leaf = torch.cat([student, forbidden], -1).requires_grad_()
    wide = divergence(leaf, torch.cat([teacher, forbidden], -1), 2.0)
    wide.sum().backward()
    kept = 4 / 6 if divergence is logits_mse else 1.0  # a mean over the columns
    assert_close(wide, kept * divergence(student, teacher, 2.0))
    assert_close(leaf.grad[..., :4], kept * divergence.gradient(student, teacher, 2.0))
    assert (leaf.grad[..., 4:] == 0).all()


@pytest.mark.parametrize("divergence", [forward_kl, *ALWAYS_FINITE], ids=lambda d: d.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_forbidden_to_the_teacher_is_finite(divergence, dtype):
    student, teacher = some_logits(2, 3, 4, dtype=dtype)
    teacher[..., 1:3] = -math.inf
    value = divergence(student, teacher, 2.0)
    slope = autograd(lambda logits: divergence(logits, teacher, 2.0), student)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    assert_close(slope, divergence.gradient(student, teacher, 2.0))


def test_where_infinite_is_the_right_answer():
    student, teacher = some_logits(3, 4)
    forbidden = student.clone()
    forbidden[:, 0] = -math.inf
    assert (reverse_kl(teacher, forbidden) == math.inf).all()
    assert (forward_kl(forbidden, teacher) == math.inf).all()
    assert (SkewKL(0.0)(forbidden, teacher) == math.inf).all()
    assert forward_kl.gradient(forbidden, teacher).isfinite().all()
    assert autograd(lambda logits: forward_kl(logits, teacher), forbidden).isfinite().all()
    for divergence in ALWAYS_FINITE:
        assert divergence(forbidden, teacher).isfinite().all()
        assert autograd(lambda x, D=divergence: D(x, teacher), forbidden).isfinite().all()


@every_divergence
@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_nan_in_a_valid_token_is_not_hidden(divergence, broken):
    student, teacher = some_logits(3, 4)
    (student if broken == "student" else teacher)[1, 2] = math.nan
    assert divergence(student, teacher, 2.0).isnan().tolist() == [False, True, False]


def test_the_cross_entropy_form_exceeds_it_by_the_teachers_entropy():
    student, teacher = some_logits(2, 3, 6)
    p = F.softmax(teacher / 2.0, -1)

    def cross_entropy(logits):
        return -(p * F.log_softmax(logits / 2.0, -1)).sum(-1)

    entropy = -(p * p.log()).sum(-1)
    assert_close(cross_entropy(student), forward_kl(student, teacher, 2.0) + entropy)
    assert_close(autograd(cross_entropy, student), forward_kl.gradient(student, teacher, 2.0))
    assert (cross_entropy(teacher) > 0.1).all()


def test_the_ends_of_jensen_shannon_are_branches():
    student, teacher = some_logits(4, 6)
    tiny = 1e-6
    for end, near, whole in ((0.0, tiny, forward_kl), (1.0, 1 - tiny, reverse_kl)):
        kl = whole(student, teacher, 2.0)
        assert_close(JensenShannon(end)(student, teacher, 2.0), kl)
        assert_close(
            JensenShannon(end).gradient(student, teacher, 2.0),
            whole.gradient(student, teacher, 2.0),
        )
        bare = JensenShannon(near)(student, teacher, 2.0)
        assert (bare < 1e-5 * kl.clamp(min=1)).all()
        assert_close(bare / (near * (1 - near)), kl, rtol=1e-4, atol=1e-6)
        slope = JensenShannon(near).gradient(student, teacher, 2.0) / (near * (1 - near))
        assert_close(slope, whole.gradient(student, teacher, 2.0), rtol=1e-4, atol=1e-6)


def test_skew_mixes_a_little_of_the_teacher_into_the_student():
    student, teacher = some_logits(4, 6)
    p, q = F.softmax(teacher, -1), F.softmax(student, -1)
    mixed = (0.1 * p + 0.9 * q).log()
    assert_close(SkewKL(0.1)(student, teacher), forward_kl(mixed, teacher))
    assert_close(SkewKL(1e-9)(student, teacher), forward_kl(student, teacher))


def test_half_the_mse_of_logits_is_the_limit_of_high_temperature():
    student, teacher = (logits - logits.mean(-1, keepdim=True) for logits in some_logits(4, 6))
    T = 1e4
    softened = T**2 * forward_kl(student, teacher, T)
    assert_close(softened, logits_mse(student, teacher) / 2, rtol=1e-3, atol=0)
    assert_close(
        logits_mse(student, teacher, 5.0), F.mse_loss(student, teacher, reduction="none").mean(-1)
    )


# ---- precision


@every_divergence
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(divergence, dtype):
    student, teacher = some_logits(3, 4, 50, dtype=dtype, scale=3.0)
    leaf = student.clone().requires_grad_()
    value = divergence(leaf, teacher, 3.0)
    assert value.dtype == torch.float32
    assert_close(value, divergence(student.float(), teacher.float(), 3.0), rtol=0, atol=0)
    value.sum().backward()
    assert leaf.grad.dtype == dtype
    slope = divergence.gradient(student, teacher, 3.0)
    assert slope.dtype == torch.float32
    assert_close(slope, divergence.gradient(student.float(), teacher.float(), 3.0), rtol=0, atol=0)


def test_the_whole_loss_of_half_precision_is_float32():
    student, teacher = some_logits(3, 4, 50, dtype=torch.bfloat16, scale=3.0)
    labels = torch.arange(12).reshape(3, 4)
    labels[0, 2:] = -100
    loss = distillation_loss(student, teacher, labels)
    assert loss.dtype == torch.float32
    assert_close(loss, distillation_loss(student.float(), teacher.float(), labels))
    many = torch.ones(4000, dtype=torch.bfloat16)  # a sum in bfloat16 would stop counting at 256
    assert masked_mean(many, many.bool()) == 1.0


# ---- masks and denominators


@every_divergence
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_what_stands_at_a_masked_token_does_not_matter(divergence, poison, alpha):
    student, teacher = some_logits(3, 4, 5)
    labels = torch.arange(12).reshape(3, 4) % 5
    labels[0, 1:], labels[2, :1] = -100, -100
    masked = (labels == -100).unsqueeze(-1)

    def loss(x, t):
        return distillation_loss(x, t, labels, alpha=alpha, divergence=divergence)

    wanted, slope = loss(student, teacher), autograd(lambda x: loss(x, teacher), student)
    leaf = student.masked_fill(masked, poison).requires_grad_()
    got = loss(leaf, teacher.masked_fill(masked, poison))
    got.backward()
    assert_close(got, wanted)
    assert_close(leaf.grad, slope)
    assert (leaf.grad[masked.expand_as(leaf)] == 0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_masked_mean_ignores_what_is_masked(poison):
    values = torch.tensor([[1.0, 3.0], [poison, 8.0]], requires_grad=True)
    mean = masked_mean(values, torch.tensor([[True, True], [False, True]]))
    mean.backward()
    assert mean.item() == 4.0
    assert_close(values.grad, torch.tensor([[1.0, 1.0], [0.0, 1.0]]) / 3)


@every_divergence
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_items", [None, 0, 9, torch.tensor(0)], ids=str)
def test_no_valid_token_gives_a_zero_with_a_graph(divergence, alpha, num_items):
    student, teacher = some_logits(3, 4, 5)
    student = student.clone().requires_grad_()
    labels = torch.full((3, 4), -100)
    loss = distillation_loss(
        student, teacher, labels, alpha=alpha, divergence=divergence, num_items=num_items
    )
    assert loss.item() == 0.0
    loss.backward()
    assert_close(student.grad, torch.zeros_like(student))
    nothing = masked_mean(divergence(student, teacher), labels != -100)
    assert nothing.item() == 0.0
    nothing.backward()


@every_divergence
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_add_up_to_the_step(divergence, as_tensor):
    student, teacher = some_logits(6, 4, 5)
    labels = torch.arange(24).reshape(6, 4) % 5
    labels[0, 1:], labels[3, :2], labels[5] = -100, -100, -100  # ragged: 1 to 8 tokens a piece
    count = (labels != -100).sum()
    whole = distillation_loss(student, teacher, labels, divergence=divergence)
    parts = sum(
        distillation_loss(
            student[rows],
            teacher[rows],
            labels[rows],
            divergence=divergence,
            num_items=count if as_tensor else int(count),
        )
        for rows in ([0], [1, 2], [3], [4, 5])
    )
    assert_close(parts, whole)


def test_a_shifted_view_needs_no_contiguous_copy():
    student, teacher = some_logits(3, 6, 5)
    labels = torch.arange(18).reshape(3, 6) % 5
    labels[1, 4:] = -100
    view = distillation_loss(student[:, :-1], teacher[:, :-1], labels[:, 1:])
    copies = (x.contiguous() for x in (student[:, :-1], teacher[:, :-1], labels[:, 1:]))
    assert_close(view, distillation_loss(*copies))


def test_a_term_of_weight_zero_is_not_computed():
    student, teacher = some_logits(3, 5)
    labels = torch.tensor([0, 1, 2])
    forbidden = student.clone()
    forbidden[:, 4] = -math.inf  # an infinite KL; its weight is 0, and 0 · inf would be NaN
    assert_close(
        distillation_loss(forbidden, teacher, labels, alpha=0.0), label_loss(forbidden, labels)
    )
    forbidden, both = student.clone(), teacher.clone()
    forbidden[0, 0] = both[0, 0] = -math.inf  # an infinite label loss
    assert distillation_loss(forbidden, both, labels, alpha=1.0).isfinite()


# ---- objects, sentences, examples


def test_divergences_are_small_frozen_objects():
    assert JensenShannon(0.3) == JensenShannon(0.3) != JensenShannon(0.4)
    assert JensenShannon().beta == 0.5
    assert SkewKL().skew == 0.1
    with pytest.raises(FrozenInstanceError):
        JensenShannon(0.3).beta = 0.4
    names = [divergence.name for divergence in ORACLES]
    assert names[:3] == ["forward_kl", "reverse_kl", "jensen_shannon(beta=0)"]
    assert len(set(names)) == len(names)


LOGITS, LABELS = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long)
MISTAKES = {
    "teacher has 7 logits a token, the student 5: .*:5": lambda: forward_kl(
        LOGITS, torch.zeros(2, 3, 7)
    ),
    r"\(2, 3, 5\), the teacher's \(2, 4, 5\)": lambda: forward_kl(LOGITS, torch.zeros(2, 4, 5)),
    r"\(2, 3, 5\), the teacher's \(3, 5\)": lambda: distillation_loss(LOGITS, LOGITS[0], LABELS),
    "temperature is 0: .*above 0": lambda: forward_kl(LOGITS, LOGITS, 0),
    "temperature is -1.0": lambda: logits_mse(LOGITS, LOGITS, -1.0),
    "temperature is nan": lambda: reverse_kl.gradient(LOGITS, LOGITS, math.nan),
    "temperature is inf": lambda: distillation_loss(
        LOGITS, LOGITS, LABELS, alpha=0.0, temperature=math.inf
    ),
    "alpha is 1.5: .*between 0": lambda: distillation_loss(LOGITS, LOGITS, LABELS, alpha=1.5),
    "alpha is nan": lambda: distillation_loss(LOGITS, LOGITS, LABELS, alpha=math.nan),
    "beta is 2: .*between 0": lambda: JensenShannon(2),
    "skew is 1: .*below 1": lambda: SkewKL(1),
    "skew is -0.1": lambda: SkewKL(-0.1),
    r"labels have shape \(2, 2\)": lambda: distillation_loss(LOGITS, LOGITS, LABELS[:, 1:]),
    r"labels have shape \(3,\)": lambda: label_loss(LOGITS, LABELS[0]),
    "labels reach from 0 to 5, but there are 5": lambda: label_loss(
        LOGITS, torch.tensor([[0, 1, 2], [3, 4, 5]])
    ),
    "from -1 to 0.*ignore_index=-100": lambda: label_loss(LOGITS, LABELS - torch.eye(2, 3).long()),
    "label_smoothing is -0.1": lambda: label_loss(LOGITS, LABELS, label_smoothing=-0.1),
    r"mask has shape \(3,\), the values \(2, 3\)": lambda: masked_mean(LOGITS[..., 0], LABELS[0]),
    r"mask is torch.float32: pass mask.bool\(\)": lambda: masked_mean(LOGITS, LOGITS),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_is_answered_with_a_sentence(sentence):
    with pytest.raises(UserError, match=sentence):
        MISTAKES[sentence]()


def test_the_examples_in_the_docstrings():
    result = doctest.testmod(losses)
    assert result.failed == 0
    assert result.attempted >= 12
