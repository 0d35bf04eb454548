"""The main job: distil a teacher into a student on conversations, and write down what came out.

`distillkit distill --teacher front-desk-teacher --student student --data talks.jsonl --out mine`
writes the folder `mine`: a Hugging Face checkpoint (of the best step on held-out conversations),
`metrics.json`, `report.md` and `learning_curve.png`. Until all of it is there, the work lies in
`mine.unfinished`, from which `--resume` goes on. `distill()` is the same as a function.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from distillkit import report
from distillkit.chat import check_same_tokenizer, encode_rows, train_tokenizer
from distillkit.decoding import position_limit
from distillkit.dialogues.loading import load_dialogues
from distillkit.errors import UserError
from distillkit.models import SIZES, build_model, count_parameters, load_model, save_model
from distillkit.optimizers import muon
from distillkit.saving import checkpoints_in, resumable_state
from distillkit.settings import (
    RATES,
    TRAINED_RATE,
    Settings,
    divergence_named,
    training_arguments,
)
from distillkit.training import DistillationTrainer
from distillkit.workplace import check_new, workplace

Model = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Rows = Sequence[Mapping[str, Any]]


INTERRUPTED = "interrupted; run the same command with --resume to go on"
INTERRUPTED_EARLY = "interrupted before the first checkpoint, so nothing is left of this run"


def distill(
    teacher: str | os.PathLike[str] | Model | None,
    student: str | os.PathLike[str] | Model,
    train_rows: Rows,
    eval_rows: Rows,
    out: str | os.PathLike[str] | None = None,
    *,
    test_rows: Rows | None = None,
    compare_labels: bool = False,
    resume: bool = False,
    progress: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Distil a teacher into a student; return the metrics that `metrics.json` holds.

    Args:
        teacher: a shipped name, a folder, a hub name, or (model, tokenizer); None needs alpha=0.
        student: the same, or a size of `models.SIZES`: a new student with the teacher's tokenizer
            (without a teacher, with one trained on `train_rows`). A model that is passed itself is
            trained in place and ends with the weights of its best held-out step.
        train_rows, eval_rows, test_rows: conversations. The best step is chosen on `eval_rows`;
            `test_rows` are only scored, for each value of their "source".
        out: the folder to write; None keeps nothing but the metrics.
        compare_labels: train the same student once more on the labels alone, to compare.
        resume: go on from `<out>.unfinished` if an earlier run left it there.
        settings: the fields of `Settings`.

    Raises:
        UserError: for what the user can mend: names, data, tokenizers that differ, a full disk.
    """
    began, chosen = time.time(), Settings(**settings)
    pair = None if teacher is None else _opened(teacher)
    if pair is None and chosen.taught:
        raise UserError("there is no teacher: name one, or give alpha 0 to train on labels alone")
    model, tokenizer = _student(student, pair, train_rows, chosen)
    chosen = _completed(chosen, student, [model, *([pair[0]] if pair else [])])
    run = {
        "teacher": _name(teacher),
        "student": _name(student),
        "settings": asdict(chosen),
        "data": report.data_card(train=train_rows, eval=eval_rows, test=test_rows or ()),
    }
    with workplace(out, run, resume, count_parameters(model)) as work:
        school = _School(pair, tokenizer, train_rows, eval_rows, chosen, work, progress)
        models, histories = school.train(model, compare_labels=compare_labels)
        scores = report.score(models, tokenizer, eval=eval_rows, test=test_rows or ())
        metrics = report.metrics(run, models, scores, histories, seconds=time.time() - began)
        if out is not None:
            save_model(model, tokenizer, work / "result", card=report.card(metrics))
            report.write(work / "result", metrics)
            os.rename(work / "result", out)
    return metrics


# --- Models -------------------------------------------------------------------------------------


def _opened(model: Any) -> Model:
    return model if isinstance(model, tuple) else load_model(model)


def _name(model: Any) -> str | None:
    return type(model[0]).__name__ if isinstance(model, tuple) else model and str(model)


