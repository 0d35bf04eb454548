"""DistilBERT's recipe from end to end, at small scale (chapter 06).

    python experiments/06_distilbert.py [--arms triple random] [--seeds 0 1]

An encoder of six layers is pre-trained by filling gaps in front-desk text: that is the teacher.
Students begin as every other layer of it, the width kept, and go on filling gaps beside it with
DistilBERT's triple loss, weighed as in the script that its authors published: 5 of soft targets
(T = 2), 2 of masked language modelling, 1 of the cosine between the last hidden states. Arms leave
out one of the three terms, begin from random weights, or do without this second pre-training
("copied", and "new" with random weights). In the end everything, the teacher too, is fine-tuned on
the same 1,000 labelled utterances and judged by 1,000 utterances of other visitors in towns whose
names nobody has read. Of each model: parameters, CPU milliseconds a text (batch 1, one thread, the
median over texts), held-out NLL of gaps, and accuracy over the seeds. One pre-trained teacher
serves all seeds; a seed draws a student's random weights, the gaps, the order of the texts, and the
new head of the fine-tuning.

Two differences from the paper: soft targets are compared at the gaps alone, where the paper's
script takes every token unless told otherwise, and one learning rate is given to all arms.

Half an hour on one core. Each run is written to ``experiments/results/06_distilbert.json`` as it
ends, and one that is there is not made again; the teacher waits in ``--work``.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from arguments import run_arguments
from recording import Record

from distillkit.classification import classify
from distillkit.dialogues import front_desk
from distillkit.dialogues.intents import front_desk_intents, intents_of
from distillkit.encoders import (
    build_classifier,
    build_masked_lm,
    encode_intents,
    encode_texts,
    mask_once,
    train_text_tokenizer,
)
from distillkit.feature_training import Features
from distillkit.features import After, Hidden, hidden_cosine, layers_to_copy, uniform_layers
from distillkit.models import (
    ModelSize,
    count_parameters,
    load_model,
    save_model,
    student_from_layers,
)
from distillkit.optimizers import muon
from distillkit.timing import spread
from distillkit.training import DistillationTrainer

SIZE, STUDENT_LAYERS = ModelSize(width=96, layers=6, heads=4, feed_forward=384), 3
VOCABULARY, VISITS, HELD_OUT = 1200, 1500, 60
TEACHER_RUN = {"steps": 3000, "rate": 4e-3, "batch": 32}
STUDENT_RUN = {"steps": 500, "rate": 3e-3, "batch": 32, "temperature": 2.0}
FINE_RUN = {"steps": 300, "rate": 3e-3, "batch": 32, "texts": 1000}
TEACHER_SEED = 1000  # a seed that no student has
TEXTS, JUDGED, TIMED = 6000, 1000, 200
# The weights of soft targets, masked language modelling and cosine; None: nothing to learn.
ARMS: dict[str, tuple[float, float, float] | None] = {
    "triple": (5, 2, 1),
    "no soft targets": (0, 2, 1),
    "no masked language modelling": (5, 0, 1),
    "no cosine": (5, 2, 0),
    "random": (5, 2, 1),
    "copied": None,
    "new": None,
}
RANDOM = ("random", "new")  # these begin from random weights


def spoken(visits: int, seed: int) -> list[str]:
    """What is said in so many visits, two messages a text; a text that comes again is left out."""
    texts: dict[str, None] = {}
    for row in front_desk(visits, seed=seed):
        said = [
            message["content"]
            for message in row["messages"]
            if message["role"] != "tool" and message["content"]
        ]
        texts |= dict.fromkeys(" ".join(said[at : at + 2]) for at in range(0, len(said), 2))
    return list(texts)


class Desk:
    """The texts with and without labels, and the runs that learn from them."""

    def __init__(self) -> None:
        texts = spoken(VISITS, seed=0)
        self.tokenizer = train_text_tokenizer(texts, VOCABULARY)
        self.texts = encode_texts(self.tokenizer, texts)
        known = set(texts)
        held_out = [text for text in spoken(HELD_OUT, seed=7) if text not in known]
        self.gaps = mask_once(self.tokenizer, encode_texts(self.tokenizer, held_out))
        rows = front_desk_intents(TEXTS)
        self.names = intents_of(rows)
        judged = front_desk_intents(JUDGED, seed=2, split="test")
        self.labelled, self.judged = (
            encode_intents(self.tokenizer, part, self.names) for part in (rows, judged)
        )

    def fit(self, model, rows: list, plan: dict, seed: int, teacher=None, **options) -> dict:
        """Train it; what the training gave."""
        work = Path(tempfile.mkdtemp(prefix="distilbert-"))
        features = options.get("features")
        learned = model if features is None else torch.nn.ModuleList([model, features])
        arguments = run_arguments(
            work,
            plan,
            steps=plan["steps"],
            batch_size=plan["batch"],
            seed=seed,
            use_cpu=True,
            log_level="error",
        )
        trainer = DistillationTrainer(
            model,
            teacher,
            args=arguments,
            train_dataset=rows,
            processing_class=self.tokenizer,
            optimizers=muon(learned, steps=plan["steps"], learning_rate=plan["rate"]),
            **options,
        )
        began = time.process_time()
        trainer.train()
        shutil.rmtree(work, ignore_errors=True)
        return {"cpu_seconds": round(time.process_time() - began, 1)}

    def gap_nll(self, model) -> float:
        """NLL in nats of the held-out gaps."""
        arguments = run_arguments(
            tempfile.mkdtemp(), {}, steps=1, batch_size=1, seed=0, use_cpu=True
        )
        trainer = DistillationTrainer(model, args=arguments, processing_class=self.tokenizer)
        return trainer.predict(self.gaps).metrics["test_loss"]

    def teacher(self, record: Record, folder: Path):
        """The pre-trained teacher, read from the work folder, or trained and recorded."""
        if (folder / "config.json").exists():
            return load_model(folder)[0]
        model = build_masked_lm(SIZE, self.tokenizer, seed=TEACHER_SEED, dropout=0.0)
        run = self.fit(model, self.texts, TEACHER_RUN, TEACHER_SEED)
        save_model(model.eval(), self.tokenizer, folder)
        run |= {"gap_nll": self.gap_nll(model), "parameters": count_parameters(model)}
        record.once(lambda: run, arm="pre-trained", seed=TEACHER_SEED, plan=TEACHER_RUN)
        return model

    def student(self, arm: str, teacher, seed: int) -> tuple:
        """A student after its second pre-training, and what that gave."""
        pairs = uniform_layers(STUDENT_LAYERS, SIZE.layers)
        size = ModelSize(SIZE.width, STUDENT_LAYERS, SIZE.heads, SIZE.feed_forward)
        if arm in RANDOM:
            model = build_masked_lm(size, self.tokenizer, seed=seed, dropout=0.0)
        else:
            model = student_from_layers(teacher, layers_to_copy(pairs)).requires_grad_(True)
        run = {"gap_nll_before": self.gap_nll(model)}
        if (weights := ARMS[arm]) is not None:
            soft, hard, cosine = weights
            last, its_last = (After(layer) for layer in pairs[-1])
            match = Hidden([(last, its_last)], cosine / (soft + hard), loss=hidden_cosine)
            features = Features(model, teacher, [match], seed=seed) if cosine else None
            plan = STUDENT_RUN | {"alpha": soft / (soft + hard)}
            run |= self.fit(model.train(), self.texts, plan, seed, teacher, features=features)
        return model, run | {"gap_nll": self.gap_nll(model)}

    def fine_tuned(self, body, seed: int) -> dict:
        """What a pre-trained body is worth with a new head, after the few labelled texts."""
        layers = body.config.num_hidden_layers
        size = ModelSize(SIZE.width, layers, SIZE.heads, SIZE.feed_forward)
        model = build_classifier(size, self.tokenizer, self.names, seed=seed, dropout=0.0)
        model.bert.load_state_dict(body.bert.state_dict(), strict=False)  # all but a new pooler
        run = self.fit(model.train(), self.labelled[: FINE_RUN["texts"]], FINE_RUN, seed)
        found = classify(model.eval(), self.tokenizer, self.judged).measures()
        return found | {
            "fine_cpu_seconds": run["cpu_seconds"],
            "parameters": count_parameters(model),
            "milliseconds": self.milliseconds(model),
        }

    def milliseconds(self, model) -> list[float]:
        """CPU time of one text at batch 1: median and quartiles over texts, after a warm-up."""
        times = []
        for row in self.judged[:TIMED]:
            ids = torch.tensor([row["input_ids"]])
            with torch.inference_mode():
                model(input_ids=ids)
                began = time.process_time()
                model(input_ids=ids)
                times.append(1000 * (time.process_time() - began))
        taken = spread(times)
        return [round(value, 3) for value in (taken.median, taken.low, taken.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--work", type=Path, default=Path("build/06_distilbert"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record, desk = Record("06_distilbert.json"), Desk()
    teacher = desk.teacher(record, args.work / "teacher")
    for seed in args.seeds:
        record.once(
            lambda n=seed: desk.fine_tuned(teacher, n), arm="teacher", seed=seed, plan=FINE_RUN
        )
        for arm in args.arms:

            def make(arm: str = arm, seed: int = seed) -> dict:
                student, run = desk.student(arm, teacher, seed)
                return run | desk.fine_tuned(student, seed)

            record.once(make, arm=arm, seed=seed, plan=STUDENT_RUN, fine=FINE_RUN)


if __name__ == "__main__":
    main()
