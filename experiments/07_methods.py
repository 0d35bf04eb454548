"""The table of chapter 07: every method of distillation on one footing.

    python experiments/07_methods.py [--arms labels forward_kl] [--seeds 0 1]

Each arm trains the student's size on the same visitors, 3,200 of them, in one run of 1,200 steps: a
warm-up, then a constant rate, and over the last quarter a line down to nothing. So equal steps and
equal time are read from the same curve, which notes the NLL on development visitors every 100 steps
and, every 300, how many of 100 development visitors are served. Time is CPU time of one thread,
which is wall time on a quiet machine and does not depend on what else it does. Each arm has two
tuning trials of a quarter of the steps (with a seed that is used for nothing else), chosen by
validation NLL, and each student is judged at its own best validation checkpoint on visitors of test
worlds, the same ones for all. Validation is on the desk's words; of students of the teacher's text,
on text of the teacher's, as they cannot know how else the desk might put it. Seeds differ in the
first weights and in the order of the conversations.

On-policy arms begin as forward KL, because a student that cannot speak yet has nothing to be
scored; over the last sixth of the steps it speaks. It is judged at its best checkpoint *after* that
has begun: by the NLL of the desk's words, the best one may lie before, and would be no on-policy
student at all. The teacher has read the conversations once for
all arms, which took `teacher_seconds`; how long it wrote stands there for the arms of its text.

`forward_kl_weight` tunes what the MSE tunes, the weight in the place of the temperature, so that
the two can be compared. `reverse_kl_late` is forward KL for the first half of the steps: does the
reverse KL fail by itself, or by its beginning?

Two processes may work on different arms. The two `written` arms share files: give them to one.
Results: ``experiments/results/07_methods.ARM.json``. A run that is there is not made again.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from arguments import run_arguments
from recording import Record, served
from remembering import RememberingTeacher
from transformers import TrainerCallback

from distillkit.benchmark import process_peak
from distillkit.chat import Collator, encode_rows
from distillkit.dialogues import front_desk
from distillkit.evaluation import calibration_error, nll, scored_batches, task_success
from distillkit.losses import forward_kl
from distillkit.models import build_model, count_parameters, load_model
from distillkit.on_policy import OneTurn, WholeVisits
from distillkit.optimizers import muon
from distillkit.sampling import Sampling
from distillkit.sequence_level import write_visits
from distillkit.settings import divergence_named
from distillkit.training import DistillationTrainer

STEPS, BATCH_SIZE = 1200, 8
DECAY, SPEAKING = 1 / 4, 1 / 6  # the last share of the steps: the rate falls; on policy, if at all
TUNING_STEPS, TUNING_SEED = 300, 1000
CONVERSATIONS, DATA_SEED = 3200, 100
EVERY, SERVE_EVERY = 100, 300  # steps between two notes of the NLL, and of the visits
VALIDATION, DEVELOPMENT_VISITS = 60, 100
VISITS, TEST, OWN = 1000, 200, 100  # visitors; conversations to score; visits to compare KLs on
WORK = Path("build/07")


@dataclass(frozen=True)
class Method:
    """What an arm does beside its trial's settings."""

    trials: tuple[dict, dict]
    divergence: str | None = None  # None: labels
    text: str | None = None  # "greedy" or "sampled": the teacher's in place of the desk's
    lmbda: float = 0.0
    rollout: type = WholeVisits
    late: bool = False  # forward KL over the first half of the steps


RATES = ({"learning_rate": 5e-3}, {"learning_rate": 2.5e-3})
SOFTNESS = ({"temperature": 1.0}, {"temperature": 2.0})
WEIGHTS = ({"alpha": 0.9}, {"alpha": 0.5})
SPOKEN = ({"divergence": "reverse_kl"}, {"divergence": "jensen_shannon:0.5"})
METHODS = {
    "labels": Method(RATES),
    "smoothing": Method(({"smoothing": 0.1}, {"smoothing": 0.03})),
    "forward_kl": Method(SOFTNESS, "forward_kl"),
    "forward_kl_weight": Method(WEIGHTS, "forward_kl"),
    "reverse_kl": Method(SOFTNESS, "reverse_kl"),
    "reverse_kl_late": Method(SOFTNESS, "reverse_kl", late=True),
    "jensen_shannon": Method(SOFTNESS, "jensen_shannon:0.5"),
    "on_policy_half": Method(SPOKEN, "forward_kl", lmbda=0.5),
    "written_greedy": Method(RATES, text="greedy"),
    "skew_kl": Method(SOFTNESS, "skew_kl:0.1"),
    "total_variation": Method(SOFTNESS, "total_variation"),
    "logits_mse": Method(WEIGHTS, "logits_mse"),
    "one_turn": Method(SPOKEN, "forward_kl", lmbda=1.0, rollout=OneTurn),
    "on_policy": Method(SPOKEN, "forward_kl", lmbda=1.0),
    "written_sampled": Method(RATES, text="sampled"),
}


