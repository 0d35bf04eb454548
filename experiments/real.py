"""The main job on real conversations: a small teacher from scratch, and students of it.

What `04_real_dialogues.py` and `07_real_dialogues.py` share. Their data are a folder with
dialogues_en.{train,validation,test}.jsonl; experiments/REAL_DATA.md says what they are, gives their
hashes and how to rebuild them. Scores are given for each source: 80 % of STAR's test replies occur
word for word in its training part, so MultiWOZ is the one to look at.
"""

import argparse
import json
from pathlib import Path

import torch
from recording import Record

from distillkit.chat import encode_prompt, read_reply
from distillkit.dialogues import load_dialogues
from distillkit.distill import distill
from distillkit.evaluation import chrf, distinct_n, generate_replies
from distillkit.models import load_model
from distillkit.report import data_card
from distillkit.sampling import Sampling
from distillkit.sequence_level import write_replies

DATA = Path(__file__).parents[2] / "shared" / "data"
VOCABULARY = 2048
REPLIES = 300  # test replies that are generated and compared, MultiWOZ alone
COMMON = {"max_length": 400, "optimizer": "muon"}
TEACHER = {"steps": 1200, "batch_size": 8, "learning_rate": 3e-3, "eval_every": 200}
STUDENT = {"steps": 1000, "batch_size": 8, "learning_rate": 5e-3, "eval_every": 100}


def replies(model, tokenizer, rows: list[dict]) -> dict[str, float]:
    """How near the model's replies are to the human wizard's, and how varied they are.

    chrF (Popović 2015) rather than BLEU: it gives credit for a right word in another form, needs
    no tokenizer of its own, and a single reply has a score. Distinct-2 beside it shows a model that
    says the same to everybody.
    """
    turns = [
        (row["messages"][:at], row["messages"][at]["content"])
        for row in rows
        for at in range(1, len(row["messages"]), 2)
    ][:: max(1, sum(len(row["messages"]) // 2 for row in rows) // REPLIES)][:REPLIES]
    prompts = [encode_prompt(tokenizer, history) for history, _ in turns]
    generated = generate_replies(model, tokenizer, prompts, max_reply_tokens=60)
    texts = [read_reply(tokenizer, ids)["content"] for ids in generated]
    wizard = [text for _, text in turns]
    return {
        "chrf": chrf(texts, wizard),
        "distinct_2": distinct_n(texts, 2),
        "wizard_distinct_2": distinct_n(wizard, 2),
        "replies": len(texts),
    }


class School:
    """The conversations, the teacher, and what it wrote; all of it made where it is missing."""

    def __init__(self, data: Path, work: Path):
        self.train, self.validation, self.test = (
            load_dialogues(str(data / f"dialogues_en.{part}.jsonl"))
            for part in ("train", "validation", "test")
        )
        self.multiwoz = [row for row in self.test if row["source"] == "multiwoz2.1"]
        self.work, self.folder = work, work / "teacher"

    def card(self) -> dict:
        return data_card(train=self.train, validation=self.validation, test=self.test)

    def teach(self) -> dict:
        """The teacher's metrics. It lies in `folder`; another machine may have made the record."""
        plan = {"alpha": 0.0, "vocab_size": VOCABULARY, **TEACHER}
        return self._made(self.folder, None, "teacher", self.train, plan)

    def student(self, name: str, settings: dict, rows: list[dict] | None = None) -> dict:
        """A student's metrics, by the teacher (or by rows of the teacher's text)."""
        self.teach()
        lessons = self.train if rows is None else rows
        plan = STUDENT | settings
        return self._made(self.work / name, self.folder, "student", lessons, plan)

    def written(self) -> list[dict]:
        """What the teacher says at every assistant turn of the training conversations."""
        self.teach()
        model, tokenizer = load_model(self.folder)
        file, sampling = self.work / "written.jsonl", Sampling(seed=0)
        return write_replies(model, tokenizer, self.train, file, sampling=sampling).rows

    def _made(self, out: Path, teacher, student, rows, plan: dict) -> dict:
        """The measures of this run, which is made unless its folder is there."""
        if (out / "metrics.json").exists():
            metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        else:
            settings = COMMON | plan
            metrics = distill(
                teacher,
                student,
                rows,
                self.validation,
                out,
                test_rows=self.test,
                resume=True,
                **settings,
            )
        model, tokenizer = load_model(out)
        chosen = next(iter(metrics["curves"]))
        return {**metrics["models"][chosen], **replies(model, tokenizer, self.multiwoz)}


def record_arms(name: str, arms: dict[str, dict], description: str | None) -> None:
    """The command of both scripts: the teacher, and then every arm with every seed.

    An arm's settings are those of `distill`; with "written" it learns from the teacher's text.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("build/real"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    school, record = School(args.data, args.work), Record(name)
    record.content["data"] = school.card()
    record.once(school.teach, arm="teacher", seed=0)

    def student(arm: str, seed: int) -> dict:
        settings = dict(arms[arm])
        rows = school.written() if settings.pop("written", False) else None
        return school.student(f"{arm}-{seed}", settings | {"seed": seed}, rows)

    for seed in args.seeds:
        for arm in args.arms:
            record.once(lambda arm=arm, seed=seed: student(arm, seed), arm=arm, seed=seed)
