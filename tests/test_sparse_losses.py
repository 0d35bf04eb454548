"""Losses from a few of the teacher's tokens, or from another vocabulary: loops, and what must hold.

What every divergence must do, `TopKKL` and `universal_logit_distance` do in test_losses.py.
"""

import doctest
import math
from dataclasses import replace

import oracles
import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from test_losses import EXACT, autograd, batches, examples, some_logits
from torch.testing import assert_close
from trainers import batch_of, by_hand, make_trainer

from distillkit import cross_tokenizer, sparse_losses
from distillkit.course.exercises.loops import log_softmax
from distillkit.cross_tokenizer import universal_logit_distance
from distillkit.errors import UserError
from distillkit.losses import distillation_loss, forward_kl, masked_mean, total_variation
from distillkit.settings import divergence_named
from distillkit.sparse_losses import (
    BestTokens,
    SampledTokens,
    TopKKL,
    best_tokens_kl,
    sampled_kl,
)

torch.set_num_threads(1)

LOSSES = {"best": best_tokens_kl, "sampled": sampled_kl}
both = pytest.mark.parametrize("kind", LOSSES)


def sparse(kind, teacher, count, temperature=1.0, seed=0):
    if kind == "best":
        return BestTokens.of(teacher, count, temperature)
    random = torch.Generator().manual_seed(seed)
    return SampledTokens.of(teacher, count, temperature, random)


def by_loop(kind, student, teacher):
    """The oracle of the very tokens that were kept, as (B, S) values."""

    def one(row, place):
        ids, log_probs = teacher.token_ids[place].tolist(), teacher.log_probs[place].tolist()
        if kind == "sampled":
            weights = teacher.weights[place].tolist()
            return oracles.sampled_kl(row, ids, log_probs, weights, teacher.temperature)
        log_q = oracles.buckets(log_softmax(row, teacher.temperature), ids)
        return oracles.kl([*log_probs, teacher.log_rest[place].item()], log_q)

    lines = enumerate(student.tolist())
    values = [[one(row, (b, s)) for s, row in enumerate(rows)] for b, rows in lines]
    return torch.tensor(values, dtype=torch.float64)


# ---- values and gradients


@both
@pytest.mark.parametrize("count", [1, 3])
@examples(40)
@given(batch=batches())
def test_each_token_equals_the_loop(kind, count, batch):
    teacher = sparse(kind, batch.teacher, count, batch.temperature)
    got = LOSSES[kind](batch.student, teacher, batch.temperature)
    assert got.dtype == torch.float64
    assert_close(got, by_loop(kind, batch.student, teacher), **EXACT)


@both
@pytest.mark.parametrize("count", [1, 3, 9])
@examples(40)
@given(batch=batches())
def test_the_analytic_gradient_is_autograds(kind, count, batch):
    arguments = sparse(kind, batch.teacher, count, batch.temperature), batch.temperature
    loss = LOSSES[kind]
    finite = loss(batch.student, *arguments).isfinite().unsqueeze(-1)
    by_autograd = autograd(lambda logits: loss(logits, *arguments), batch.student)
    analytic = loss.gradient(batch.student, *arguments)
    assert not analytic.requires_grad
    assert analytic[finite.expand_as(analytic)].isfinite().all()
    assert_close(analytic.where(finite, 0), by_autograd.where(finite, 0), **EXACT, equal_nan=True)


@both
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_finite_differences(kind, temperature):
    student, logits = some_logits(2, 3, 6)
    teacher = sparse(kind, logits, 2, temperature)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[kind](x, teacher, temperature), student.requires_grad_()
    )


