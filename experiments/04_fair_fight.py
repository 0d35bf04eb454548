"""The fair fight of chapter 04: four ways to train the same student on the same conversations.

    python experiments/04_fair_fight.py [--arms labels smoothing] [--seeds 0 1]

Every arm gets four tuning trials (on 300 conversations, with a seed that is used for nothing
else); the one with the best validation NLL is used for all sizes and seeds. Each student is judged
at its own best validation checkpoint (see ``arms.py``). The final numbers are from test worlds, and
the same visitors for all. Each run is written to ``experiments/results/04_fair_fight.ARM.json`` as
it ends, and a run that is there is not made again: stop it when you like, and let two processes
work on different arms.
"""

import argparse

import torch
from arms import Classroom
from recording import Record
from remembering import RememberingTeacher

from distillkit.models import load_model

SIZES = (100, 300, 1000, 3000)
TUNING_SIZE, TUNING_SEED = 300, 1000
BY_LABELS = [{}, {"epochs": 16}, {"learning_rate": 2.5e-3}, {"epochs": 16, "learning_rate": 2.5e-3}]
TRIALS: dict[str, list[dict]] = {
    "labels": BY_LABELS,
    "smoothing": [
        {"smoothing": 0.1},
        {"smoothing": 0.1, "epochs": 16},
        {"smoothing": 0.03},
        {"smoothing": 0.2},
    ],
    "written": BY_LABELS,
    "distilled": [
        {"alpha": 0.9, "temperature": 1.0},
        {"alpha": 0.9, "temperature": 2.0},
        {"alpha": 0.9, "temperature": 4.0},
        {"alpha": 0.5, "temperature": 1.0},
    ],
}


def tune(record: Record, arm: str, classroom: Classroom) -> dict:
    """The settings that this arm is given at every size."""
    key = {"arm": arm, "size": TUNING_SIZE, "seed": TUNING_SEED, **classroom.key(arm)}
    return record.best_trial(
        TRIALS[arm], lambda trial: classroom.train(arm, TUNING_SIZE, TUNING_SEED, trial)[1], **key
    )


def fight(arm: str, size: int, seed: int, trial: dict, classroom: Classroom) -> dict:
    """Train and measure one student."""
    model, run = classroom.train(arm, size, seed, trial)
    return run | classroom.measure(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    teacher, tokenizer = load_model("front-desk-teacher")
    classroom = Classroom(RememberingTeacher(teacher), tokenizer)
    records = {arm: Record(f"04_fair_fight.{arm}.json") for arm in args.arms}
    chosen = {arm: tune(records[arm], arm, classroom) for arm in args.arms}
    for seed in args.seeds:
        classroom.next_seed()
        for size in args.sizes:
            for arm in args.arms:
                records[arm].once(
                    lambda run=(arm, size, seed): fight(*run, chosen[run[0]], classroom),
                    arm=arm,
                    size=size,
                    seed=seed,
                    trial=chosen[arm],
                    **classroom.key(arm),
                )


if __name__ == "__main__":
    main()
