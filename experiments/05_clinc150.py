"""CLINC150 (chapter 05): teacher → student on real intents, against labels and label smoothing.

    python experiments/05_clinc150.py [--data FOLDER] [--seeds 0 1 2] [--sizes 1510 15100]

FOLDER holds intents_clinc150.{train,validation,test}.jsonl (Larson et al. 2019, CC BY 3.0: see
experiments/REAL_DATA.md). All models are BERT-style encoders from random weights, on a tokenizer
made of the training texts. The teacher learns from all 15,100 labels. A student learns from the
first 1,510 texts or from all. Every arm gets four tuning trials at each size, with a seed that is
used for nothing else; the best validation NLL decides, and each student is judged at its own best
validation checkpoint. In the arm ``unlabelled`` the student reads all texts and no label: it learns
from the teacher alone. A run that stands in ``experiments/results/05_clinc150.json`` is not made
again.
"""

import argparse
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

import torch
from arguments import at_its_best, run_arguments
from recording import Record
from transformers import EarlyStoppingCallback

from distillkit.classification import classify
from distillkit.dialogues.intents import intents_of, load_intents
from distillkit.encoders import build_classifier, encode_intents, train_text_tokenizer
from distillkit.models import ModelSize, count_parameters, load_model, save_model
from distillkit.optimizers import muon
from distillkit.training import DistillationTrainer

DATA = Path(__file__).parents[2] / "shared" / "data"
FILE = "intents_clinc150.{split}.jsonl"
VOCABULARY = 3000
TEACHER = ModelSize(width=192, layers=3, heads=6, feed_forward=512)
STUDENT = ModelSize(width=64, layers=2, heads=4, feed_forward=128)
SIZES = (1510, 15100)
STEPS = {"teacher": 2000, "student": 1000}
BATCH_SIZE, EVALUATIONS, PATIENCE = 32, 10, 3
TUNING_SEED = 1000
TEACHER_TRIAL = {"learning_rate": 2e-3, "smoothing": 0.1}
BY_LABELS = [{"learning_rate": rate, "dropout": drop} for rate in (5e-3, 2e-3) for drop in (0.1, 0)]
BY_TEACHER = [
    {"learning_rate": 5e-3, "dropout": drop, "alpha": alpha, "temperature": temperature}
    for drop, alpha, temperature in ((0, 0.9, 2.0), (0, 0.9, 4.0), (0.1, 0.9, 2.0), (0, 0.5, 2.0))
]
TRIALS: dict[str, list[dict]] = {
    "labels": BY_LABELS,
    "smoothing": [{**trial, "smoothing": 0.1} for trial in BY_LABELS],
    "distilled": BY_TEACHER,
    "unlabelled": [{**trial, "alpha": 1.0} for trial in BY_TEACHER[:3]]
    + [{**BY_TEACHER[0], "alpha": 1.0, "temperature": 1.0}],
}


class Classroom:
    """The texts, their tokenizer, and the teacher."""

    def __init__(self, data: Path, work: Path):
        rows = {
            split: load_intents(data / FILE, split=split)
            for split in ("train", "validation", "test")
        }
        self.names = intents_of(rows["train"])
        self.tokenizer = train_text_tokenizer([row["text"] for row in rows["train"]], VOCABULARY)
        self.encoded = {
            split: encode_intents(self.tokenizer, each, self.names) for split, each in rows.items()
        }
        self.work = work

    def train(self, shape: ModelSize, size: int, seed: int, trial: dict, teacher=None) -> tuple:
        """A model at its best validation checkpoint, and what its training gave."""
        model = build_classifier(
            shape, self.tokenizer, self.names, seed=seed, dropout=trial.get("dropout", 0.1)
        )
        steps = STEPS["teacher" if shape is TEACHER else "student"]
        folder = Path(tempfile.mkdtemp(prefix="clinc150-"))
        arguments = run_arguments(
            folder,
            trial,
            steps=steps,
            batch_size=BATCH_SIZE,
            seed=seed,
            use_cpu=True,
            **at_its_best(steps // EVALUATIONS, 4 * BATCH_SIZE),
        )
        trainer = DistillationTrainer(
            model,
            teacher,
            args=arguments,
            train_dataset=self.encoded["train"][:size],
            eval_dataset=self.encoded["validation"],
            processing_class=self.tokenizer,
            callbacks=[EarlyStoppingCallback(PATIENCE)],
            optimizers=muon(model, steps=steps, learning_rate=trial["learning_rate"]),
        )
        trainer.train()
        shutil.rmtree(folder)
        history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        return model.eval(), {
            "parameters": count_parameters(model),
            "steps": steps,
            "best_validation": min(entry["eval_loss"] for entry in history),
            "curve": [[entry["step"], round(entry["eval_loss"], 4)] for entry in history],
        }

    def measure(self, model) -> dict:
        """Accuracy in scope, recall out of scope, NLL and calibration on the test texts."""
        answers = classify(model, self.tokenizer, self.encoded["test"])
        hits = "".join("01"[hit] for hit in answers.hits.tolist())
        return answers.measures() | {"hits": hits}

    def teacher(self, record: Record) -> tuple:
        """The teacher, read from the work folder or trained and recorded, and its digest."""
        folder = self.work / "teacher"
        size = len(self.encoded["train"])
        run: dict = {}
        if not (folder / "config.json").exists():
            model, run = self.train(TEACHER, size, 0, TEACHER_TRIAL)
            save_model(model, self.tokenizer, folder)
        model = load_model(folder)[0]
        key = {"size": size, "seed": 0, "trial": TEACHER_TRIAL, "teacher": _digest(model)}
        record.once(lambda: run | self.measure(model), arm="teacher", **key)
        return model, key["teacher"]


def _digest(model) -> str:
    """What a run depends on that learns from this teacher."""
    found = sha256()
    for weights in model.parameters():
        found.update(weights.detach().numpy().tobytes())
    return found.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path("build/clinc150"))
    parser.add_argument("--arms", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = Record("05_clinc150.json")
    classroom = Classroom(args.data, args.work)
    teacher, digest = classroom.teacher(record)

    def key(arm: str, size: int, seed: int) -> dict:
        its = {"arm": arm, "size": size, "seed": seed}
        return its | ({"teacher": digest} if "alpha" in TRIALS[arm][0] else {})

    def make(arm: str, size: int, seed: int, trial: dict) -> dict:
        reads = len(classroom.encoded["train"]) if arm == "unlabelled" else size
        taught = teacher if "alpha" in trial else None
        model, its = classroom.train(STUDENT, reads, seed, trial, taught)
        return its if seed == TUNING_SEED else its | classroom.measure(model)

    for size in args.sizes:
        for arm in args.arms:
            if arm == "unlabelled" and size != SIZES[0]:
                continue  # it reads all texts anyway: once is enough
            best = record.best_trial(
                TRIALS[arm],
                lambda trial, its=(arm, size): make(*its, TUNING_SEED, trial),
                **key(arm, size, TUNING_SEED),
            )
            for seed in args.seeds:
                record.once(
                    lambda its=(arm, size, seed, best): make(*its),
                    **key(arm, size, seed),
                    trial=best,
                )


if __name__ == "__main__":
    main()
