"""The fair fight of chapter 04: four ways to train the same student on the same conversations.

    python experiments/04_fair_fight.py [--arms labels smoothing] [--seeds 0 1]

Every arm gets the same three tuning trials (on 300 conversations, with a seed that is used for
nothing else) and is judged at its own best validation checkpoint (see ``arms.py``). Final numbers
are from test worlds, whose names nobody has seen, and the same visitors for all.
Each run is written to ``experiments/results/04_fair_fight.ARM.json`` as it ends, and a run that is
there is not made again: stop it when you like, and let two processes work on different arms.
"""

import argparse
from pathlib import Path

import torch
from arms import train
from recording import RESULTS, Record
from remembering import RememberingTeacher

from distillkit.models import load_model

SIZES = (100, 300, 1000, 3000)
TUNING_SIZE, TUNING_SEED = 300, 1000
TRIALS: dict[str, list[dict]] = {
    "labels": [{}, {"longer": 2}, {"learning_rate": 2.5e-3}],
    "smoothing": [{"smoothing": 0.1}, {"smoothing": 0.1, "longer": 2}, {"smoothing": 0.03}],
    "written": [{}, {"longer": 2}, {"learning_rate": 2.5e-3}],
    "distilled": [
        {"alpha": 0.9, "temperature": 1.0},
        {"alpha": 0.9, "temperature": 1.0, "longer": 2},
        {"alpha": 0.9, "temperature": 2.0, "longer": 2},
    ],
}


def tune(record: Record, arm: str, teacher, tokenizer) -> dict:
    """The trial with the best task success on development visitors (NLL where they tie)."""
    runs = [
        record.once(
            lambda trial=trial: train(
                arm, TUNING_SIZE, TUNING_SEED, trial, teacher, tokenizer, split="development"
            ),
            arm=arm,
            size=TUNING_SIZE,
            seed=TUNING_SEED,
            number=number,
        )
        for number, trial in enumerate(TRIALS[arm])
    ]
    return max(runs, key=lambda run: (run["success"], -run["nll"]))["trial"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
    parser.add_argument("--keep", type=Path, default=Path("build/students"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model("front-desk-teacher")
    teacher = RememberingTeacher(model)
    for arm in args.arms:
        record = Record(f"04_fair_fight.{arm}.json", args.results)
        chosen = tune(record, arm, teacher, tokenizer)
        for seed in args.seeds:
            for size in args.sizes:
                keep = args.keep / f"{arm}-{size}-{seed}" if seed == 0 else None
                record.once(
                    lambda run=(arm, size, seed, chosen), keep=keep: train(
                        *run, teacher, tokenizer, keep=keep
                    ),
                    arm=arm,
                    size=size,
                    seed=seed,
                )


if __name__ == "__main__":
    main()