@pytest.mark.parametrize("widths", [(6, 4), (4, 6), (5, 5)])
def test_the_distance_of_two_vocabularies(widths):
    """Value by the loop, analytic gradient by autograd and by finite differences."""
    student, teacher = some_logits(2, 3, widths[0])[0], some_logits(2, 3, widths[1], seed=1)[0]
    got = universal_logit_distance(student, teacher, 2.0)
    lists = student.tolist(), teacher.tolist()
    wanted = oracles.per_token(oracles.universal_logit_distance, *lists, 2.0)
    assert_close(got, torch.tensor(wanted, dtype=torch.float64), **EXACT)
    by_autograd = autograd(lambda x: universal_logit_distance(x, teacher, 2.0), student)
    assert_close(universal_logit_distance.gradient(student, teacher, 2.0), by_autograd)
    assert torch.autograd.gradcheck(
        lambda x: universal_logit_distance(x, teacher, 2.0), student.requires_grad_()
    )


# ---- the best tokens and the rest


@examples(40)
@given(batch=batches(forbidden=("nobody", "both", "teacher")))
def test_all_tokens_kept_is_forward_kl_and_fewer_is_never_more(batch):
    pair = batch.student, batch.teacher, batch.temperature
    whole = forward_kl(*pair)
    for k in (batch.student.shape[-1], 50):
        assert_close(TopKKL(k)(*pair), whole, **EXACT)
        assert_close(TopKKL(k).gradient(*pair), forward_kl.gradient(*pair), **EXACT)
    fewer = [TopKKL(k)(*pair) for k in (1, 2, 3)]
    for less, more in zip(fewer, [*fewer[1:], whole], strict=True):
        assert (less <= more + 1e-9).all()


def test_a_teacher_on_disk_gives_what_the_teacher_itself_gives():
    student, teacher = some_logits(3, 4, 9)
    for k in (1, 4, 9):
        kept = BestTokens.of(teacher, k, 2.0)
        told = BestTokens.from_log_probs(kept.token_ids, kept.log_probs, 2.0)
        for tokens in (kept, told):
            dense, got = TopKKL(k), best_tokens_kl(student, tokens, 2.0)
            assert_close(got, dense(student, teacher, 2.0))
            slope = best_tokens_kl.gradient(student, tokens, 2.0)
            assert_close(slope, dense.gradient(student, teacher, 2.0))


def test_every_logit_is_pulled_and_the_rest_reaches_its_share():
    """Renormalised over the K tokens, the student would leave nothing, or anything, to the rest."""
    student, teacher = some_logits(1, 8)
    best = BestTokens.of(teacher, 2)
    assert (autograd(lambda x: best_tokens_kl(x, best), student) != 0).all()
    logits = student.clone()
    for _ in range(3000):
        logits -= best_tokens_kl.gradient(logits, best)
    q = logits.softmax(-1)
    assert_close(q.gather(-1, best.token_ids), best.log_probs.exp(), rtol=0, atol=1e-6)
    inside = torch.ones_like(q).scatter(-1, best.token_ids, 0)
    assert_close((q * inside).sum(-1), best.log_rest.exp(), rtol=0, atol=1e-6)


def test_it_is_forward_kl_to_a_teacher_that_shares_out_the_rest_as_the_student_does():
    student, teacher = some_logits(4, 7)
    best = BestTokens.of(teacher, 3)
    log_q = student.log_softmax(-1)
    others = log_q.scatter(-1, best.token_ids, -math.inf)
    filled = others - others.logsumexp(-1, keepdim=True) + best.log_rest.unsqueeze(-1)
    filled = filled.scatter(-1, best.token_ids, best.log_probs)
    assert_close(best_tokens_kl(student, best), forward_kl(student, filled))
    assert_close(best_tokens_kl.gradient(student, best), forward_kl.gradient(student, filled))


def test_a_ragged_k_is_filled_up_with_a_token_of_no_probability():
    student, teacher = some_logits(3, 6)
    one = BestTokens.of(teacher, 1)
    ids = one.token_ids.expand(3, 4)
    nothing = torch.full((3, 3), -math.inf, dtype=torch.float64)
    padded = BestTokens(ids, torch.cat([one.log_probs, nothing], -1), one.log_rest)
    assert_close(best_tokens_kl(student, padded), best_tokens_kl(student, one))
    slope = best_tokens_kl.gradient(student, one)
    assert_close(best_tokens_kl.gradient(student, padded), slope)
    assert_close(autograd(lambda x: best_tokens_kl(x, padded), student), slope)


