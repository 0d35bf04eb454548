"""On-policy steps: what the student says, what of it is counted, and what does not matter."""

import copy
import math
from random import Random

import hub_models
import pytest
import tiny
import torch
from trainers import PLAIN_DESCENT, batch_of, by_hand, make_trainer

from distillkit.chat import IGNORE_INDEX, encode_rows
from distillkit.decoding import generate_replies
from distillkit.encoders import build_masked_lm, encode_texts, train_text_tokenizer
from distillkit.errors import UserError
from distillkit.losses import ReverseKL
from distillkit.models import ModelSize, build_model, load_model
from distillkit.on_policy import OneTurn, WholeVisits, is_on_policy
from distillkit.sampling import Sampling
from distillkit.settings import Settings

torch.set_num_threads(1)

END = tiny.TOKENIZER.eos_token_id
SPEAKING = {"lmbda": 1.0, "max_reply_tokens": 12}


def talks(*replies):
    turns = [{"role": "user", "content": "book the cheap hotel"}]
    return encode_rows(
        tiny.TOKENIZER,
        [{"messages": [*turns, {"role": "assistant", "content": said}]} for said in replies],
    )


def on_policy_log(folder, rows=None, **options):
    """The log and the student of three on-policy steps in float64."""
    trainer = make_trainer(
        folder,
        tiny.student().double(),
        tiny.teacher().double(),
        rows=rows,
        **{
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            **PLAIN_DESCENT,
            **SPEAKING,
            **options,
        },
    )
    trainer.train()
    return trainer


# --- Sampling -----------------------------------------------------------------------------------


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([0.3, 1.7, -0.2, 0.9]).repeat(40_000, 1)
    sampling = Sampling(temperature=1.5)
    stream = sampling.stream(0)
    drawn = torch.tensor(sampling.draw(logits, [stream] * len(logits)))
    expected = (logits[0] / 1.5).softmax(0)
    torch.testing.assert_close(drawn.bincount() / len(drawn), expected, atol=0.01, rtol=0)