class Switching:
    """Forward KL, and where `turned` says so another divergence."""

    temperature_power = 2

    def __init__(self, other, turned):
        self.other, self.turned = other, turned

    def __call__(self, student_logits, teacher_logits, temperature=1.0):
        divergence = self.other if self.turned() else forward_kl
        return divergence(student_logits, teacher_logits, temperature)


@dataclass
class Watch(TrainerCallback):
    """Notes the curve, with the CPU seconds of training alone, and keeps the best weights."""

    model: torch.nn.Module
    tokenizer: object
    validation: list
    after: int = 0  # the best weights are looked for behind this step
    curve: list = field(default_factory=list)
    served: list = field(default_factory=list)
    best: tuple = (float("inf"), {})
    seconds: float = 0.0

    def on_train_begin(self, args, state, control, **_):
        self.began = time.process_time()

    def on_step_end(self, args, state, control, **_):
        if state.global_step % EVERY and state.global_step != state.max_steps:
            return
        self.seconds += time.process_time() - self.began
        value = nll(self.model, self.validation).per_token
        self.curve.append([state.global_step, round(self.seconds, 1), round(value, 4)])
        if state.global_step > self.after and value < self.best[0]:
            self.best = value, copy.deepcopy(self.model.state_dict())
        if state.global_step % SERVE_EVERY == 0:
            options = {"visits": DEVELOPMENT_VISITS, "seed": 5, "split": "development"}
            rate = task_success(self.model, self.tokenizer, **options).rate
            self.served.append([state.global_step, round(self.seconds, 1), rate])
        self.began = time.process_time()


class School:
    """What all arms share: teacher, conversations, and what the teacher wrote."""

    def __init__(self):
        teacher, self.tokenizer = load_model("front-desk-teacher")
        self.teacher = RememberingTeacher(teacher)
        self.visitors = [f"{DATA_SEED}/{number}" for number in range(CONVERSATIONS)]
        self.lessons = encode_rows(self.tokenizer, front_desk(CONVERSATIONS, seed=DATA_SEED))
        development = front_desk(VALIDATION, seed=2, split="development")
        self.validation = encode_rows(self.tokenizer, development)
        self.test = encode_rows(self.tokenizer, front_desk(TEST, seed=3, split="test"))
        self.teacher_seconds = 0.0

    def read(self) -> None:
        """Let the teacher read all lessons, once."""
        if not self.teacher.full:
            began, collate = time.process_time(), Collator(self.tokenizer)
            with torch.no_grad():
                for row in self.lessons:
                    self.teacher(collate([row])["input_ids"])
            self.teacher.full = True
            self.teacher_seconds = round(time.process_time() - began, 1)

    def seconds_of(self, method: Method) -> float:
        """What the teacher spent before this arm began: on reading the lessons, or on writing."""
        if method.text:
            book = WORK / f"{method.text}.train.jsonl.manifest.json"
            return json.loads(book.read_text())["state"]["seconds"]
        return self.teacher_seconds if method.divergence else 0.0

    def texts(self, kind: str | None) -> tuple[list[dict], list[dict]]:
        """To train and to validate on: the desk's words, or the teacher's for the same visitors."""
        if kind is None:
            return self.lessons, self.validation
        development = [f"2/{number}" for number in range(VALIDATION)]
        return self.written(kind, self.visitors, "train"), self.written(
            kind, development, "development"
        )

    def written(self, kind: str, visitors: list[str], split: str) -> list[dict]:
        """Visits that the teacher has served to their end."""
        text = write_visits(
            self.teacher.teacher,
            self.tokenizer,
            visitors,
            WORK / f"{kind}.{split}.jsonl",
            split=split,
            sampling=Sampling(seed=DATA_SEED) if kind == "sampled" else None,
            batch_size=400,
        )
        return encode_rows(self.tokenizer, text.rows)

    def train(self, arm: str, seed: int, trial: dict, steps: int, teacher=None) -> tuple:
        """The student at its best step, and what its training gave."""
        method = METHODS[arm]
        model = build_model("student", self.tokenizer, seed=seed)
        if method.divergence and teacher is None:
            self.read()
            teacher = self.teacher
        lessons, validation = self.texts(method.text)
        before = reading_steps(steps) if method.lmbda else steps // 2 if method.late else 0
        watch = Watch(model, self.tokenizer, validation, after=before)
        with tempfile.TemporaryDirectory() as folder:
            trainer = DistillationTrainer(
                model,
                teacher,
                args=arguments(folder, method, seed, trial, steps),
                train_dataset=lessons,
                processing_class=self.tokenizer,
                divergence=divergence_named(method.divergence or "forward_kl"),
                rollout=self.rollout(method, seed),
                callbacks=[watch],
                optimizers=muon(
                    model,
                    steps=steps,
                    learning_rate=trial.get("learning_rate", 5e-3),
                    decay=DECAY,
                ),
            )
            if method.lmbda:  # each in its own steps: reading, and on policy
                spoken = divergence_named(trial["divergence"])
                trainer.divergence = Switching(spoken, lambda: trainer.on_policy)
            if method.late:
                trainer.divergence = Switching(
                    trainer.divergence, lambda: trainer.state.global_step >= before
                )
            trainer.train()
        value, weights = watch.best
        model.load_state_dict(weights)
        return model.eval(), {
            "trial": trial,
            "steps": steps,
            "parameters": count_parameters(model),
            "teacher_seconds": self.seconds_of(method),
            "best_validation": value,
            "trailing": watch.curve[-1][2],
            "curve": watch.curve,
            "served": watch.served,
        }

    def rollout(self, method: Method, seed: int):
        """How the student comes to speak, if it does."""
        if not method.lmbda:
            return None
        sampling = Sampling(seed=seed)
        if method.rollout is OneTurn:
            return OneTurn(self.tokenizer, sampling)
        return WholeVisits(self.tokenizer, self.visitors, sampling)

    def measure(self, model) -> dict:
        """In worlds whose names nobody has seen; KL to the teacher, there and on its own words."""
        success = task_success(model, self.tokenizer, visits=VISITS, seed=4)
        speaker = WholeVisits(self.tokenizer, [], Sampling(), split="test")
        own = speaker.serve(model, [7_000_000 + number for number in range(OWN)], range(OWN))
        return {
            "nll": nll(model, self.test).per_token,
            "calibration_error": calibration_error(model, self.test).error,
            "kl": self.distance(model, self.test),
            "kl_own_words": self.distance(model, own),
            **served(success),
        }

    def distance(self, model, rows: list[dict]) -> float:
        """KL(teacher ‖ student) per assistant token."""
        total, tokens = 0.0, 0
        teacher = scored_batches(self.teacher.teacher, rows, batch_tokens=16_384)
        student = scored_batches(model, rows, batch_tokens=16_384)
        for ours, theirs in zip(student, teacher, strict=True):
            total += float(forward_kl(ours.logits, theirs.logits).sum())
            tokens += len(ours.labels)
        return total / tokens


