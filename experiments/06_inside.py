"""What else can a teacher give? Chapter 06's students: six ways to teach, two ways to begin.

    python experiments/06_inside.py [--arms labels logits] [--seeds 0 1]

The student has the size of chapter 04's, with three heads as wide as the teacher's. It begins from
random weights, or from the teacher's first and last layer with the width cut (``narrowing.py``;
without its first layer this teacher is no better than random weights). It learns from labels, from
labels and logits, or from these and one thing from inside: hidden states (TinyBERT), the direction
of the last ones (DistilBERT), attention scores (TinyBERT) or relations
(MiniLMv2). The first beginning is tried with every arm, the second with three. Every run has a
constant learning rate and is looked at every ``EVERY`` steps (NLL of copied values and of own
words, seconds of training on one thread), so that equal steps and equal time are read from the same
curve. Each arm has three tuning trials, with a seed that is used for nothing else; both ways to
begin use its best. A student is judged at its own best validation checkpoint, in worlds that nobody
has seen, by the visitors of chapter 04.

Each run is written to ``experiments/results/06_inside.ARM.json`` as it ends, and one that is there
is not made again: stop it when you like, and let two processes work on different arms.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from arguments import at_its_best, run_arguments
from arms import BATCH_SIZE, LEARNING_RATE, VALIDATION, Classroom
from recording import Record
from remembering import RememberingTeacher
from transformers import TrainerCallback

from distillkit.chat import encode_rows
from distillkit.copying import nll_by_origin
from distillkit.dialogues import front_desk
from distillkit.feature_training import Features
from distillkit.features import (
    After,
    Attention,
    Hidden,
    Relations,
    hidden_cosine,
    layers_to_copy,
    uniform_layers,
)
from distillkit.models import (
    ModelSize,
    build_model,
    count_parameters,
    load_model,
    student_from_layers,
)
from distillkit.narrowing import narrowed
from distillkit.optimizers import muon
from distillkit.training import DistillationTrainer

SIZE = 1000  # conversations
STEPS, EVERY, TUNING_STEPS = 400, 50, 200
TUNING_SEED = 1000
SHAPE = ModelSize(width=96, layers=2, heads=3, feed_forward=256)
FIRST_AND_LAST = (0, -1)
BEGINNINGS = {"random": None, "teacher": ("labels", "logits", "cosine")}  # None: every arm
TRIALS: dict[str, list[dict]] = {
    "labels": [{}, {"learning_rate": 2.5e-3}, {"learning_rate": 1e-2}],
    "logits": [{"temperature": 1.0}, {"temperature": 2.0}, {"temperature": 4.0}],
} | {
    arm: [
        {"temperature": 2.0, "weight": light},
        {"temperature": 2.0, "weight": heavy},
        {"temperature": 4.0, "weight": light},
    ]
    for arm, light, heavy in (
        ("hidden", 1e-3, 1e-2),
        ("cosine", 0.3, 3.0),
        ("attention", 0.01, 0.1),
        ("relations", 0.3, 3.0),
    )
}


def matches(arm: str, weight: float, heads: list[list[int]]) -> list:
    """What an arm matches inside. ``heads``: the teacher's, for which the student's stand."""
    pairs = uniform_layers(SHAPE.layers, len(heads) * 2)
    last, its_last = (After(layer, normed=True) for layer in pairs[-1])
    between = [(After(mine), After(its)) for mine, its in pairs[1:-1]]
    return {
        "hidden": [
            Hidden([(After(0), After(0))], weight),
            Hidden([*between, (last, its_last)], weight),
        ],
        "cosine": [Hidden([(last, its_last)], weight, loss=hidden_cosine)],
        "attention": [
            Attention([pair], weight, teacher_heads=kept)
            for pair, kept in zip(pairs[1:], heads, strict=True)
        ],
        "relations": [Relations(pairs[-1:], weight, heads=4)],
    }.get(arm, [])


class Curve(TrainerCallback):
    """At every evaluation: step, CPU seconds of training, NLL of copied values and own words."""

    def __init__(self, tokenizer, validation: list[dict]):
        self.tokenizer, self.validation = tokenizer, validation
        self.seconds, self.points = 0.0, []

    def on_step_begin(self, args, state, control, **_):
        self.began = time.process_time()

    def on_step_end(self, args, state, control, **_):
        self.seconds += time.process_time() - self.began

    def on_evaluate(self, args, state, control, metrics, model, **_):
        origin = nll_by_origin(model, self.tokenizer, self.validation)
        found = [metrics["eval_loss"], origin["copied"], origin["own"]]
        self.points.append(
            [state.global_step, round(self.seconds, 1), *(round(x, 4) for x in found)]
        )


def build(classroom: Classroom, begin: str, seed: int):
    """A new student, and which of the teacher's heads its heads stand for, layer by layer."""
    teacher = classroom.teacher.teacher
    depth = teacher.config.num_hidden_layers
    size = {"width": SHAPE.width, "heads": SHAPE.heads, "feed_forward": SHAPE.feed_forward}
    beside = layers_to_copy(uniform_layers(SHAPE.layers, depth))  # whose heads are compared
    _, kept = narrowed(student_from_layers(teacher, beside), **size)
    first_and_last = [layer % depth for layer in FIRST_AND_LAST]
    copy, _ = narrowed(student_from_layers(teacher, first_and_last), **size)
    copy.requires_grad_(True)
    new = copy if begin == "teacher" else build_model(SHAPE, classroom.tokenizer, seed=seed)
    return new.train(), kept.heads


