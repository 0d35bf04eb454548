"""The broken loop of chapter 05, repaired fault by fault, with several seeds.

    python experiments/05_repairs.py [--seeds 0 1 2]

The loop, its losses and its repairs are taken out of the chapter's notebook, so that what is
recorded is what the reader sees. A seed draws the student's weights and its batches; all students
have one teacher. Kinds of runs: ``repaired``, one fault after the other; ``put back``, one fault
alone in the repaired loop; ``rate`` and ``alpha``, the repaired loop with other values. A minute a
seed on one core; a run that stands in ``experiments/results/05_repairs.json`` is not made again.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from arguments import run_arguments
from recording import Record

from distillkit.classification import classify
from distillkit.course.classrooms import open_classroom
from distillkit.course.levels import Level
from distillkit.course.notebooks import ROOT, definitions
from distillkit.encoders import collator_for
from distillkit.models import load_model, save_model
from distillkit.training import DistillationTrainer

CHAPTER = definitions(ROOT / "chapters" / "05_a_classifier.ipynb")
TRAIN, TEST = 3000, 1000
STEPS = {"teacher": 250, "student": 200}
RATE, ALPHA, TEMPERATURE = 3e-3, 0.9, 2.0
OTHER_RATES, OTHER_ALPHAS = (1e-4, 3e-4, 1e-2), (0.0, 0.5)


class Loop:
    """The texts, a trained and an untrained teacher, and the runs of the loop."""

    def __init__(self, work: Path) -> None:
        self.room = open_classroom(Level("cpu"), train=TRAIN, test=TEST)
        self.untrained = self.room.model("teacher").eval()
        self.collate = collator_for(self.untrained, self.room.tokenizer)
        if not (work / "config.json").exists():
            save_model(self._teacher(), self.room.tokenizer, work)
        self.teacher = load_model(work)[0].eval()

    def _teacher(self):
        model, steps = self.room.model("teacher"), STEPS["teacher"]
        trainer = DistillationTrainer(
            model,
            args=run_arguments(
                tempfile.mkdtemp(), {}, steps=steps, batch_size=32, seed=0, use_cpu=True
            ),
            train_dataset=self.room.encoded["train"],
            processing_class=self.room.tokenizer,
            optimizers=self.room.optimizers(model, "teacher", steps=steps),
        )
        trainer.train()
        return model

    def run(self, seed: int, *, teacher, loss, rate: float, masked: bool) -> dict:
        """A student's first and last loss, and how good it is."""
        student = self.room.model("student", seed=seed)
        rows = self.room.encoded["train"]
        batches = CHAPTER["batches"](rows, self.collate, STEPS["student"], seed, masked)
        losses = CHAPTER["train"](student, teacher, batches, loss, rate)
        answers = classify(student, self.room.tokenizer, self.room.encoded["test"])
        return {"first": losses[0], "last": losses[-1]} | answers.measures()

    def settings(self) -> list[tuple[str, str, dict]]:
        """(kind, name, what the loop is given) of every run of a seed."""
        given = self.untrained, self.teacher, RATE
        whole, loss = CHAPTER["repairs"](*given)["learning rate"], CHAPTER["soft_and_hard"]
        kinds = {
            "repaired": CHAPTER["repairs"](*given),
            "put back": {name: whole | fault for name, fault in self._faults().items()},
            "alpha": {f"{a:g}": whole | {"loss": loss(a, TEMPERATURE)} for a in OTHER_ALPHAS},
            "rate": {f"{rate:g}": whole | {"rate": rate} for rate in OTHER_RATES},
        }
        return [
            (kind, name, setting)
            for kind, settings in kinds.items()
            for name, setting in settings.items()
        ]

    def _faults(self) -> dict[str, dict]:
        """What is changed in the repaired loop to put each fault back alone."""
        loss, bare, mean = map(CHAPTER.get, ("soft_and_hard", "kl_of_probabilities", "kl_mean"))
        return {
            "trained teacher": {"teacher": self.untrained},
            "logarithms": {"loss": loss(ALPHA, TEMPERATURE, bare)},
            "sum over classes": {"loss": loss(ALPHA, TEMPERATURE, mean)},
            "attention mask": {"masked": False},
            "labels": {"loss": loss(1.0, TEMPERATURE)},
            "temperature": {"loss": loss(ALPHA, 1.0)},
            "learning rate": {"rate": 1e-3},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=["repaired", "put back", "alpha", "rate"])
    parser.add_argument("--work", type=Path, default=Path("build/repairs/teacher"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record, loop = Record("05_repairs.json"), Loop(args.work)
    judged = classify(loop.teacher, loop.room.tokenizer, loop.room.encoded["test"]).measures()
    record.once(lambda: judged, kind="teacher", name="teacher", seed=0)
    for seed in args.seeds:
        for kind, name, setting in loop.settings():
            if kind in args.kinds:
                record.once(
                    lambda s=setting, n=seed: loop.run(n, **s), kind=kind, name=name, seed=seed
                )


if __name__ == "__main__":
    main()