def _student(student: Any, teacher: Model | None, rows: Rows, settings: Settings) -> Model:
    if not isinstance(student, tuple) and str(student) in SIZES:
        tokenizer = teacher[1] if teacher else train_tokenizer(rows, settings.vocab_size)
        positions = (position_limit(teacher[0]) if teacher else None) or 2048
        new = build_model(str(student), tokenizer, seed=settings.seed, max_positions=positions)
        return new, tokenizer
    model, tokenizer = _opened(student)
    if teacher is not None:
        check_same_tokenizer(teacher[1], tokenizer)
    return model, tokenizer


def _completed(settings: Settings, student: Any, models: list[PreTrainedModel]) -> Settings:
    """The settings with their defaults filled in, as they go into metrics.json."""
    new = not isinstance(student, tuple) and str(student) in SIZES
    longest = min((limit for limit in map(position_limit, models) if limit), default=None)
    optimizer = settings.optimizer
    if optimizer == "auto":
        optimizer = "muon" if new and hasattr(torch.optim, "Muon") else "adamw"
    rate = RATES[optimizer] if new else TRAINED_RATE
    return replace(
        settings,
        optimizer=optimizer,
        learning_rate=settings.learning_rate or rate,
        max_length=min(filter(None, (settings.max_length, longest)), default=None),
        eval_every=settings.interval,
        precision=_precision(settings.precision),
    )


def _precision(wanted: str) -> str:
    if not torch.cuda.is_available():
        if wanted not in ("auto", "fp32"):
            raise UserError(f"precision {wanted} needs a GPU, and none is visible: give fp32")
        return "fp32"
    native = torch.cuda.get_device_capability()[0] >= 8  # a T4 only emulates bf16
    return ("bf16" if native else "fp16") if wanted == "auto" else wanted


# --- Training -----------------------------------------------------------------------------------


