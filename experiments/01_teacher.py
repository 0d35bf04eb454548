"""Train the front desk's tokenizer and teacher, and put them into distillkit/checkpoints.

    python experiments/01_teacher.py [--work build/teacher]

It is trained in two rounds: the second begins with the weights of the first, with conversations
that it has not met and the learning rate up again. Matrices are trained with Muon, the rest with
AdamW. It goes on where it was stopped, and ends with ``experiments/results/01_teacher.json``.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from recording import Record
from shipping import ship
from transformers import TrainerState

from distillkit.chat import encode_rows, train_tokenizer
from distillkit.dialogues import front_desk
from distillkit.evaluation import calibration_error, nll, task_success
from distillkit.models import build_model, count_parameters
from distillkit.optimizers import muon
from distillkit.training import DistillationArguments, DistillationTrainer, checkpoints_in
from distillkit.truth import floor

VOCABULARY = 1024
BATCH_SIZE = 8


@dataclass(frozen=True)
class Round:
    """Steps of a batch each, the seed of their conversations, and how the learning rate goes."""

    steps: int
    seed: int
    learning_rate: float
    decay: float  # the share of the steps in which the rate falls


ROUNDS = (
    Round(2400, seed=1, learning_rate=3e-3, decay=0.4),
    Round(3600, seed=11, learning_rate=3e-3, decay=0.8),
)
CARD = """\
The teacher of the course: {parameters:,} parameters, trained from scratch on {rows:,} simulated
conversations. In towns that it has never seen it serves {success:.1%} of 1,000 visitors to their
satisfaction (95 % interval {low:.1%} to {high:.1%}); its NLL there is {nll:.3f} nats per assistant
token, where the truth's own is {floor:.3f}. Made by `experiments/01_teacher.py`."""


def train(model, tokenizer, plan: Round, work: Path) -> list[dict]:
    """Train the model on the labels of a round's conversations; what its training logged."""
    arguments = DistillationArguments(
        output_dir=str(work),
        alpha=0.0,
        max_steps=plan.steps,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=20,
        bucket_by_length=True,
        max_grad_norm=1.0,
        eval_strategy="steps",
        eval_steps=400,
        logging_steps=100,
        save_steps=400,
        save_total_limit=1,
        disable_tqdm=True,
        seed=0,
    )
    trainer = DistillationTrainer(
        model,
        args=arguments,
        train_dataset=encode_rows(tokenizer, front_desk(plan.steps * BATCH_SIZE, seed=plan.seed)),
        eval_dataset=encode_rows(tokenizer, front_desk(120, seed=1, split="development")),
        processing_class=tokenizer,
        optimizers=muon(
            model, steps=plan.steps, learning_rate=plan.learning_rate, decay=plan.decay
        ),
    )
    done = checkpoints_in(work)
    if done and done[-1].name == f"checkpoint-{plan.steps}":
        saved = type(model).from_pretrained(done[-1]).state_dict()
        model.load_state_dict(saved)
        trainer.state = TrainerState.load_from_json(str(done[-1] / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)
    return trainer.state.log_history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=Path("build/teacher"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = train_tokenizer(front_desk(6000, seed=ROUNDS[0].seed), VOCABULARY)
    model = build_model("teacher", tokenizer, seed=0, initializer_range=0.02)
    record = Record("01_teacher.json")
    if record.runs:
        print(f"{record.path.name} is there: remove it to train the teacher anew")
        return
    curve: list[dict] = []
    steps = 0
    for number, plan in enumerate(ROUNDS, 1):
        history = train(model, tokenizer, plan, args.work / f"round-{number}")
        curve += [entry | {"step": entry["step"] + steps} for entry in history]
        steps += plan.steps
    measures = measure(model.eval(), tokenizer)
    count = steps * BATCH_SIZE
    card = CARD.format(parameters=count_parameters(model), rows=count, **measures)
    size = ship(model, tokenizer, "front-desk-teacher", card)
    record.runs[:] = [{"size": "teacher", "steps": steps, "conversations": count}]
    record.runs[0] |= {"parameters": count_parameters(model), "bytes": size}
    record.runs[0] |= {**measures, "curve": curve}
    record.write()


def measure(model, tokenizer) -> dict:
    """How the teacher does in worlds that it has never seen, and how near it comes to the truth."""
    rows = front_desk(200, seed=3, split="test")
    encoded = encode_rows(tokenizer, rows)
    success = task_success(model, tokenizer, visits=1000, seed=4)
    low, high = success.interval()
    return {
        "nll": nll(model, encoded).per_token,
        "floor": floor(tokenizer, rows).nll.per_token,
        "calibration_error": calibration_error(model, encoded).error,
        "success": success.rate,
        "low": low,
        "high": high,
        "failures": dict(success.failures.most_common()),
    }


if __name__ == "__main__":
    main()
