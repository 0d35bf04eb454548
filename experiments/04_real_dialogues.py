"""The main job on real conversations: MultiWOZ and STAR, teacher → student, against labels alone.

    python experiments/04_real_dialogues.py --data FOLDER [--seeds 0 1 2]

FOLDER holds dialogues_en.{train,validation,test}.jsonl; experiments/REAL_DATA.md says what they
are, gives their hashes and how to rebuild them. A small teacher is trained from scratch, then each
student twice from the same random weights: on the labels, and on the labels and the teacher. Scores
are given for each source: 80 % of STAR's test replies occur word for word in its training part, so
MultiWOZ is the one to look at. A run that stands in
``experiments/results/04_real_dialogues.json`` is not made again.
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

DATA = Path(__file__).parents[2] / "shared" / "data"
VOCABULARY = 2048
REPLIES = 300  # test replies that are generated and compared, MultiWOZ alone
TEACHER = {"steps": 1200, "batch_size": 8, "learning_rate": 3e-3, "eval_every": 200}
STUDENT = {"steps": 1000, "batch_size": 8, "learning_rate": 5e-3, "eval_every": 100}
ARMS = {"labels": {"alpha": 0.0}, "distilled": {"alpha": 0.9, "temperature": 1.0}}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("build/real"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, validation, test = (
        load_dialogues(str(args.data / f"dialogues_en.{part}.jsonl"))
        for part in ("train", "validation", "test")
    )
    multiwoz = [row for row in test if row["source"] == "multiwoz2.1"]
    record = Record("04_real_dialogues.json")
    record.content["data"] = data_card(train=train, validation=validation, test=test)

    def made(out: Path, teacher, student, **settings) -> dict:
        """The metrics of this run, which is made unless its folder is there."""
        if (out / "metrics.json").exists():
            return json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        return distill(
            teacher, student, train, validation, out, test_rows=test, resume=True, **settings
        )

    def run(out: Path, teacher, student, **settings) -> dict:
        metrics = made(out, teacher, student, **settings)
        model, tokenizer = load_model(out)
        chosen = next(iter(metrics["curves"]))
        return {**metrics["models"][chosen], **replies(model, tokenizer, multiwoz)}

    folder = args.work / "teacher"
    common = {"max_length": 400, "optimizer": "muon"}
    plan = {"alpha": 0.0, "vocab_size": VOCABULARY, **TEACHER, **common}
    record.once(lambda: run(folder, None, "teacher", **plan), arm="teacher", seed=0)
    for seed in args.seeds:
        for arm, settings in ARMS.items():
            if record.find(arm=arm, seed=seed):
                continue
            made(folder, None, "teacher", **plan)  # another machine may have made the record
            out, its = args.work / f"{arm}-{seed}", {**settings, **STUDENT, **common, "seed": seed}
            record.once(
                lambda out=out, its=its: run(out, folder, "student", **its), arm=arm, seed=seed
            )


if __name__ == "__main__":
    main()
