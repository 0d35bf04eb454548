"""The losses of TRL, Liger-Kernel and torchtune beside ours: one value and one gradient each.

Where a peer's number is another, the test says why, and pins both. Skew KL and total variation are
not among them: none of the three has either. What is not installed is skipped.
"""

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from distillkit.cross_tokenizer import universal_logit_distance
from distillkit.losses import JensenShannon, distillation_loss, forward_kl, masked_mean, reverse_kl
from distillkit.sparse_losses import BestTokens, best_tokens_kl

torch.set_num_threads(1)

BETAS = {0.0: forward_kl, 0.3: JensenShannon(0.3), 0.5: JensenShannon(0.5), 1.0: reverse_kl}
betas = pytest.mark.parametrize("beta", BETAS)
temperatures = pytest.mark.parametrize("temperature", [1.0, 2.0])


def some_logits(*shape, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def some_labels(*shape):
    labels = torch.arange(math.prod(shape)).reshape(shape) % 5
    return labels.masked_fill(labels == 1, -100)


def with_gradient(loss, *leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def assert_same(ours, theirs, **tolerance):
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, **(tolerance or {"rtol": 1e-4, "atol": 1e-6}))


# --- TRL ------------------------------------------------------------------------------------------


@betas
@temperatures
def test_trl_generalised_jsd(beta, temperature):
    """The same divergence; TRL has no T², which keeps the gradient at its size as T grows."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    student, teacher = some_logits(3, 4, 7)
    labels = some_labels(3, 4)
    loss = gkd.GKDTrainer.generalized_jsd_loss
    theirs = with_gradient(
        lambda x: loss(x, teacher, labels=labels, beta=beta, temperature=temperature), student
    )
    options = {"alpha": 1.0, "temperature": temperature, "divergence": BETAS[beta]}
    ours = with_gradient(lambda x: distillation_loss(x, teacher, labels, **options), student)
    assert_same(ours, [temperature**2 * each for each in theirs])


def test_trl_generalised_jsd_of_half_precision():
    """Near convergence TRL's softmax in bfloat16 is wrong by a tenth and more; ours is float32."""
    gkd = pytest.importorskip("trl.experimental.gkd")
    student, noise = some_logits(16, 64, 512)
    student, teacher = ((3 * student + c * noise).bfloat16() for c in (0.0, 0.1))
    labels = torch.zeros(16, 64, dtype=torch.long)
    exact = JensenShannon(0.5)(student.double(), teacher.double()).mean()
    ours = JensenShannon(0.5)(student, teacher).mean()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=0.5)
    assert ours.item() == pytest.approx(exact.item(), rel=1e-3)
    assert abs(theirs.item() / exact.item() - 1) > 0.1


@pytest.mark.parametrize("widths", [(7, 5), (5, 7), (6, 6)])
def test_trl_universal_logit_distance(widths):
    """One conversation: the same, but for a factor T, which TRL leaves out.

    Several: TRL takes the mean of each conversation's mean, so a token weighs more where the answer
    is short; ours is a mean over the tokens of the step, as with every other loss.
    """
    gold = pytest.importorskip("trl.experimental.gold.gold_trainer")
    T, lengths = 2.0, (4, 2)
    student = some_logits(2, 6, widths[0])[0]
    teacher = some_logits(2, 6, widths[1], seed=1)[0]
    valid = torch.arange(6) >= 6 - torch.tensor(lengths).unsqueeze(-1)
    labels = torch.where(valid, 3, -100)
    config = SimpleNamespace(
        uld_crossentropy_weight=0.0, uld_distillation_weight=1.0, uld_student_temperature=T,
        uld_teacher_temperature=T, uld_skip_student_eos=False, uld_skip_teacher_eos=False,
        use_extended_uld=False, uld_token_merge_strategy="observed_target",
    )  # fmt: skip
    peer = gold.ULDLoss(config)

    def theirs(x, rows):
        ids = torch.zeros_like(labels[rows])
        return peer(x[rows], teacher[rows], labels[rows], labels[rows], ids, ids)

    def ours(x, rows):
        per_token = universal_logit_distance(x[rows], teacher[rows], T)
        return masked_mean(per_token, valid[rows])

    for row in ([0], [1]):
        assert_same(
            with_gradient(lambda x, row=row: ours(x, row), student),
            with_gradient(lambda x, row=row: theirs(x, row), student),
        )
    each = [ours(student, [row]) for row in (0, 1)]
    assert theirs(student, [0, 1]).item() == pytest.approx((sum(each) / 2).item(), rel=1e-5)
    of_tokens = sum(n * one for n, one in zip(lengths, each, strict=True)) / sum(lengths)
    assert ours(student, [0, 1]).item() == pytest.approx(of_tokens.item(), rel=1e-5)


