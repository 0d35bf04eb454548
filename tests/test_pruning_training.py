"""Zeros that stay zero while a model learns, in the course's trainer and in transformers' own."""

import copy

import pytest
import tiny
import torch
from trainers import make_trainer
from transformers import Trainer, TrainingArguments

from distillkit.chat import Collator
from distillkit.pruning import KeepZeros, Magnitude, NofM, Unstructured, prune, zeros_of


def pruned_student(pattern=None):
    model = tiny.student()
    return model, prune(model, Magnitude(), pattern or NofM(2, 4))


def trained(folder, model, *callbacks, resume=False, **options):
    settings = {"max_steps": 4, "lr_scheduler_type": "constant", "weight_decay": 0.1} | options
    trainer = make_trainer(folder, model, tiny.teacher(), callbacks=list(callbacks), **settings)
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_without_it_the_zeros_are_gone_after_a_step(tmp_path):
    model, masks = pruned_student()
    assert masks.sparsity == 0.5
    trained(tmp_path, model, max_steps=1)
    assert zeros_of(model).sparsity < 0.01


@pytest.mark.parametrize("given", [True, False], ids=["masks", "the model's own zeros"])
def test_with_it_they_stay_and_the_rest_learns(tmp_path, given):
    model, masks = pruned_student(Unstructured(0.6))
    before = copy.deepcopy(model)
    trained(tmp_path, model, KeepZeros(masks if given else None))
    for name, mask in masks.keep.items():
        weight, old = model.get_submodule(name).weight, before.get_submodule(name).weight
        assert (weight[~mask] == 0).all(), name
        assert ((weight != old) == mask).float().mean() > 0.99, name
    embeddings = model.get_input_embeddings().weight
    assert not torch.equal(embeddings, before.get_input_embeddings().weight)


def test_masks_that_the_model_lacks_are_applied_before_the_first_step(tmp_path):
    model, masks = tiny.student(), pruned_student()[1]
    trained(tmp_path, model, KeepZeros(masks), max_steps=1)
    assert zeros_of(model).sparsity == pytest.approx(0.5, abs=0.001)


def test_they_stay_through_a_checkpoint_and_its_resumption(tmp_path):
    straight, masks = pruned_student()
    trained(tmp_path / "straight", straight, KeepZeros(masks))

    stopped, _ = pruned_student()
    saving = {"save_strategy": "steps", "save_steps": 2}
    trained(tmp_path / "resumed", stopped, KeepZeros(), max_steps=2, **saving)
    resumed = tiny.student(seed=5)  # what it was does not matter: the checkpoint is loaded
    trained(tmp_path / "resumed", resumed, KeepZeros(), resume=True, **saving)

    for name, mask in masks.keep.items():
        assert torch.equal(resumed.get_submodule(name).weight != 0, mask), name
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_it_works_in_the_trainer_of_transformers(tmp_path):
    model, masks = pruned_student()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows, collator = tiny.encoded(8), Collator(tiny.TOKENIZER)
    Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        callbacks=[KeepZeros(masks)],
    ).train()
    assert all(
        torch.equal(model.get_submodule(name).weight != 0, mask)
        for name, mask in masks.keep.items()
    )


def test_masks_are_applied_in_a_loop_of_ones_own():
    model, masks = pruned_student()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    masks.apply(model)
    assert all(
        torch.equal(model.get_submodule(name).weight != 0, mask)
        for name, mask in masks.keep.items()
    )
