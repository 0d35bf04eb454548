"""What chapter 07 writes by hand, taken out of the notebook, beside the library."""

import ast
from random import Random

import pytest
import tiny
import torch

from distillkit.chat import Collator
from distillkit.course.notebooks import ROOT, read_notebook
from distillkit.decoding import generate_replies
from distillkit.losses import reverse_kl
from distillkit.sampling import Sampling
from distillkit.training import DistillationArguments, DistillationTrainer

PLACE = "chapters/07_distilling_generation.ipynb"


@pytest.fixture(scope="module")
def chapter() -> dict:
    """The imports and functions of the notebook, and what they take from its other cells."""
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    tree = ast.Module([], [])
    for cell in read_notebook(ROOT / PLACE).cells:
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            tree.body += [node for node in ast.parse(cell.source).body if isinstance(node, kept)]
    names: dict = {"teacher": tiny.teacher().eval(), "tokenizer": tiny.TOKENIZER}
    exec(compile(tree, PLACE, "exec"), names)
    return names


def prompt_of(row: dict) -> list[int]:
    return row["input_ids"][: next(s for s, label in enumerate(row["labels"]) if label != -100)]


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_the_student_speaks_as_the_library_does(chapter, tau):
    student, speak = tiny.student(), chapter["speak"]
    for key, row in enumerate(tiny.encoded(3)):
        prompt = prompt_of(row)
        ids = speak(student, prompt, tau, Random(f"4/{key}"))
        [reply] = generate_replies(
            student, tiny.TOKENIZER, [prompt], sampling=Sampling(tau, seed=4), keys=[key]
        )
        assert ids == prompt + reply


def test_the_score_is_the_loss_of_the_trainers_step(chapter, tmp_path):
    student, [row] = tiny.student(), tiny.encoded(1)
    prompt = prompt_of(row)
    ids = chapter["speak"](student, prompt, 1.0, Random("0/x"))
    spoken = {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}
    trainer = DistillationTrainer(
        student,
        chapter["teacher"],
        args=DistillationArguments(str(tmp_path), lmbda=1.0, temperature=1.0, use_cpu=True),
        train_dataset=[row],
        processing_class=tiny.TOKENIZER,
        divergence=reverse_kl,
    )
    trainer.on_policy = True
    theirs = trainer.compute_loss(student, Collator(tiny.TOKENIZER)([spoken]))
    ours = chapter["score"](student, ids, len(prompt))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_chances_of_all_replies_are_a_distribution(chapter):
    model = torch.randn(3, 3, dtype=torch.float64).softmax(-1)
    replies = [(a, b) for a in range(3) for b in range(3)]
    chapter["replies"] = replies
    found = chapter["chances"](model)
    assert sum(found).item() == pytest.approx(1.0)
    assert found[5].item() == pytest.approx((model[0, 1] * model[1, 2]).item())