@temperatures
def test_trl_best_tokens_and_a_tail(temperature):
    """The same buckets. TRL's tail is 1 minus the kept ones, and never below 1e-7: a student that
    is surer than that, and wrong, is not told (its loss is too small, the gradient 0)."""
    utils = pytest.importorskip("trl.experimental.sdft.loss_utils")

    def theirs(x, teacher, k):
        log_p = F.log_softmax(teacher / temperature, -1)
        log_q = F.log_softmax(x / temperature, -1)
        ids = log_p.topk(k).indices
        log_p, log_q = (utils.add_tail_bucket(each.gather(-1, ids)) for each in (log_p, log_q))
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()

    def ours(x, teacher, k):
        best = BestTokens.of(teacher, k, temperature)
        return best_tokens_kl(x, best, temperature).mean()

    student, teacher = some_logits(3, 4, 7)
    for k in (1, 3, 6):
        assert_same(
            with_gradient(lambda x, k=k: ours(x, teacher, k), student),
            with_gradient(lambda x, k=k: theirs(x, teacher, k), student),
        )
    sure = student.clone()
    sure[..., 0] = 60.0  # it leaves less than 1e-7 to all others, and the teacher most
    teacher[..., 0] = teacher.amax(-1) + 0.1
    exact, slope = with_gradient(lambda x: forward_kl(x, teacher, temperature).mean(), sure)
    value, ours_slope = with_gradient(lambda x: ours(x, teacher, 1), sure)
    less, their_slope = with_gradient(lambda x: theirs(x, teacher, 1), sure)
    assert less < 0.7 * value < 0.7 * exact
    torch.testing.assert_close(ours_slope[..., 0], slope[..., 0])
    assert (slope[..., 0] > 0.01).all()
    assert (their_slope[..., 0] < 1e-6).all()


# --- Liger-Kernel, in pure torch ------------------------------------------------------------------


@betas
@temperatures
def test_liger_chunked_jsd(beta, temperature):
    """Loss, and gradients in hidden states and head; as TRL's, without T²."""
    chunked = pytest.importorskip("liger_kernel.chunked_loss")
    student, teacher = some_logits(12, 6, seed=2)
    student_head, teacher_head = some_logits(9, 6, seed=3)
    labels = some_labels(12)
    peer = chunked.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.3, weight_soft_loss=0.7 * temperature**2, beta=beta,
        temperature=temperature, compiled=False, chunk_size=4,
    )  # fmt: skip
    theirs = with_gradient(
        lambda x, head: peer(x, head, teacher, teacher_head, labels), student, student_head
    )

    def ours(x, head):
        options = {"alpha": 0.7, "temperature": temperature, "divergence": BETAS[beta]}
        return distillation_loss(x @ head.T, teacher @ teacher_head.T, labels, **options)

    assert_same(with_gradient(ours, student, student_head), theirs)


