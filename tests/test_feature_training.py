"""Features in the trainer: the step's denominator, padding, checkpoints, what is saved."""

import copy

import pytest
import tiny
import torch
from test_features import MATCHES
from test_saving import Interrupt, assert_same_end
from trainers import PLAIN_DESCENT, batch_of, by_hand, make_trainer

from distillkit.chat import Collator
from distillkit.encoders import build_masked_lm, encode_texts, mask_once, train_text_tokenizer
from distillkit.errors import UserError
from distillkit.feature_training import Features
from distillkit.features import After, Attention, Hidden, Relations, hidden_cosine
from distillkit.inside import looking_inside
from distillkit.models import ModelSize, count_parameters, load_model, student_from_layers
from distillkit.optimizers import muon
from distillkit.training import checkpoints_in

torch.set_num_threads(1)


def trainer_with_features(folder, *, dtype=torch.float64, matches=MATCHES, **options):
    student, teacher = tiny.student().to(dtype), tiny.teacher().to(dtype)
    features = Features(student, teacher, matches, seed=3)
    return make_trainer(folder, student, teacher, features=features, **options)


def features_by_hand(trainer, batch):
    """Conversation by conversation, without padding, from transformers' own forward."""
    features, teacher = trainer.features, trainer.teacher
    sums, tokens = [0.0] * len(features.matches), 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask.bool()][None]
        with looking_inside(trainer.model, **features.wanted(0)) as mine:
            trainer.model(ids)
        with torch.no_grad(), looking_inside(teacher, **features.wanted(1)) as its:
            teacher(ids)
        found = features(mine, its, torch.ones_like(ids).bool())
        sums = [total + more for total, more in zip(sums, found, strict=True)]
        tokens += ids.shape[1]
    return sum(m.weight * s / tokens for m, s in zip(features.matches, sums, strict=True))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_they_are_added_to_the_loss(tmp_path, side, alpha):
    trainer = trainer_with_features(tmp_path, alpha=alpha)
    batch = batch_of(tiny.encoded(5), side)
    expected = by_hand(trainer.model, trainer.teacher, batch, alpha=alpha, temperature=2.0)
    expected = expected + features_by_hand(trainer, batch)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item())


