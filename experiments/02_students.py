"""Train the two students that ship with distillkit: one on labels, one distilled.

    python experiments/02_students.py [labels distilled]

Both learn from the same 1,000 conversations, from the same random weights, for the same number of
steps, and each is kept at its own best validation checkpoint (see ``arms.py``). Their measures
stand in ``experiments/results/02_students.ARM.json`` and in their model cards.
"""

import argparse

import torch
from arms import VISITS, train
from recording import Record
from remembering import RememberingTeacher

from distillkit.benchmark import bytes_on_disk
from distillkit.model_files import SHIPPED_FOLDER
from distillkit.models import load_model, save_model

SIZE, SEED = 1000, 0
STUDENTS = {
    "labels": ("front-desk-student-labels", {}),
    "distilled": (
        "front-desk-student",
        {"alpha": 0.9, "temperature": 1.0},
    ),
}
HOW = {
    "labels": "the labels alone",
    "distilled": "the teacher's soft labels (alpha 0.9, temperature 1)",
}
CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
---
# {name}

A student of the front desk: {parameters:,} parameters, trained on {size:,} conversations with
{how}. On {visits} visitors of towns that it has never seen it serves {success:.1%} to their
satisfaction; the labels' NLL there is {nll:.3f} nats per assistant token. Made by
`experiments/02_students.py`, whose results stand in `experiments/results`. It knows the simulated
front desk of the course and nothing else.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arms", nargs="*", default=list(STUDENTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model("front-desk-teacher")
    teacher = RememberingTeacher(model)
    for arm in args.arms:
        name, trial = STUDENTS[arm]
        folder = SHIPPED_FOLDER / name
        record = Record(f"02_students.{arm}.json")
        run = record.once(
            lambda arm=arm, trial=trial, folder=folder: train(
                arm, SIZE, SEED, trial, teacher, tokenizer, keep=folder
            ),
            arm=arm,
            size=SIZE,
            seed=SEED,
        )
        student, _ = load_model(folder)
        card = CARD.format(
            name=name,
            parameters=student.num_parameters(),
            size=SIZE,
            how=HOW[arm],
            visits=VISITS,
            success=run["success"],
            nll=run["nll"],
        )
        save_model(student, tokenizer, folder, card=card)
        run["bytes"] = bytes_on_disk(folder)
        record.write()


if __name__ == "__main__":
    main()
