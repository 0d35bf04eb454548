"""What distillation mends of a cut model: the second table of chapter 08.

    python experiments/08_repair.py [--cuts neurons layers] [--seeds 0 1]

The teacher loses half of its feed-forward neurons, or half of its layers, or half of its weights as
2:4 zeros that stay zero. Then each learns again, 400 steps of eight conversations at a rate that
falls to nothing: from labels, or from the logits of the model that it was cut from. Beside them
stand models in the shapes of the first two that begin from random weights. Every kind of cut and
lesson has two trials of 100 steps (the rate), with a seed that is used for nothing else, chosen by
the NLL of development conversations. A seed draws the order of the conversations, and random
weights.

Of each: NLL and visitors served in test towns, before and after, parameters, and CPU seconds. About
two hours on one core. Each run is written to ``experiments/results/08_repair.CUT.json`` as it ends,
and one that is there is not made again; two processes may work on different cuts.
"""

import argparse
import copy
import tempfile
import time

import torch
from arguments import run_arguments
from recording import Record, served
from remembering import RememberingTeacher

from distillkit.chat import encode_rows
from distillkit.dialogues import front_desk
from distillkit.evaluation import nll, task_success
from distillkit.models import count_parameters, load_model, student_from_layers
from distillkit.optimizers import muon
from distillkit.pruning import (
    KeepZeros,
    NofM,
    SparseGPT,
    layer_nlls,
    most_important,
    prune,
    written_by_heads_and_neurons,
)
from distillkit.training import DistillationTrainer

CUTS = ("neurons", "layers", "2:4", "neurons anew", "layers anew")
LESSONS = {"labels": 0.0, "logits": 0.9}  # α
STEPS, TUNING_STEPS, BATCH_SIZE, DECAY = 400, 100, 8, 0.5
RATES = ({"learning_rate": 1e-3}, {"learning_rate": 5e-3})
TUNING_SEED = 1000
CONVERSATIONS, DATA_SEED = 1600, 100
CALIBRATION, VALIDATION, TEST, VISITS = 64, 60, 200, 400


class Ward:
    """The teacher, what is cut out of it, and the lessons."""

    def __init__(self) -> None:
        self.teacher, self.tokenizer = load_model("front-desk-teacher")
        self.remembering = RememberingTeacher(self.teacher)
        encode, tokenizer = encode_rows, self.tokenizer
        self.lessons = encode(tokenizer, front_desk(CONVERSATIONS, seed=DATA_SEED))
        self.calibration = encode(tokenizer, front_desk(CALIBRATION, seed=800))
        self.validation = encode(tokenizer, front_desk(VALIDATION, seed=2, split="development"))
        self.test = encode(tokenizer, front_desk(TEST, seed=3, split="test"))

    def cut(self, kind: str, seed: int):
        """What is left of the teacher; `anew`: a model of the same shape and random weights."""
        config, depth = self.teacher.config, self.teacher.config.num_hidden_layers
        if kind == "2:4":
            model = copy.deepcopy(self.teacher)
            prune(model, SparseGPT(), NofM(2, 4), self.calibration)
            return model.requires_grad_(True)
        if kind.startswith("neurons"):
            scores = written_by_heads_and_neurons(self.teacher, self.calibration)
            model = student_from_layers(
                self.teacher,
                range(depth),
                scores=scores,
                feed_forward=config.intermediate_size // 2,
            )
        else:
            worth = layer_nlls(self.teacher, self.validation)
            model = student_from_layers(self.teacher, most_important(worth, depth // 2))
        if kind.endswith("anew"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = type(model)(model.config).float()
        return model

    def train(self, kind: str, lesson: str, seed: int, trial: dict, steps: int) -> tuple:
        """The model after its lessons, and what they gave."""
        model, alpha = self.cut(kind, seed), LESSONS[lesson]
        before = nll(model, self.validation).per_token
        trainer = DistillationTrainer(
            model.train(),
            self.remembering if alpha else None,
            args=run_arguments(
                tempfile.mkdtemp(),
                trial,
                alpha=alpha,
                steps=steps,
                batch_size=BATCH_SIZE,
                seed=seed,
                use_cpu=True,
            ),
            train_dataset=self.lessons,
            processing_class=self.tokenizer,
            callbacks=[KeepZeros()] if kind == "2:4" else [],
            optimizers=muon(model, steps=steps, learning_rate=trial["learning_rate"], decay=DECAY),
        )
        began = time.process_time()
        trainer.train()
        return model.eval(), {
            "trial": trial,
            "parameters": count_parameters(model),
            "before": before,
            "best_validation": nll(model, self.validation).per_token,
            "cpu_seconds": round(time.process_time() - began, 1),
        }

    def judge(self, model) -> dict:
        success = task_success(model, self.tokenizer, visits=VISITS, seed=4)
        return {"nll": nll(model, self.test).per_token, **served(success)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="+", default=list(CUTS), choices=CUTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ward = Ward()
    records = {
        kind: Record(f"08_repair.{kind.replace(':', '_').replace(' ', '_')}.json")
        for kind in args.cuts
    }
    for kind, record in records.items():
        if not kind.endswith("anew"):  # what it is worth before anybody mends it
            record.once(
                lambda kind=kind: ward.judge(ward.cut(kind, 0).eval()), cut=kind, lesson="none"
            )
    chosen = {
        (kind, lesson): record.best_trial(
            list(RATES),
            lambda trial, run=(kind, lesson): ward.train(*run, TUNING_SEED, trial, TUNING_STEPS)[1],
            named="tried",
            cut=kind,
            lesson=lesson,
        )
        for kind, record in records.items()
        for lesson in LESSONS
    }

    def fight(kind: str, lesson: str, seed: int) -> dict:
        model, run = ward.train(kind, lesson, seed, chosen[kind, lesson], STEPS)
        return run | ward.judge(model)

    for seed in args.seeds:
        for kind, record in records.items():
            for lesson in LESSONS:
                record.once(
                    lambda run=(kind, lesson, seed): fight(*run),
                    cut=kind,
                    lesson=lesson,
                    seed=seed,
                    trial=chosen[kind, lesson],
                )


if __name__ == "__main__":
    main()