def one_step(folder, *, batch_size=8, accumulate=1, side="right"):
    trainer = trainer_with_features(
        folder,
        rows=tiny.encoded(8),
        collator=Collator(tiny.TOKENIZER, padding_side=side),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        **PLAIN_DESCENT | {"learning_rate": 1e-3},
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("cut", [(2, 4, "right"), (1, 8, "left"), (3, 3, "left")], ids=str)
def test_the_step_does_not_depend_on_how_it_is_cut(tmp_path, cut):
    whole = one_step(tmp_path)
    other = one_step(tmp_path, batch_size=cut[0], accumulate=cut[1], side=cut[2])
    for mine, its in ((whole.model, other.model), (whole.features, other.features)):
        for a, b in zip(mine.parameters(), its.parameters(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-10)
    mine, its = whole.state.log_history[0], other.state.log_history[0]
    for name in mine:
        if "loss" in name:
            assert its[name] == pytest.approx(mine[name], rel=1e-5), name
    parts = sum(mine[f"{m.name}"] * m.weight for m in MATCHES)
    assert mine["loss"] == pytest.approx(
        0.5 * mine["soft_loss"] + 0.5 * mine["hard_loss"] + parts, rel=1e-5
    )


def resumable(folder, **options):
    settings = {"max_steps": 10, "bucket_by_length": True, "gradient_accumulation_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    settings |= {"per_device_train_batch_size": 2, "rows": tiny.encoded(16)}
    return trainer_with_features(folder, dtype=torch.float32, **settings | options)


def test_interrupted_and_resumed_it_ends_with_the_same_weights_and_projections(tmp_path):
    whole = resumable(tmp_path / "whole")
    before = copy.deepcopy(whole.features.state_dict())
    whole.train()
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        resumable(folder, callbacks=[Interrupt(8)]).train()
    resumed = resumable(folder)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(whole, resumed)
    for name, mine in whole.features.state_dict().items():
        assert torch.equal(resumed.features.state_dict()[name], mine)
        assert not torch.equal(before[name], mine)


def test_the_saved_student_holds_no_projection_and_is_the_same_again(tmp_path):
    trainer = resumable(tmp_path)
    trainer.train()
    last = checkpoints_in(tmp_path)[-1]
    loaded, _ = load_model(last)
    assert set(loaded.state_dict()) == set(tiny.student().state_dict())
    ids = torch.tensor([[1, 2, 3]])
    trainer.model.eval()
    assert torch.equal(loaded(ids).logits, trainer.model(ids).logits)
    (last / "projections.safetensors").unlink()
    with pytest.raises(UserError, match="made with other features"):
        resumable(tmp_path, max_steps=12).train(resume_from_checkpoint=str(last))


def test_an_optimizer_that_does_not_learn_the_projections_is_refused(tmp_path):
    student, teacher = tiny.student(), tiny.teacher()
    features = Features(student, teacher, MATCHES)
    with pytest.raises(UserError, match="ModuleList"):
        make_trainer(
            tmp_path, student, teacher, features=features,
            optimizers=muon(student, steps=2, learning_rate=1e-3),
        )  # fmt: skip
    both = torch.nn.ModuleList([student, features])
    optimizers = muon(both, steps=2, learning_rate=1e-3)
    before = copy.deepcopy(features.state_dict())
    make_trainer(
        tmp_path, student, teacher, features=features, optimizers=optimizers, max_steps=2
    ).train()
    assert all(not torch.equal(before[name], now) for name, now in features.state_dict().items())


def test_without_a_teacher_they_are_refused(tmp_path):
    features = Features(tiny.student(), tiny.teacher(), MATCHES)
    with pytest.raises(UserError, match="need a teacher"):
        make_trainer(tmp_path, features=features)


HIDDEN = Hidden([(After(1), After(2))])


@pytest.mark.parametrize(
    ("match", "sentence"),
    [
        (Hidden([(0, 0), (1, 2)]), r"pairs of Hidden are .*expected pairs of places"),
        (Hidden([]), "at least one"),
        (Hidden([After(1)]), r"pairs of Hidden are .*expected pairs of places"),
        (Attention([(1, 2, 3)]), r"pairs of Attention are .*expected pairs of layers"),
        (Attention([(After(1), After(2))]), r"pairs of Attention are .*expected pairs of layers"),
        (Hidden([(After(1), After(2))], weight=float("nan")), "the weight of Hidden is nan"),
    ],
    ids=["numbers for places", "nothing", "no pairs", "triples", "places for layers", "no number"],
)
def test_pairs_that_say_nothing_are_refused(match, sentence):
    with pytest.raises(UserError, match=sentence):
        Features(tiny.student(), tiny.teacher(), [match])


@pytest.mark.parametrize(
    "matches", ["hidden", HIDDEN, ["hidden"], [HIDDEN, None], None, iter([HIDDEN])]
)
def test_what_is_no_list_of_matches_is_refused(matches):
    with pytest.raises(UserError, match="expected a list of Hidden, Attention and Relations"):
        Features(tiny.student(), tiny.teacher(), matches)


def test_checkpointing_that_cuts_their_gradient_is_refused(tmp_path):
    options = {"gradient_checkpointing": True, "matches": [HIDDEN]}
    with pytest.raises(UserError, match="use_reentrant"):
        trainer_with_features(
            tmp_path, gradient_checkpointing_kwargs={"use_reentrant": True}, **options
        )
    plain, saving = (
        trainer_with_features(tmp_path, max_steps=1, **PLAIN_DESCENT, **more)
        for more in ({"matches": [HIDDEN]}, options)
    )
    plain.train(), saving.train()
    for mine, its in zip(plain.model.parameters(), saving.model.parameters(), strict=True):
        torch.testing.assert_close(mine, its)


def test_projections_are_clipped_with_the_student(tmp_path):
    descent = PLAIN_DESCENT | {"max_grad_norm": 1e-3, "max_steps": 1}
    trainer = trainer_with_features(tmp_path, matches=[HIDDEN], **descent)
    both = torch.nn.ModuleList([trainer.model, trainer.features])
    before = [weight.detach().clone() for weight in both.parameters()]
    trainer.train()
    steps = [new - old for new, old in zip(both.parameters(), before, strict=True)]
    length = torch.stack([step.norm() for step in steps]).norm()
    assert length.item() == pytest.approx(1e-3, rel=1e-3)
    assert all(step.any() for step in steps)


@pytest.mark.parametrize("before", [[HIDDEN], None], ids=["others", "none"])
def test_a_checkpoint_of_other_features_is_refused(tmp_path, before):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    if before is None:
        make_trainer(tmp_path, teacher=tiny.teacher(), **options).train()
    else:
        trainer_with_features(tmp_path, matches=before, **options).train()
    others = [Relations([(1, 2)], heads=2), HIDDEN]
    resumed = trainer_with_features(tmp_path, matches=others, **options | {"max_steps": 2})
    with pytest.raises(UserError, match="was made with other features"):
        resumed.train(resume_from_checkpoint=True)
    if before is not None:
        plain = make_trainer(tmp_path, teacher=tiny.teacher(), **options | {"max_steps": 2})
        with pytest.raises(UserError, match="those of this run none"):
            plain.train(resume_from_checkpoint=True)


# --- Encoders -----------------------------------------------------------------------------------

TEXTS = ["a cheap hotel please", "book it", "two nights in the north, and a train on sunday", "no"]


def masked_lm_trainer(folder, **options):
    """DistilBERT's recipe in small: every other layer of the teacher, three losses."""
    tokenizer = train_text_tokenizer(TEXTS, vocab_size=300)
    teacher = build_masked_lm(ModelSize(16, 4, 2, 24), tokenizer, dropout=0.0).double()
    student = student_from_layers(teacher, [0, 2])
    matches = [
        Hidden([(After(2, normed=True), After(4, normed=True))], loss=hidden_cosine),
        Hidden([(After(1), After(2))]),
        Attention([(1, 2)]),
        Relations([(2, 4)], heads=4),
    ]
    features = Features(student, teacher, matches)
    rows = mask_once(tokenizer, encode_texts(tokenizer, TEXTS), seed=1)
    return make_trainer(
        folder,
        student,
        teacher,
        rows=rows,
        features=features,
        processing_class=tokenizer,
        teacher_tokenizer=tokenizer,
        **options,
    )


def test_encoders_do_not_see_padding(tmp_path):
    trainer = masked_lm_trainer(tmp_path)
    batch = trainer.data_collator(trainer.train_dataset)
    whole = trainer.compute_loss(trainer.model, batch)
    labelled = (batch["labels"] != -100).any(dim=1)
    assert labelled.any()
    expected = features_by_hand(trainer, {name: value[labelled] for name, value in batch.items()})
    student, teacher = trainer.model, trainer.teacher
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    at = batch["labels"] != -100
    p, q = (model(**inputs).logits[at] / 2.0 for model in (teacher, student))
    soft = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean() * 4.0
    hard = torch.nn.functional.cross_entropy(2.0 * q, batch["labels"][at])
    assert whole.item() == pytest.approx((0.5 * soft + 0.5 * hard + expected).item(), rel=1e-9)


def test_an_encoder_of_every_other_layer_trains_and_comes_back(tmp_path):
    trainer = masked_lm_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=3)
    assert count_parameters(trainer.model) < count_parameters(trainer.teacher)
    before = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] < before
    loaded = type(trainer.model).from_pretrained(tmp_path / "checkpoint-3").double().eval()
    ids = torch.tensor([[2, 9, 8, 3]])
    trainer.model.eval()
    torch.testing.assert_close(loaded(ids).logits, trainer.model(ids).logits)