@pytest.mark.parametrize("error", [1e-4, 0.0, -1e-7])
def test_a_rest_that_is_rounding_is_nothing(error):
    log_probs = torch.tensor([0.7, 0.3]).log() + error
    best = BestTokens.from_log_probs(torch.tensor([0, 1]), log_probs)
    assert best.log_rest == -math.inf
    student = torch.tensor([0.3, 0.2, 0.1])
    assert best_tokens_kl(student, best).isfinite()
    assert autograd(lambda x: best_tokens_kl(x, best), student).isfinite().all()


@pytest.mark.parametrize("ids", [[0, 1], [[4, 2], [0, 1]]])
@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([0.5, 0.3], r"the greatest of log_probs is 0.5: .* logarithms"),
        ([0.005, 0.002], r"the greatest of log_probs is 0.005"),
        ([math.nan, -1.0], "the greatest of log_probs is nan"),
        ([math.log(0.9), math.log(0.9)], "sum to 1.8 somewhere: expected at most 1"),
    ],
)
def test_what_is_no_logarithm_of_a_part_of_1_is_refused(ids, told, sentence):
    ids = torch.tensor(ids)
    right = torch.tensor([0.5, 0.3]).log()
    log_probs = torch.tensor(told) if ids.dim() == 1 else torch.stack([right, torch.tensor(told)])
    with pytest.raises(UserError, match=sentence):
        BestTokens.from_log_probs(ids, log_probs)


def test_a_token_that_is_told_twice_is_refused_and_a_place_not_used_is_not():
    log_probs = torch.tensor([[0.5, 0.3], [0.5, 0.3]]).log()
    with pytest.raises(UserError, match="token id 7 stands among the best tokens twice"):
        BestTokens.from_log_probs(torch.tensor([[7, 8], [7, 7]]), log_probs)
    log_probs[1, 1] = -math.inf
    best = BestTokens.from_log_probs(torch.tensor([[7, 8], [7, 7]]), log_probs)
    assert_close(best.log_rest.exp(), torch.tensor([0.2, 0.5]))
    nothing = BestTokens.from_log_probs(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2))
    assert nothing.log_rest.shape == (0,)


# ---- draws


@pytest.mark.parametrize("row", [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3])
def test_a_teacher_of_whom_nothing_can_be_drawn_is_named(row):
    logits = torch.tensor([[0.0, 1.0, 2.0], row])
    with pytest.raises(UserError, match="no token can be drawn"):
        SampledTokens.of(logits, 3)


@pytest.mark.parametrize("draws", [1, 12])
def test_the_estimate_and_its_gradient_are_unbiased(draws):
    """Many draws: the mean within four standard errors of the KL, its gradient of (q - p) / T."""
    student, teacher = some_logits(6)
    times, T = 40_000, 2.0
    drawn = SampledTokens.of(teacher.expand(times, 6), draws, T, torch.Generator().manual_seed(1))
    many = student.expand(times, 6)
    values = sampled_kl(many, drawn, T)
    error = values.std() / math.sqrt(times)
    assert abs(values.mean() - forward_kl(student, teacher, T)) < 4 * error
    slopes = sampled_kl.gradient(many, drawn, T)
    errors = slopes.std(0) / math.sqrt(times)
    assert ((slopes.mean(0) - forward_kl.gradient(student, teacher, T)).abs() < 4 * errors).all()


def test_the_best_tokens_renormalised_are_biased_and_draws_are_not():
    """Why one draws at all: a student trained on each, until it rests."""
    _, teacher = some_logits(8, scale=0.5)
    p = teacher.softmax(-1)
    best = p.topk(3)
    renormalised = torch.zeros_like(p).scatter(-1, best.indices, best.values / best.values.sum())
    drawn = SampledTokens.of(teacher, 100_000, generator=torch.Generator().manual_seed(2))
    frequency = torch.zeros_like(p).scatter_add(-1, drawn.token_ids, drawn.weights)
    assert (renormalised - p).abs().sum() > 0.5
    assert (frequency - p).abs().sum() < 0.02