def test_liger_fills_a_narrower_student_with_zeros_and_we_cut_or_refuse():
    """A logit of 0 has a probability: tokens that the student lacks take part of its mass."""
    chunked = pytest.importorskip("liger_kernel.chunked_loss")
    student, teacher = some_logits(12, 6, seed=2)
    head = some_logits(9, 6, seed=3)[0]
    wide = torch.cat([head, torch.zeros(3, 6)])
    peer = chunked.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False
    )
    labels = torch.zeros(12, dtype=torch.long)
    logits, teacher_logits = student @ head.T, teacher @ wide.T
    theirs = peer(student, head, teacher, wide, labels)
    filled = forward_kl(F.pad(logits, (0, 3)), teacher_logits).mean()
    assert theirs.item() == pytest.approx(filled.item(), rel=1e-4)
    cut = forward_kl(logits, teacher_logits[..., :9]).mean()
    assert abs(cut.item() - theirs.item()) > 0.01
    with pytest.raises(ValueError, match="teacher has 12 logits a token, the student 9"):
        distillation_loss(logits, teacher_logits, labels)


# --- torchtune ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchtune():
    """Its losses alone: the package itself asks for a module that newer torchao has not."""
    found = importlib.util.find_spec("torchtune")
    if found is None or found.origin is None:
        pytest.skip("torchtune is not installed")
    path = Path(found.origin).parent / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("torchtune_kd_losses", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(loss, teacher, labels):
    return lambda x: loss(x.flatten(0, 1), teacher.flatten(0, 1), labels.flatten())


def test_torchtune_reverse_kl(torchtune):
    student, teacher = some_logits(3, 4, 7)
    labels = some_labels(3, 4)
    theirs = with_gradient(flat(torchtune.ReverseKLLoss(), teacher, labels), student)
    options = {"alpha": 1.0, "temperature": 1.0, "divergence": reverse_kl}
    assert_same(
        with_gradient(lambda x: distillation_loss(x, teacher, labels, **options), student), theirs
    )


def test_torchtune_forward_kl_is_a_cross_entropy(torchtune):
    """The same gradient; its value is larger by the teacher's entropy, and not 0 at equality."""
    student, teacher = some_logits(3, 4, 7)
    labels = some_labels(3, 4)
    loss = flat(torchtune.ForwardKLLoss(), teacher, labels)
    value, slope = with_gradient(loss, student)
    options = {"alpha": 1.0, "temperature": 1.0}
    ours = with_gradient(lambda x: distillation_loss(x, teacher, labels, **options), student)
    p = teacher.softmax(-1)
    entropy = masked_mean(-(p * p.log()).sum(-1), labels != -100)
    assert_same(ours, (value - entropy, slope))
    assert loss(teacher).item() == pytest.approx(entropy.item(), rel=1e-4)
    assert distillation_loss(teacher, teacher, labels, **options).item() == pytest.approx(0)


def test_torchtune_nothing_to_learn_has_no_graph(torchtune):
    """`backward()` raises there; ours is a zero that has a graph."""
    student, teacher = some_logits(3, 4, 7)
    labels = torch.full((3, 4), -100)
    leaf = student.requires_grad_()
    assert not flat(torchtune.ForwardKLLoss(), teacher, labels)(leaf).requires_grad
    loss = distillation_loss(leaf, teacher, labels)
    loss.backward()
    assert loss == 0 and (leaf.grad == 0).all()


def test_torchtune_chunks_by_two_rules(torchtune):
    """`chunk` cuts 9 tokens into 3, 3, 3, `tensor_split` into 3, 2, 2, 2; `zip` drops the rest.

    The recipes cut the logits by one rule and the loss cuts the labels by the other. Where the
    lengths agree, chunks change nothing.
    """
    student, teacher = some_logits(2, 9, 7)
    labels = torch.zeros(2, 9, dtype=torch.long)
    labels[:, :3] = -100
    loss = torchtune.ReverseKLWithChunkedOutputLoss(num_output_chunks=4)
    right = distillation_loss(
        student, teacher, labels, alpha=1.0, temperature=1.0, divergence=reverse_kl
    )
    alike = loss(student.chunk(4, dim=1), teacher.chunk(4, dim=1), labels)
    assert alike.item() == pytest.approx(right.item(), rel=1e-5)
    with pytest.raises(RuntimeError, match="must match"):
        loss(student.tensor_split(4, dim=1), teacher.tensor_split(4, dim=1), labels)