def test_top_p_keeps_the_fewest_tokens_that_have_that_mass():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().repeat(5_000, 1)
    for top_p, kept in (
        (0.4, {1}),
        (0.5, {1}),
        (0.6, {1, 3}),
        (0.8, {1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ):
        sampling = Sampling(top_p=top_p)
        assert set(sampling.draw(logits, [sampling.stream(0)] * len(logits))) == kept


def test_tokens_that_cannot_occur_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(500, 1)
    sampling = Sampling()
    assert set(sampling.draw(logits, [sampling.stream(0)] * 500)) == {1}


@pytest.mark.parametrize("row", [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3])
def test_a_model_that_has_diverged_is_named(row):
    with pytest.raises(UserError, match="diverged"):
        Sampling().draw(torch.tensor([[0.0, 1.0, 2.0], row]), [Random(0), Random(1)])


@pytest.mark.parametrize("streams", [0, 1, 3])
def test_each_row_needs_a_stream_of_its_own(streams):
    with pytest.raises(UserError, match=f"{streams} streams of random numbers for 2 rows"):
        Sampling().draw(torch.zeros(2, 3), [Random(0)] * streams)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_a_sampling_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError):
        Sampling(**wrong)


def test_a_sampled_reply_depends_neither_on_its_neighbours_nor_on_threads():
    model = tiny.teacher()
    prompts = [row["input_ids"][: 4 + number] for number, row in enumerate(tiny.encoded(9))]
    options = {"sampling": Sampling(seed=3), "max_reply_tokens": 15}
    whole = generate_replies(model, tiny.TOKENIZER, prompts, **options)
    assert whole != generate_replies(model, tiny.TOKENIZER, prompts, max_reply_tokens=15)
    assert generate_replies(model, tiny.TOKENIZER, prompts, batch_size=2, **options) == whole
    alone = [
        generate_replies(model, tiny.TOKENIZER, [prompt], keys=[number], **options)[0]
        for number, prompt in enumerate(prompts)
    ]
    assert alone == whole
    torch.set_num_threads(2)
    try:
        assert generate_replies(model, tiny.TOKENIZER, prompts, **options) == whole
    finally:
        torch.set_num_threads(1)


# --- Rollouts -----------------------------------------------------------------------------------


def test_one_turn_goes_on_from_the_true_history_to_the_first_end_of_turn():
    batch, student = batch_of(tiny.encoded(30), side="left"), tiny.student()
    rows = OneTurn(tiny.TOKENIZER, Sampling(), max_reply_tokens=90)(student, batch, step=5)
    ended = 0
    for row, mask, ids, labels in zip(
        rows, batch["attention_mask"].bool(), batch["input_ids"], batch["labels"], strict=True
    ):
        true, spoken = ids[mask].tolist(), labels[mask].tolist()
        start = row["labels"].count(IGNORE_INDEX)
        reply = row["input_ids"][start:]
        assert row["input_ids"][:start] == true[:start] and row["labels"][start:] == reply
        assert spoken[start] != IGNORE_INDEX and spoken[start - 1] == IGNORE_INDEX
        assert END not in reply[:-1] and 1 <= len(reply) <= 90
        ended += reply[-1] == END
    assert ended > 5  # so that the lines above have been tried


def test_the_turn_is_another_one_in_another_step():
    batch, student = batch_of(tiny.encoded(30)), tiny.student()
    rollout = OneTurn(tiny.TOKENIZER, Sampling(), max_reply_tokens=2)
    lengths = [
        [r["labels"].count(IGNORE_INDEX) for r in rollout(student, batch, s)] for s in (0, 1)
    ]
    assert lengths[0] != lengths[1]


def test_generation_is_in_eval_mode_and_leaves_the_mode_as_it_was():
    student, batch, modes = tiny.student(), batch_of(tiny.encoded(2)), []
    student.register_forward_hook(lambda *_: modes.append(student.training))
    student.train()
    OneTurn(tiny.TOKENIZER, Sampling(), max_reply_tokens=3)(student, batch, 0)
    assert not any(modes) and student.training


def test_whole_visits_hold_what_the_student_read_and_said():
    student, tokenizer = load_model("front-desk-student")
    rollout = WholeVisits(tokenizer, [], Sampling(seed=1))
    visitors = ["100/0", "100/1", "100/2"]
    rows = rollout.serve(student, visitors, visitors)
    assert len(rows) >= 3
    for row in rows:
        pairs = list(zip(row["input_ids"], row["labels"], strict=True))
        assert all(label in (token, IGNORE_INDEX) for token, label in pairs)
        assert row["labels"].count(tokenizer.eos_token_id) >= 1
    alone = rollout.serve(student, visitors[1:2], visitors[1:2])
    assert alone and all(row in rows for row in alone)


# --- In the trainer -----------------------------------------------------------------------------


def test_the_loss_does_not_depend_on_the_reference_answer(tmp_path):
    logs = []
    for said in ("yes", "please book two nights in the cheap hotel in the north please " * 8):
        trainer = on_policy_log(tmp_path, talks(*[said] * 4))
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logs[0] == logs[1] and len(logs[0]) == 3 and min(logs[0]) > 0


def test_the_loss_is_the_divergence_on_the_students_words(tmp_path):
    rows, student = tiny.encoded(4), tiny.student().double()
    rollout = OneTurn(tiny.TOKENIZER, Sampling(seed=42), 12)  # the trainer's seed
    written = batch_of(rollout(copy.deepcopy(student), batch_of(rows), step=0))
    settings = {"temperature": 2.0, "divergence": ReverseKL()}
    expected = by_hand(student, tiny.teacher().double(), written, alpha=1.0, **settings)
    trainer = on_policy_log(tmp_path, rows, alpha=0.3, **settings)
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert first["on_policy_loss"] == first["loss"] and "hard_loss" not in first


def test_the_sampling_temperature_does_not_enter_the_loss(tmp_path):
    """With top_p near 0 the words are the same at any sampling temperature, and so is the loss."""
    losses = [
        on_policy_log(
            tmp_path, tiny.encoded(4), sampling_temperature=T, sampling_top_p=1e-9
        ).state.log_history[0]["loss"]
        for T in (0.5, 1.0, 3.0)
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("cut", [{"gradient_accumulation_steps": 2}, {"bucket_by_length": True}])
def test_an_on_policy_step_does_not_depend_on_how_it_is_cut(tmp_path, cut):
    rows = tiny.encoded(4)
    whole = on_policy_log(tmp_path, rows)
    size = 4 // cut.get("gradient_accumulation_steps", 1)
    pieces = on_policy_log(tmp_path, rows, **{**cut, "per_device_train_batch_size": size})
    for mine, its in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


def test_the_share_of_on_policy_steps(tmp_path):
    options = {"lmbda": 0.4, "max_steps": 12, "off_policy_steps": 4}
    trainer = make_trainer(
        tmp_path, teacher=tiny.teacher(), logging_steps=1, max_reply_tokens=4, **options
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = ["on_policy_loss" in entry for entry in logs]
    assert found == [step >= 4 and is_on_policy(0.4, 42, step) for step in range(12)]
    assert 0 < sum(found) < 8
    assert all(("hard_loss" in entry) != on for entry, on in zip(logs, found, strict=True))
    assert not trainer.on_policy


def test_without_teacher_or_tokenizer_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="teacher"):
        make_trainer(tmp_path, lmbda=0.5)
    for wrong in ({"lmbda": 1.5}, {"alpha_end": -0.1}, {"temperature_end": 0.0}):
        with pytest.raises(UserError):
            make_trainer(tmp_path, teacher=tiny.teacher(), **wrong)


def test_a_rollout_of_ones_own_needs_a_teacher_too(tmp_path):
    rollout = OneTurn(tiny.TOKENIZER, Sampling(), 8)
    with pytest.raises(UserError, match="need a teacher"):
        make_trainer(tmp_path, rollout=rollout, lmbda=0.5)


def test_nobody_to_serve_is_refused():
    nobody = WholeVisits(tiny.TOKENIZER, [], Sampling())
    with pytest.raises(UserError, match="no visitors"):
        nobody(tiny.student(), batch_of(talks("yes")), step=0)


def test_a_student_that_cannot_speak_is_refused(tmp_path):
    tokenizer = train_text_tokenizer(tiny.WORDS)
    size, tokenizers = ModelSize(8, 1, 2, 16), {"processing_class": tokenizer}
    student, teacher = (build_masked_lm(size, tokenizer, seed=seed) for seed in (0, 1))
    rows = encode_texts(tokenizer, ["cheap hotel", "book two nights"])
    with pytest.raises(UserError, match="masked language model: conversations need"):
        make_trainer(tmp_path, student, teacher, rows=rows, lmbda=0.5, **tokenizers)


def test_a_student_whose_head_is_wider_says_nothing_that_the_tokenizer_lacks(tmp_path):
    teacher, its_tokenizer = load_model(hub_models.qwen2(tmp_path / "teacher"))
    wider = hub_models.qwen2(tmp_path / "wide", vocab_size=len(its_tokenizer) + 300)
    student, tokenizer = load_model(wider)
    options = {"processing_class": tokenizer, "teacher_tokenizer": its_tokenizer} | SPEAKING
    rows = encode_rows(tokenizer, tiny.dialogues(8))
    make_trainer(tmp_path, student, teacher, rows=rows, max_steps=2, **options).train()


@pytest.mark.parametrize("wrong", [{"max_reply_tokens": 0}, {"temperature": math.inf}])
def test_numbers_that_make_no_sense_are_refused_before_the_first_step(tmp_path, wrong):
    with pytest.raises(UserError, match="give"):
        make_trainer(tmp_path, teacher=tiny.teacher(), **wrong)


@pytest.mark.parametrize("steps", [50, 2])
def test_a_student_that_would_never_speak_is_refused(tmp_path, steps):
    never = {"lmbda": 0.5, "off_policy_steps": steps}
    with pytest.raises(UserError, match=f"never speak: off_policy_steps is {steps}"):
        make_trainer(tmp_path, teacher=tiny.teacher(), max_steps=2, **never)
    with pytest.raises(UserError, match="never speak"):
        Settings(steps=2, **never)
    assert Settings(steps=steps + 1, **never) and Settings(steps=2, off_policy_steps=steps)


def test_epochs_in_which_the_student_would_never_speak_are_refused(tmp_path):
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "max_reply_tokens": 3}
    options |= {"rows": tiny.encoded(8), "lmbda": 1.0}  # four steps
    with pytest.raises(UserError, match="a run of 4 steps"):
        make_trainer(tmp_path, teacher=tiny.teacher(), off_policy_steps=4, **options).train()
    make_trainer(tmp_path, teacher=tiny.teacher(), off_policy_steps=3, **options).train()


def test_a_number_of_steps_below_0_is_refused(tmp_path):
    with pytest.raises(UserError, match="off_policy_steps is -1"):
        make_trainer(tmp_path, off_policy_steps=-1)


@pytest.mark.parametrize("whole", [False, True])
def test_a_step_in_which_nobody_finds_room_to_speak_is_refused(tmp_path, whole):
    student = build_model(tiny.STUDENT, tiny.TOKENIZER, max_positions=200)
    rollout = WholeVisits(tiny.TOKENIZER, ["0/1"], Sampling(), 198) if whole else None
    options = {"rollout": rollout, "lmbda": 1.0, "max_reply_tokens": 198, "max_steps": 1}
    trainer = make_trainer(tmp_path, student, tiny.teacher(), **options)
    with pytest.raises(UserError, match="says nothing in it: beside a reply of 198 tokens"):
        trainer.train()


def test_one_conversation_without_room_does_not_stop_the_others(tmp_path):
    student = build_model(tiny.STUDENT, tiny.TOKENIZER, max_positions=200)
    row = tiny.encoded(1)[0]
    start = row["labels"].count(IGNORE_INDEX) + 160
    long = {"input_ids": [9] * start + row["input_ids"]}
    long["labels"] = [IGNORE_INDEX] * start + row["labels"]
    trainer = make_trainer(
        tmp_path,
        student,
        tiny.teacher(),
        rows=[long, *talks("yes")],
        **{"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 2, **SPEAKING},
    )
    trainer.train()
    assert trainer.state.log_history[0]["on_policy_loss"] > 0


def test_a_reply_as_long_as_the_positions_is_refused_before_the_first_step(tmp_path):
    student = build_model(tiny.STUDENT, tiny.TOKENIZER, max_positions=200)
    for most in (200, 5000):
        with pytest.raises(UserError, match=f"max_reply_tokens is {most}, .* at most 199"):
            make_trainer(tmp_path, student, tiny.teacher(), lmbda=1.0, max_reply_tokens=most)
        for prompts in ([], [[5, 6]]):
            with pytest.raises(UserError, match=f"max_reply_tokens is {most}"):
                generate_replies(student, tiny.TOKENIZER, prompts, max_reply_tokens=most)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"max_reply_tokens": 0}])