def test_equal_draws_may_be_put_together_and_other_proposals_are_weighed():
    student, teacher = some_logits(5)
    log_p = teacher.log_softmax(-1)
    ids = torch.tensor([0, 2, 2, 4])
    each = SampledTokens(ids, log_p[ids], torch.full((4,), 0.25, dtype=torch.float64))
    merged = torch.tensor([0, 2, 4])
    counted = SampledTokens(merged, log_p[merged], torch.tensor([1, 2, 1]) / 4.0)
    assert_close(sampled_kl(student, each), sampled_kl(student, counted))
    assert_close(sampled_kl.gradient(student, each), sampled_kl.gradient(student, counted))
    every = torch.arange(5)  # a uniform proposal that meets every token: exact
    exact = SampledTokens(every, log_p, log_p.exp())
    assert_close(sampled_kl(student, exact), forward_kl(student, teacher))
    assert_close(sampled_kl.gradient(student, exact), forward_kl.gradient(student, teacher))


# ---- what must always hold


@both
def test_zero_at_equality_and_nothing_for_the_teacher(kind):
    student, teacher = some_logits(3, 4, 7)
    teacher.requires_grad_()
    tokens = sparse(kind, teacher, 3, 2.0)
    value = LOSSES[kind](teacher.detach(), tokens, 2.0)
    assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
    LOSSES[kind](student.requires_grad_(), tokens, 2.0).sum().backward()
    assert teacher.grad is None


@both
def test_finite_at_logits_of_a_thousand_in_float32(kind):
    random = torch.Generator().manual_seed(1)
    student, teacher = 1000 * torch.randn(2, 4, 6, 9, generator=random).sign()
    student[0], teacher[0] = 1000.0, -1000.0  # all equal
    for temperature in (0.25, 1.0, 8.0):
        tokens = sparse(kind, teacher, 3, temperature)
        assert LOSSES[kind](student, tokens, temperature).isfinite().all()
        slope = autograd(lambda x, t=tokens: LOSSES[kind](x, t, t.temperature), student)
        assert slope.isfinite().all()


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    student, teacher = some_logits(3, 4, 50, dtype=dtype, scale=3.0)
    tokens = sparse(kind, teacher, 5, 3.0)
    assert tokens.log_probs.dtype == torch.float32
    leaf = student.clone().requires_grad_()
    value = LOSSES[kind](leaf, tokens, 3.0)
    assert value.dtype == torch.float32
    assert_close(value, LOSSES[kind](student.float(), tokens, 3.0), rtol=0, atol=0)
    value.sum().backward()
    assert leaf.grad.dtype == dtype


def test_a_token_forbidden_to_both_changes_nothing():
    student, teacher = some_logits(3, 4)
    forbidden = torch.full((3, 2), -math.inf, dtype=torch.float64)
    leaf = torch.cat([student, forbidden], -1).requires_grad_()
    for k in (2, 4):  # with something in the rest, and with nothing but what cannot occur
        wide = best_tokens_kl(leaf, BestTokens.of(torch.cat([teacher, forbidden], -1), k))
        assert_close(wide, best_tokens_kl(student, BestTokens.of(teacher, k)))
        (slope,) = torch.autograd.grad(wide.sum(), leaf)
        assert slope.isfinite().all()
        assert (slope[:, 4:] == 0).all()


@both
def test_masked_like_any_other(kind):
    student, teacher = some_logits(3, 4, 7)
    mask = torch.arange(12).reshape(3, 4) % 3 != 0
    values = LOSSES[kind](student, sparse(kind, teacher, 2))
    assert_close(masked_mean(values, mask), values[mask].mean())


def test_it_plugs_into_the_loss_of_the_course_and_two_vocabularies_fit():
    student, teacher = some_logits(2, 3, 6)[0], some_logits(2, 3, 4)[0]
    labels = torch.tensor([[1, -100, 5], [0, 2, -100]])
    valid = labels != -100
    got = distillation_loss(
        student, teacher, labels, alpha=1.0, temperature=3.0, divergence=universal_logit_distance
    )
    per_token = universal_logit_distance(student, teacher, 3.0)
    assert_close(got, 3.0 * masked_mean(per_token, valid))  # T, and not T²