def train(arm: str, begin: str, seed: int, trial: dict, classroom: Classroom, steps: int) -> tuple:
    """The student at its best step, and what its training gave."""
    teacher, tokenizer = classroom.teacher.teacher, classroom.tokenizer
    model, heads = build(classroom, begin, seed)
    inside = matches(arm, trial.get("weight", 0.0), heads)
    features = Features(model, teacher, inside, seed=seed) if inside else None
    work = Path(tempfile.mkdtemp(prefix="inside-"))
    arguments = run_arguments(
        work,
        trial,
        alpha=0.0 if arm == "labels" else 0.9,
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=seed,
        use_cpu=True,
        **at_its_best(EVERY, 2 * BATCH_SIZE),
    )
    validation = front_desk(VALIDATION, seed=2, split="development")
    curve = Curve(tokenizer, validation)
    learned = model if features is None else torch.nn.ModuleList([model, features])
    rate = trial.get("learning_rate", LEARNING_RATE)
    trainer = DistillationTrainer(
        model,
        None if arm == "labels" else teacher,
        args=arguments,
        train_dataset=encode_rows(tokenizer, front_desk(SIZE, seed=100 + seed)),
        eval_dataset=encode_rows(tokenizer, validation),
        processing_class=tokenizer,
        features=features,
        callbacks=[curve],
        optimizers=muon(learned, steps=steps, learning_rate=rate, decay=0.0),
    )
    trainer.train()
    shutil.rmtree(work)
    best = min(curve.points, key=lambda point: point[2])
    return model.eval(), {
        "trial": trial,
        "parameters": count_parameters(model),
        "best_step": best[0],
        "best_validation": best[2],
        "curve": curve.points,  # step, CPU seconds, NLL, of copied values, of own words
    }


def fight(arm: str, begin: str, seed: int, trial: dict, classroom: Classroom) -> dict:
    """Train one student and measure it in test worlds."""
    model, run = train(arm, begin, seed, trial, classroom, STEPS)
    origin = nll_by_origin(model, classroom.tokenizer, front_desk(200, seed=3, split="test"))
    return run | classroom.measure(model) | {"copied": origin["copied"], "own": origin["own"]}


def tune(record: Record, arm: str, classroom: Classroom, key: dict) -> dict:
    """The settings that this arm is given with every seed, and from both beginnings."""
    its = {"arm": arm, "begin": "random", "seed": TUNING_SEED, **key}
    return record.best_trial(
        TRIALS[arm],
        lambda trial: train(arm, "random", TUNING_SEED, trial, classroom, TUNING_STEPS)[1],
        **its,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    teacher, tokenizer = load_model("front-desk-teacher")
    classroom = Classroom(RememberingTeacher(teacher), tokenizer)
    key = classroom.key("distilled")  # labels too: half of them begin from the teacher's layers
    records = {arm: Record(f"06_inside.{arm}.json") for arm in args.arms}
    chosen = {arm: tune(records[arm], arm, classroom, key) for arm in args.arms}
    for seed in args.seeds:
        for begin, chosen_arms in BEGINNINGS.items():
            for arm in (arm for arm in args.arms if arm in (chosen_arms or TRIALS)):
                records[arm].once(
                    lambda run=(arm, begin, seed): fight(*run, chosen[run[0]], classroom),
                    arm=arm,
                    begin=begin,
                    seed=seed,
                    trial=chosen[arm],
                    **key,
                )


if __name__ == "__main__":
    main()