def reading_steps(steps: int) -> int:
    """How many steps an on-policy arm reads before it speaks."""
    return round(steps * (1 - SPEAKING))


def arguments(folder: str, method: Method, seed: int, trial: dict, steps: int):
    return run_arguments(
        folder,
        trial,
        alpha=trial.get("alpha", 0.9) if method.divergence else 0.0,
        lmbda=method.lmbda,
        off_policy_steps=reading_steps(steps),
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=seed,
    )


def peak_memory(arm: str) -> dict:
    """Peak resident memory of a fresh process that takes six steps of this arm, in MB."""
    command = [sys.executable, __file__, "--peak", arm]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"peak_mb": float(output.split()[-1])}


def take_six_steps(arm: str) -> None:
    """With a teacher that remembers nothing, and half the steps on policy where the arm is."""
    for name, value in {"CONVERSATIONS": 48, "VALIDATION": 2, "TEST": 2, "EVERY": 7}.items():
        globals()[name] = value
    globals()["SPEAKING"] = 0.5
    globals()["WORK"] = Path(tempfile.mkdtemp())
    school, trial = School(), METHODS[arm].trials[0]
    teacher = school.teacher.teacher if METHODS[arm].divergence else None
    school.train(arm, 0, trial, 6, teacher)
    print(process_peak() / 1e6)


def tune(record: Record, arm: str, school: School) -> dict:
    """The settings that this arm is given with every seed."""
    return record.best_trial(
        list(METHODS[arm].trials),
        lambda trial: school.train(arm, TUNING_SEED, trial, TUNING_STEPS)[1],
        named="tried",
        arm=arm,
        steps=TUNING_STEPS,
    )


def fight(arm: str, seed: int, trial: dict, school: School) -> dict:
    """Train and measure one student."""
    model, run = school.train(arm, seed, trial, STEPS)
    return run | school.measure(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", choices=list(METHODS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        take_six_steps(args.peak)
        return
    school = School()
    for seed in args.seeds:
        for arm in args.arms:
            record = Record(f"07_methods.{arm}.json")
            trial = tune(record, arm, school)
            record.once(
                lambda run=(arm, seed, trial): fight(*run, school), arm=arm, seed=seed, trial=trial
            )
            record.once(lambda arm=arm: peak_memory(arm), arm=arm, measured="peak memory")


if __name__ == "__main__":
    main()
