"""Intents of the front desk (chapter 05): when does a teacher help a student of few labels?

    python experiments/05_front_desk_intents.py [--seeds 0 1 2]

The teacher learns from 6,000 labelled utterances of visitors. Students learn from the first 300,
or read all 6,000 without any label. Nothing is tuned: every setting that was tried is recorded.
Each model is judged by utterances of other visitors in towns whose names it has read, and in towns
whose names nobody has read (`known` and `test`). Half an hour on one core; a run that stands in
``experiments/results/05_front_desk_intents.json`` is not made again.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from arguments import run_arguments
from recording import Record

from distillkit.classification import classify
from distillkit.course.classrooms import STUDENT, TEACHER, VOCABULARY
from distillkit.dialogues.intents import front_desk_intents, intents_of
from distillkit.encoders import build_classifier, encode_intents, train_text_tokenizer
from distillkit.models import count_parameters, load_model, save_model
from distillkit.optimizers import muon
from distillkit.training import DistillationTrainer

TEXTS, FEW, JUDGED = 6000, 300, 1000
STEPS = 300
TEACHER_RUN = {"steps": 400, "rate": 3e-3, "smoothing": 0.0}
BASE = {"texts": FEW, "steps": STEPS, "rate": 5e-3, "alpha": 0.0, "temperature": 1.0}
SETTINGS: list[dict] = [
    {},
    {"alpha": 0.9, "temperature": 2.0},
    {"alpha": 1.0, "temperature": 2.0, "texts": TEXTS},
    {"texts": TEXTS},
    {"alpha": 0.9, "temperature": 1.0},
    {"alpha": 0.9, "temperature": 4.0},
    {"steps": 3 * STEPS},
    {"alpha": 0.9, "temperature": 2.0, "steps": 3 * STEPS},
    {"alpha": 0.5, "temperature": 2.0},
    {"smoothing": 0.1},
    {"rate": 2e-3},
    {"alpha": 0.9, "temperature": 2.0, "rate": 2e-3},
]


class Desk:
    """The utterances, their tokenizer, and models of them."""

    def __init__(self) -> None:
        rows = {"train": front_desk_intents(TEXTS)}
        self.names = intents_of(rows["train"])
        read = {row["text"] for row in rows["train"]}
        rows["known"] = front_desk_intents(3 * JUDGED, seed=1)
        rows["test"] = front_desk_intents(3 * JUDGED, seed=2, split="test")
        for part in ("known", "test"):
            rows[part] = [row for row in rows[part] if row["text"] not in read][:JUDGED]
        texts = [row["text"] for row in rows["train"]]
        self.tokenizer = train_text_tokenizer(texts, VOCABULARY)
        self.encoded = {
            part: encode_intents(self.tokenizer, each, self.names) for part, each in rows.items()
        }

    def train(self, shape, seed: int, setting: dict, teacher=None) -> tuple:
        """A model after its last step, and what is measured of it."""
        model = build_classifier(shape, self.tokenizer, self.names, seed=seed)
        arguments = run_arguments(
            tempfile.mkdtemp(),
            setting,
            steps=setting["steps"],
            batch_size=32,
            seed=seed,
            use_cpu=True,
        )
        trainer = DistillationTrainer(
            model,
            teacher,
            args=arguments,
            train_dataset=self.encoded["train"][: setting.get("texts", TEXTS)],
            processing_class=self.tokenizer,
            optimizers=muon(model, steps=setting["steps"], learning_rate=setting["rate"]),
        )
        trainer.train()
        found = {part: self.answers(model, part).measures() for part in ("known", "test")}
        return model, {"parameters": count_parameters(model)} | found

    def teacher(self, record: Record, folder: Path):
        """The teacher, read from the work folder, or trained and recorded."""
        if (folder / "config.json").exists():
            return load_model(folder)[0]
        model, measured = self.train(TEACHER, 0, TEACHER_RUN)
        save_model(model, self.tokenizer, folder)
        measured |= {"entropy": self.certainty(model)}
        record.once(lambda: measured, arm="teacher", seed=0, setting=TEACHER_RUN)
        return model

    def answers(self, model, part: str, limit: int | None = None):
        return classify(model, self.tokenizer, self.encoded[part][:limit])

    def certainty(self, teacher) -> dict:
        """Mean entropy (nats) of the teacher's answers, by T, to texts it was taught and others."""
        found: dict = {}
        for part, limit in (("train", FEW), ("test", None)):
            log_p = self.answers(teacher, part, limit).log_probs
            for temperature in (1.0, 2.0, 4.0):
                log_soft = (log_p / temperature).log_softmax(-1)
                entropy = -(log_soft.exp() * log_soft).sum(-1).mean().item()
                found.setdefault(part, {})[str(temperature)] = entropy
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("build/front_desk_intents"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record, desk = Record("05_front_desk_intents.json"), Desk()
    teacher = desk.teacher(record, args.work)
    for changes in SETTINGS:
        for seed in args.seeds:
            setting = BASE | changes
            taught = teacher if setting["alpha"] else None
            record.once(
                lambda s=setting, t=taught, n=seed: desk.train(STUDENT, n, s, t)[1],
                arm="distilled" if taught is not None else "labels",
                seed=seed,
                setting=setting,
            )


if __name__ == "__main__":
    main()