def test_decoding_without_room_is_refused(wrong):
    with pytest.raises(UserError, match="at least 1"):
        generate_replies(tiny.student(), tiny.TOKENIZER, [[5, 6]], **wrong)
    with pytest.raises(UserError, match="empty"):
        generate_replies(tiny.student(), tiny.TOKENIZER, [[5, 6], []])


def test_on_policy_training_resumes_exactly(tmp_path):
    options = {"max_steps": 6, "lmbda": 0.5, "max_reply_tokens": 6, "rows": tiny.encoded(8)}
    options |= {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(tmp_path / "a", teacher=tiny.teacher(), **options)
    whole.train()
    resumed = make_trainer(tmp_path / "b", tiny.student(5), tiny.teacher(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for mine, its in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_schedules_are_lines_and_are_logged(tmp_path):
    options = {"alpha": 0.2, "alpha_end": 1.0, "temperature": 4.0, "temperature_end": 1.0}
    trainer = make_trainer(
        tmp_path, teacher=tiny.teacher(), max_steps=5, logging_steps=1, **options
    )
    seen = []
    divergence = trainer.divergence
    trainer.divergence = lambda q, p, T: (seen.append(T), divergence(q, p, T))[1]
    trainer.divergence.__dict__["temperature_power"] = 2
    trainer.train()
    assert seen == pytest.approx([4.0, 3.25, 2.5, 1.75, 1.0])
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, alpha in zip(logs[:-1], (0.2, 0.4, 0.6, 0.8), strict=True):
        parts = alpha * entry["soft_loss"] + (1 - alpha) * entry["hard_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)
    assert logs[-1]["loss"] == pytest.approx(logs[-1]["soft_loss"]) and "hard_loss" not in logs[-1]
    assert logs[-1]["alpha"] == 1.0 and logs[-1]["temperature"] == 1.0
