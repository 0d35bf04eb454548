"""TRL's trainers beside ours on the same conversations: one loss, one gradient where both have one.

Of TRL 1.16's stable trainers two can be compared. `DistillationTrainer` has the teacher's term (on
completions that it samples itself: here it is given ours) and none of the labels; `SFTTrainer` has
the labels' term. `GKDTrainer` is experimental. Run by `make test-peers`.
"""

import copy

import datasets
import pytest
import tiny
import torch
from trainers import make_trainer
from transformers import GPT2Config, GPT2LMHeadModel
from trl import DistillationConfig, SFTConfig, SFTTrainer
from trl import DistillationTrainer as StableTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from distillkit.chat import IGNORE_INDEX, Collator, encode
from distillkit.losses import JensenShannon, forward_kl, reverse_kl

torch.set_num_threads(1)

PLAIN = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
BETAS = {0.0: forward_kl, 0.3: JensenShannon(0.3), 0.5: JensenShannon(0.5), 1.0: reverse_kl}
SINGLE = tiny.dialogues(6, longest=1)
MANY = tiny.dialogues(6, longest=4)


def stable(folder, student, teacher, **settings):
    """Its training data are prompts only; the batches of these tests are given to it."""
    return StableTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(output_dir=str(folder), **PLAIN, **settings),
        train_dataset=datasets.Dataset.from_list([{"prompt": "hello"}]),
        processing_class=copy.deepcopy(tiny.TOKENIZER),
    )


def as_completions(rows):
    """Our rows as what TRL makes of its samples: prompts padded on the left, the rest on the right.

    A conversation of several turns has, as in TRL's loop over tool calls, a mask over what was not
    the student's.
    """
    parts = {"prompt_ids": [], "completion_ids": []}
    masks = {"prompt_mask": [], "completion_mask": [], "tool_mask": []}
    for row in rows:
        first = next(at for at, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
        spoken = [int(label != IGNORE_INDEX) for label in row["labels"]]
        parts["prompt_ids"].append(row["input_ids"][:first])
        masks["prompt_mask"].append([1] * first)
        parts["completion_ids"].append(row["input_ids"][first:])
        masks["completion_mask"].append([1] * (len(row["labels"]) - first))
        masks["tool_mask"].append(spoken[first:])
    inputs = {}
    for name, lists in (parts | masks).items():
        width = max(map(len, lists))
        gaps = [[0] * (width - len(each)) for each in lists]
        left = name.startswith("prompt")
        padded = [gap + each if left else each + gap for gap, each in zip(gaps, lists, strict=True)]
        inputs[name] = torch.tensor(padded)
    return inputs


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_same(ours, theirs, *, times=1.0):
    """(loss, gradients) of both, ours `times` theirs."""
    assert ours[0].item() == pytest.approx(times * theirs[0].item(), rel=2e-5)
    for mine, its in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, times * its, rtol=1e-3, atol=2e-6)


def encoded(rows):
    return [encode(tiny.TOKENIZER, row["messages"]) for row in rows]


def ours(folder, rows, student, teacher, **settings):
    trainer = make_trainer(folder, student, teacher, **settings)
    loss = trainer.compute_loss(student, Collator(tiny.TOKENIZER)(rows))
    return loss, gradients(loss, student)


# --- The teacher's term -------------------------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("rows", [SINGLE, MANY], ids=["one turn", "several turns"])
def test_the_stable_distillation_trainer(tmp_path, beta, temperature, rows):
    """Equal at T = 1. TRL has no T², which keeps the gradient at its size as T grows."""
    student, teacher, rows = tiny.student(), tiny.teacher(), encoded(rows)
    settings = {"alpha": 1.0, "temperature": temperature, "divergence": BETAS[beta]}
    mine = ours(tmp_path, rows, student, teacher, **settings)
    peer = stable(tmp_path, student, teacher, beta=beta, temperature=temperature)
    loss = peer.compute_loss(student, as_completions(rows))
    assert_same(mine, (loss, gradients(loss, student)), times=temperature**2)


@pytest.mark.parametrize("beta", BETAS)
def test_the_experimental_gkd_trainer(tmp_path, beta):
    student, teacher, rows = tiny.student(), tiny.teacher(), encoded(MANY)
    settings = {"alpha": 1.0, "temperature": 1.0, "divergence": BETAS[beta]}
    mine = ours(tmp_path, rows, student, teacher, **settings)
    peer = gkd(tmp_path, student, teacher, beta=beta)
    loss = peer.compute_loss(student, Collator(tiny.TOKENIZER)(rows))
    assert_same(mine, (loss, gradients(loss, student)))


def gkd(folder, student, teacher, **settings):
    return GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(output_dir=str(folder), lmbda=0.0, **PLAIN, **settings),
        train_dataset=datasets.Dataset.from_list(MANY),
        processing_class=copy.deepcopy(tiny.TOKENIZER),
    )


def test_padding_on_the_left_moves_the_logits_of_gpt2_in_trl_and_not_here(tmp_path):
    """TRL passes no positions, so a prompt that is padded is read as if it began later."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=130, n_positions=256, n_embd=16, n_layer=1, n_head=2, initializer_range=0.25,
        bos_token_id=1, eos_token_id=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    student, teacher = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    rows = encoded(SINGLE)
    peer = stable(tmp_path, student, teacher, beta=0.0)
    trainer = make_trainer(tmp_path, student, teacher, alpha=1.0, temperature=1.0)
    tokens = [sum(label != IGNORE_INDEX for label in row["labels"]) for row in rows]
    alone = sum(
        count * peer.compute_loss(student, as_completions([row])).item()
        for count, row in zip(tokens, rows, strict=True)
    ) / sum(tokens)
    for side in ("left", "right"):
        batch = Collator(tiny.TOKENIZER, padding_side=side)(rows)
        assert trainer.compute_loss(student, batch).item() == pytest.approx(alone, rel=1e-5)
    theirs = peer.compute_loss(student, as_completions(rows)).item()
    assert theirs != pytest.approx(alone, rel=1e-3)


# --- The labels' term ---------------------------------------------------------------------------


def test_the_stable_sft_trainer(tmp_path):
    """The template marks what the assistant speaks, and both put a label on each of its tokens."""
    rows = encoded(MANY)
    student = tiny.student()
    mine = ours(tmp_path, rows, student, None)
    peer = SFTTrainer(
        model=student,
        args=SFTConfig(output_dir=str(tmp_path), assistant_only_loss=True, **PLAIN),
        train_dataset=datasets.Dataset.from_list(MANY),
        processing_class=copy.deepcopy(tiny.TOKENIZER),
    )
    batch = peer.data_collator(list(peer.train_dataset))
    expected = Collator(tiny.TOKENIZER)(rows)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["labels"], expected["labels"])
    loss = peer.compute_loss(student, dict(batch))
    assert_same(mine, (loss, gradients(loss, student)))


def test_gkd_has_labels_on_the_last_turn_alone_and_we_on_every_turn(tmp_path):
    peer = gkd(tmp_path, tiny.student(), tiny.teacher())
    for row, labels in zip(MANY, peer.data_collator(MANY)["labels"], strict=True):
        last = labels[labels != IGNORE_INDEX].tolist()
        every = [label for label in encoded([row])[0]["labels"] if label != IGNORE_INDEX]
        assert every[-len(last) :] == last
        assert (len(every) > len(last)) == (len(row["messages"]) > 2)