@pytest.mark.parametrize("divergence", [TopKKL(4), universal_logit_distance], ids=lambda d: d.name)
def test_the_trainer_takes_it(divergence, tmp_path):
    student, teacher, batch = tiny.student(), tiny.teacher(), batch_of(tiny.encoded(4))
    settings = {"alpha": 0.7, "temperature": 3.0, "divergence": divergence}
    trainer = make_trainer(tmp_path, student, teacher, **settings)
    assert_close(trainer.compute_loss(student, batch), by_hand(student, teacher, batch, **settings))


def test_the_distance_is_twice_the_total_variation_where_the_ranks_agree():
    student, teacher = (logits.sort(-1).values for logits in some_logits(4, 6))
    distance = universal_logit_distance(student, teacher, 2.0)
    assert_close(distance, 2 * total_variation(student, teacher, 2.0))
    shuffled = student[:, torch.tensor([3, 1, 0, 5, 4, 2])]
    assert_close(universal_logit_distance(shuffled, teacher, 2.0), distance)
    assert universal_logit_distance(shuffled, student).abs().max() < 1e-12  # shapes, not meanings


def test_a_wider_vocabulary_that_is_never_used_costs_nothing():
    student, teacher = some_logits(4, 6)
    wide = F.pad(teacher, (0, 3), value=-math.inf)
    assert_close(
        universal_logit_distance(student, wide), universal_logit_distance(student, teacher)
    )


# ---- names and sentences


def test_the_names_of_the_command_line():
    assert divergence_named("top_k_kl:8") == TopKKL(8)
    assert divergence_named("top_k_kl:8").name == "top_k_kl(k=8)"
    assert divergence_named("universal_logit_distance") == universal_logit_distance


LOGITS = torch.zeros(2, 3, 5)
BEST, DRAWN = BestTokens.of(LOGITS, 2), SampledTokens.of(LOGITS, 2)
MISTAKES = {
    "2.5 tokens of the teacher: give a whole": lambda: TopKKL(2.5),
    "0 tokens of the teacher": lambda: BestTokens.of(LOGITS, 0),
    "-1 tokens of the teacher": lambda: SampledTokens.of(LOGITS, -1),
    "nan tokens": lambda: divergence_named("top_k_kl:nan"),
    "inf tokens": lambda: divergence_named("top_k_kl:inf"),
    r"weights have shape \(2,\), expected \(2, 3, 2\)": lambda: sampled_kl(
        LOGITS, replace(DRAWN, weights=torch.ones(2))
    ),
    r"log_rest have shape \(2,\), expected \(2, 3\)": lambda: best_tokens_kl(
        LOGITS, replace(BEST, log_rest=torch.zeros(2))
    ),
    "taken at temperature 1.0, the loss is asked for 2.0": lambda: best_tokens_kl(
        LOGITS, BEST, 2.0
    ),
    r"token ids have shape \(2, 3, 2\).*logits \(2, 5\)": lambda: sampled_kl(LOGITS[:, 0], DRAWN),
    "reach from . to 4, but the student has 3 logits": lambda: best_tokens_kl(
        LOGITS[..., :3], BestTokens.of(LOGITS, 5)
    ),
    "temperature is 0": lambda: BestTokens.of(LOGITS, 2, 0),
    "temperature is -2": lambda: universal_logit_distance(LOGITS, LOGITS, -2),
    "pair the tokens first": lambda: universal_logit_distance(LOGITS, LOGITS[:, 1:]),
    "skew_kl and top_k_kl take a number": lambda: divergence_named("best_tokens"),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_is_answered_with_a_sentence(sentence):
    with pytest.raises(UserError, match=sentence):
        MISTAKES[sentence]()


@pytest.mark.parametrize("room", [sparse_losses, cross_tokenizer])
def test_the_examples_in_the_docstrings(room):
    result = doctest.testmod(room)
    assert result.failed == 0
    assert result.attempted >= 2
