"""The stages of chapter 03: pre-training on all tokens, and fine-tuning on the assistant's turns.

    python experiments/03_stages.py [--sizes student teacher] [--seeds 0 1]

Four ways to train a model of the student's size, of 1,200 steps each: on the desk's turns of many
conversations; the same, after a half that was spent on all tokens; on the desk's turns of a few
conversations; and on those few after pre-training on many. The first is repeated at the teacher's
size, for one seed. Each model is taken at its best evaluation on development visitors, and measured
in test worlds. A run that is in ``experiments/results`` is not made again.
"""

import argparse
import copy
import tempfile
from dataclasses import dataclass

import torch
from recording import Record
from transformers import TrainerCallback

from distillkit.chat import encode_rows
from distillkit.copying import copied_tokens, nll_by_origin
from distillkit.dialogues import front_desk
from distillkit.evaluation import nll, task_success
from distillkit.models import build_model, load_model
from distillkit.optimizers import muon
from distillkit.training import DistillationArguments, DistillationTrainer

BATCH_SIZE = 8
EVALUATIONS = 40  # of a run
DEVELOPMENT, TEST, VISITS = 40, 200, 1000
FEW = 100
STEPS = 1200
LEARNING_RATE = {"student": 5e-3, "teacher": 3e-3}
SPREAD = {"student": None, "teacher": 0.02}  # of the new weights; None: the library's default


@dataclass(frozen=True)
class Stage:
    """A share of the steps, on all tokens or on the assistant's, of many conversations or few."""

    share: float
    all_tokens: bool = False
    few: bool = False


ARMS = {
    "turns": [Stage(1.0)],
    "all, then turns": [Stage(0.5, all_tokens=True), Stage(0.5)],
    "few turns": [Stage(1.0, few=True)],
    "all, then few turns": [Stage(0.5, all_tokens=True), Stage(0.5, few=True)],
}
AT_FULL_SIZE = ("turns",)


class Watch(TrainerCallback):
    """Notes how well copied and other tokens are predicted, and keeps the best weights."""

    def __init__(self, model, tokenizer, every: int):
        self.model, self.tokenizer, self.every = model, tokenizer, every
        self.rows = front_desk(DEVELOPMENT, seed=2, split="development")
        marks = [mark for row in self.rows for mark in copied_tokens(tokenizer, row["messages"])]
        self.share = marks.count(True) / (marks.count(True) + marks.count(False))  # that is copied
        self.curve: list[list[float]] = []
        self.before = 0  # steps of the stages that are over
        self.best: tuple[float, dict] | None = None

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        kinds = nll_by_origin(self.model, self.tokenizer, self.rows)
        value = self.share * kinds["copied"] + (1 - self.share) * kinds["own"]  # the NLL per token
        step = self.before + state.global_step
        self.curve.append([step, *(round(n, 4) for n in (value, kinds["copied"], kinds["own"]))])
        if self.best is None or value < self.best[0]:
            self.best = value, copy.deepcopy(self.model.state_dict())


def train(size: str, arm: str, seed: int, tokenizer) -> dict:
    """Train one model through its stages, and measure it at its best."""
    model = build_model(size, tokenizer, seed=seed, initializer_range=SPREAD[size])
    watch = Watch(model, tokenizer, STEPS // EVALUATIONS)
    rows = encode_rows(tokenizer, front_desk(STEPS * BATCH_SIZE, seed=100 + seed))
    for stage in ARMS[arm]:
        steps = round(stage.share * STEPS)
        start = watch.before * BATCH_SIZE
        part = rows[-FEW:] if stage.few else rows[start : start + steps * BATCH_SIZE]
        if stage.all_tokens:
            part = [row | {"labels": list(row["input_ids"])} for row in part]
        watch.best = None  # of the last stage
        fit(model, tokenizer, part, steps, LEARNING_RATE[size], watch, seed)
        watch.before += steps
    model.load_state_dict(watch.best[1])
    return {"curve": watch.curve, "steps": STEPS, **measure(model.eval(), tokenizer)}


def fit(model, tokenizer, rows, steps: int, rate: float, watch: Watch, seed: int) -> None:
    """One stage: train the model in place."""
    with tempfile.TemporaryDirectory() as folder:
        DistillationTrainer(
            model,
            args=DistillationArguments(
                folder,
                alpha=0.0,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                bucket_by_length=True,
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=seed,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[watch],
            optimizers=muon(model, steps=steps, learning_rate=rate),
        ).train()


def measure(model, tokenizer) -> dict:
    """How the model does in worlds whose names nobody has seen."""
    rows = front_desk(TEST, seed=3, split="test")
    success = task_success(model, tokenizer, visits=VISITS, seed=4)
    return {
        "nll": nll(model, encode_rows(tokenizer, rows)).per_token,
        "by_origin": nll_by_origin(model, tokenizer, rows),
        "success": success.rate,
        "successes": "".join("01"[won] for won in success.successes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SPREAD), choices=list(SPREAD))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(3)))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    _, tokenizer = load_model("front-desk-teacher")
    for size in args.sizes:
        record = Record(f"03_stages.{size}.json")
        for seed in args.seeds if size == "student" else args.seeds[:1]:
            for arm in ARMS if size == "student" else AT_FULL_SIZE:
                record.once(
                    lambda run=(size, arm, seed): train(*run, tokenizer),
                    size=size,
                    arm=arm,
                    seed=seed,
                )


if __name__ == "__main__":
    main()
