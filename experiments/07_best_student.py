"""How far the shipped student can be taken: its share of the teacher's task success, at its size.

    python experiments/07_best_student.py [--arms forward_kl on_policy] [--seeds 0 1]

Every arm goes on from `front-desk-student`, which has read 9,600 conversations three times, and
takes at most twelve CPU minutes. `forward_kl`, `logits_mse` and `labels` meet visitors that nobody
has met, once each; `on_policy` lets the student serve visitors, and the teacher scores what it
said; `mixed` draws lots between the two at every step. The rate rises, stays level and falls in a
line over the last three quarters of the steps, and the student of the last step is the one that is
judged.

The choice is made among `CHOOSE` visitors of development worlds, and the report is about the 1,000
visitors of test worlds that chapters 00 and 04 report about, beside the student as it shipped and
the teacher. So the best arm's number is not the best of several looks at the test. Time is CPU time
of one thread. Results: ``experiments/results/07_best_student.json``.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from arguments import run_arguments
from recording import Record, served
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import encode_rows
from distillkit.dialogues import front_desk
from distillkit.evaluation import nll, task_success
from distillkit.models import count_parameters, load_model
from distillkit.on_policy import WholeVisits
from distillkit.optimizers import muon
from distillkit.sampling import Sampling
from distillkit.settings import divergence_named
from distillkit.training import DistillationTrainer

sys.path.insert(0, str(Path(__file__).parent))
Switching = import_module("07_methods").Switching

BASE, TEACHER = "front-desk-student", "front-desk-teacher"
BATCH_SIZE, DECAY, RATE = 8, 3 / 4, 2.5e-3
VISITORS = 700  # seed of the visitors to train with; those of 00_students.py had 100
CHOOSE, VISITS, TEST = 1000, 1000, 200  # visitors to choose by, to report about; conversations


@dataclass(frozen=True)
class Way:
    """How an arm goes on: steps, divergence, share of the steps on policy, and divergence there."""

    steps: int
    alpha: float = 0.9
    divergence: str = "forward_kl"
    lmbda: float = 0.0
    spoken: str = "forward_kl"
    rate: float = RATE
    batch_size: int = BATCH_SIZE


ARMS = {
    "forward_kl": Way(1400),
    "logits_mse": Way(1400, alpha=0.5, divergence="logits_mse"),
    "on_policy": Way(500, lmbda=1.0, spoken="reverse_kl"),
    "on_policy_jsd": Way(500, lmbda=1.0, spoken="jensen_shannon:0.5"),
    "mixed": Way(700, lmbda=0.5, spoken="reverse_kl"),
    "labels": Way(3000, alpha=0.0),
    "forward_kl_longer": Way(2200),
}


def go_on(
    way: Way,
    seed: int,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict:
    """Train the student further, in place; what that took."""
    first = f"{VISITORS + seed}"
    count = way.steps * way.batch_size
    # A step on policy takes no more from its conversation than that there is one.
    lessons = encode_rows(tokenizer, front_desk(count, seed=VISITORS + seed))
    visitors = [f"{first}/{number}" for number in range(count)]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            student,
            teacher if way.alpha or way.lmbda else None,
            args=run_arguments(
                folder,
                {"alpha": way.alpha, "temperature": 1.0},
                steps=way.steps,
                batch_size=way.batch_size,
                seed=seed,
                lmbda=way.lmbda,
            ),
            train_dataset=lessons,
            processing_class=tokenizer,
            divergence=divergence_named(way.divergence),
            rollout=WholeVisits(tokenizer, visitors, Sampling(seed=seed)) if way.lmbda else None,
            optimizers=muon(student, steps=way.steps, learning_rate=way.rate, decay=DECAY),
        )
        if way.lmbda:
            trainer.divergence = Switching(divergence_named(way.spoken), lambda: trainer.on_policy)
        trainer.train()
    return {
        "steps": way.steps,
        "rate": way.rate,
        "spoken": way.spoken if way.lmbda else None,
        "lmbda": way.lmbda,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """On development visitors, for the choice, and on test visitors, for the report."""
    chosen = task_success(model, tokenizer, visits=CHOOSE, seed=6, split="development")
    success = task_success(model, tokenizer, visits=VISITS, seed=4)
    test = encode_rows(tokenizer, front_desk(TEST, seed=3, split="test"))
    return {
        "parameters": count_parameters(model),
        "development": chosen.rate,
        "nll": nll(model, test).per_token,
        **served(success),
    }


def further(arm: str, seed: int) -> dict:
    """Take the shipped student further by one arm, and measure it."""
    student, tokenizer = load_model(BASE)
    teacher, _ = load_model(TEACHER)
    run = go_on(ARMS[arm], seed, student, teacher, tokenizer)
    return run | measure(student.eval(), tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = Record("07_best_student.json")
    for name in (TEACHER, BASE):
        record.once(lambda name=name: measure(*load_model(name)), arm="as shipped", model=name)
    for seed in args.seeds:
        for arm in args.arms:
            record.once(lambda run=(arm, seed): further(*run), arm=arm, seed=seed)


if __name__ == "__main__":
    main()