class _School:
    """All that the arms of one run share: teacher, data, settings, and the folder to work in."""

    def __init__(
        self,
        teacher: Model | None,
        tokenizer: PreTrainedTokenizerBase,
        train_rows: Rows,
        eval_rows: Rows,
        settings: Settings,
        work: Path,
        progress: bool,
    ) -> None:
        self.teacher, self.tokenizer, self.settings = teacher, tokenizer, settings
        self.work, self.progress = work, progress
        self.lessons = encode_rows(tokenizer, train_rows, max_length=settings.max_length)
        self.exam = encode_rows(tokenizer, eval_rows, max_length=settings.max_length)
        self.exam.sort(key=lambda row: len(row["input_ids"]))  # like lengths together: less padding

    def train(self, student: PreTrainedModel, *, compare_labels: bool) -> tuple[dict, dict]:
        """role -> model (the teacher's too), and role -> what its training logged."""
        taught = self.settings.taught
        models = {"distilled" if taught else "labels": student}
        if compare_labels and taught:
            models["labels"] = copy.deepcopy(student)
        histories = {role: self._fit(role, learner) for role, learner in models.items()}
        if self.teacher is not None:
            models["teacher"] = nn.Module.to(self.teacher[0], student.device)
        return models, histories

    def _fit(self, role: str, student: PreTrainedModel) -> list[dict[str, Any]]:
        """Train to the last step, from the last checkpoint if there is one; load the best."""
        folder = (self.work / f"{role}-training").resolve()
        start = copy.deepcopy(student.state_dict())
        done = checkpoints_in(folder)
        state = resumable_state(done[-1]) if done else None
        if state is None or state.global_step < self.settings.steps:
            bar = _Bar(role if self.progress else None)
            trainer = self._trainer(role, student, folder, bar, first=not done)
            try:
                trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)
            finally:
                bar.close()
            state = trainer.state
        else:
            best, _ = load_model(folder / f"checkpoint-{state.best_global_step}")
            student.load_state_dict(best.state_dict())
        if report.best(report.curve(state.log_history))[0] == 0:  # no step was better than none
            student.load_state_dict(start)
        student.eval()
        return state.log_history

    def _trainer(
        self, role: str, student: PreTrainedModel, folder: Path, bar: _Bar, *, first: bool
    ) -> DistillationTrainer:
        teacher, teacher_tokenizer = self.teacher or (None, None)
        plan = self.settings if role == "distilled" else self.settings.by_labels()
        trainer = DistillationTrainer(
            student,
            teacher,
            args=training_arguments(folder, plan, first=first),
            train_dataset=self.lessons,
            eval_dataset=self.exam,
            processing_class=self.tokenizer,
            teacher_tokenizer=teacher_tokenizer,
            divergence=divergence_named(plan.divergence),
            callbacks=[bar],
            optimizers=_optimizer(student, plan),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def _optimizer(student: PreTrainedModel, settings: Settings) -> tuple[Any, Any]:
    """(optimizer, schedule), or (None, None) for the AdamW that the trainer makes itself."""
    if settings.optimizer != "muon":
        return None, None
    rate, warmup = settings.learning_rate or TRAINED_RATE, int(settings.warmup * settings.steps)
    return muon(student, steps=settings.steps, learning_rate=rate, warmup=max(1, warmup))


class _Bar(TrainerCallback):
    """One progress bar, with the losses of the last log entry; none without a title."""

    def __init__(self, title: str | None) -> None:
        self.title = title
        self.shown: dict[str, str] = {}
        self.bar = tqdm(disable=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.title,
            disable=self.title is None,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        names = {"loss": "loss", "eval_loss": "held-out NLL"}
        self.shown |= {names[key]: f"{logs[key]:.3f}" for key in names if key in logs}
        self.bar.set_postfix(self.shown, refresh=False)

    def close(self) -> None:
        """Also after an interruption, so that what is said next has a line of its own."""
        self.bar.close()


# --- The command line ---------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `distillkit distill`."""
    add = parser.add_argument
    models = "a shipped model, a folder, or a hub name"
    add("--teacher", help=f"{models} (default: front-desk-teacher; with --alpha 0 none)")
    add("--student", default="student", help=f"{models}; or a new one: {', '.join(SIZES)}")
    add("--data", default="front-desk", help="front-desk, a .jsonl/.json/.parquet file, a hub name")
    add(
        "--eval-data", help="conversations to choose the best step on (default: held out of --data)"
    )
    add("--test-data", help="conversations that are only scored at the end")
    add("--limit", type=int, help="the most conversations to train on")
    add("--out", default="distilled-student", help="folder to write (default: %(default)s)")
    add("--compare-labels", action="store_true", help="also train on the labels alone, to compare")
    add("--resume", action="store_true", help="go on with an interrupted run, if there is one")
    kinds = {"int": int, "float": float, "str": str}
    for each in fields(Settings):
        kind = kinds[str(each.type).removesuffix(" | None")]
        text = each.metadata["help"] + ("" if each.default is None else " (default: %(default)s)")
        add(f"--{each.name.replace('_', '-')}", type=kind, default=each.default, help=text)


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    settings = {each.name: getattr(args, each.name) for each in fields(Settings)}
    out = Path(args.out).expanduser()
    check_new(out, Path(f"{out}.unfinished"), args.resume)
    taught = Settings(**settings).taught  # wrong ones are refused before the data is read
    teacher = args.teacher or ("front-desk-teacher" if taught else None)
    train, held_out, test = _data(args)
    try:
        metrics = distill(
            teacher,
            args.student,
            train,
            held_out,
            out,
            test_rows=test,
            compare_labels=args.compare_labels,
            resume=args.resume,
            progress=True,
            **settings,
        )
    except KeyboardInterrupt:
        left = Path(f"{out}.unfinished").exists()
        print("distillkit: " + (INTERRUPTED if left else INTERRUPTED_EARLY), file=sys.stderr)
        return 130
    print(
        f"\n{report.table(metrics)}\n\nWritten to {out}; talk to it: distillkit chat --model {out}"
    )
    return 0


def _data(args: argparse.Namespace) -> tuple[Rows, Rows, Rows | None]:
    """The conversations of the command, with a line on what was kept of each source."""
    train = load_dialogues(args.data, limit=args.limit, seed=args.seed)
    print(train.summary())
    test = load_dialogues(args.test_data, split="test") if args.test_data else None
    held_out: Any = None
    if args.eval_data and args.eval_data != "front-desk":
        held_out = load_dialogues(args.eval_data, split="validation")
    elif args.eval_data or args.data == "front-desk":
        held_out = load_dialogues("front-desk", split="development", limit=200)
    for rows in filter(None, (held_out, test)):
        print(rows.summary())
    if held_out is not None:
        return train, held_out, test
    kept, aside = report.split_off(train, share=0.1, most=500)
    print(f"held out {len(aside):,} of them to choose the best step on")
    return kept, aside, test
