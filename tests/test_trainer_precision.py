"""The trainer in half precision: bf16, fp16 with a scaler, and logits that a half cannot hold."""

import pytest
import tiny
import torch
from trainers import PLAIN_DESCENT, batch_of, make_trainer

from distillkit import training
from distillkit.logits import labelled_positions
from distillkit.losses import distillation_loss, forward_kl, reverse_kl

torch.set_num_threads(1)

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gradient_of_a_step(folder, **options):
    """What the log says of one step of plain descent, and the gradient that it followed."""
    student = tiny.student()
    before = [parameter.detach().clone() for parameter in student.parameters()]
    trainer = make_trainer(folder, student, tiny.teacher(), max_steps=1, **PLAIN_DESCENT, **options)
    trainer.train()
    after = [parameter.detach().cpu() for parameter in student.parameters()]
    gradients = torch.cat([(b - a).flatten() for b, a in zip(before, after, strict=True)])
    return trainer.state.log_history[0], gradients


def assert_close(found, expected):
    """The losses within 0.1 %, the gradients within 5 % (bf16 has eight binary digits)."""
    for name in ("loss", "soft_loss", "hard_loss"):
        assert found[0][name] == pytest.approx(expected[0][name], rel=1e-3)
    assert_close_gradients(found[1], expected[1])


def assert_close_gradients(found, expected):
    assert found.isfinite().all()
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_a_step_in_bf16_is_close_to_one_in_float32(tmp_path):
    exact = gradient_of_a_step(tmp_path)
    assert_close(gradient_of_a_step(tmp_path, bf16=True), exact)


@ON_A_GPU
@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_a_step_in_half_precision_on_a_gpu_is_close_to_one_in_float32(tmp_path, half):
    exact = gradient_of_a_step(tmp_path)
    assert_close(gradient_of_a_step(tmp_path, use_cpu=False, **{half: True}), exact)


# On a CPU accelerate leaves fp16 out without a word and computes in float32, so its two parts stand
# here by themselves: autocast around the loss, and a scaler around the backward pass.


def test_accelerate_computes_in_float32_where_fp16_is_asked_for_on_a_cpu(tmp_path):
    exact = gradient_of_a_step(tmp_path)
    found = gradient_of_a_step(tmp_path, fp16=True)
    assert found[0]["loss"] == exact[0]["loss"]
    assert torch.equal(found[1], exact[1])


def scaled_gradients(trainer, batch, half, scale):
    """The loss under autocast, and the gradients after the scaler has divided them again."""
    model = trainer.model.train()
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with torch.autocast("cpu", dtype=half):
        loss = trainer.compute_loss(model, batch)
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@HALVES
def test_a_scaled_loss_under_autocast_is_close_to_that_in_float32(tmp_path, half):
    trainer = make_trainer(tmp_path, tiny.student(), tiny.teacher())
    batch = batch_of(tiny.encoded(6))
    loss, gradients = scaled_gradients(trainer, batch, half, scale=2.0**10)
    trainer.model.zero_grad()
    exact = trainer.compute_loss(trainer.model, batch)
    exact.backward()
    exact_gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    assert loss == pytest.approx(exact.item(), rel=1e-3)
    assert_close_gradients(gradients, exact_gradients)


@HALVES
def test_a_scaled_batch_with_nothing_to_learn_is_zero(tmp_path, half):
    trainer = make_trainer(tmp_path, tiny.student(), tiny.teacher())
    batch = batch_of(tiny.encoded(3))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss, gradients = scaled_gradients(trainer, batch, half, scale=2.0**16)
    assert loss == 0.0
    assert not gradients.any()


@HALVES
@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl], ids=lambda each: each.name)
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_logits_of_ten_thousand_do_not_overflow(
    tmp_path, monkeypatch, half, divergence, temperature
):
    """In fp16 they do when they are divided by T = 0.1; the sum over a vocabulary does anyway."""
    batch, chance = batch_of(tiny.encoded(3)), torch.Generator().manual_seed(0)
    _, labels = labelled_positions(tiny.student(), batch)
    shape = (len(labels), len(tiny.TOKENIZER))
    q, p = ((1e4 * torch.randn(shape, generator=chance).sign()).to(half) for _ in "qp")
    q[0, :5] = torch.tensor([1e4, 9.99e3, 1e4, -1e4, 0.0])
    student, teacher = tiny.student(), tiny.teacher()
    settings = {"alpha": 0.5, "temperature": temperature, "divergence": divergence}
    trainer = make_trainer(tmp_path, student, teacher, **settings)
    monkeypatch.setattr(training, "logits_at", lambda model, *_: q if model is student else p)
    q.requires_grad_()
    with torch.autocast("cpu", dtype=half):
        loss = trainer.compute_loss(student, batch)
    loss.backward()
    exact = q.detach().double().requires_grad_()
    expected = distillation_loss(exact, p.double(), labels, **settings)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(q.grad, exact.grad.to(half), rtol=1e-2, atol=1e-4)
