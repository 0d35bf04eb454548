"""The students that ship: three sizes, each taught by the labels alone and distilled.

    python experiments/00_students.py [--arms labels distilled]

All of them get the same conversations and the same number of steps. Each arm has three tuning
trials with the middle size and a quarter of the steps; the one with the best validation NLL is used
for its three sizes. Each student is judged and kept at its own best validation checkpoint (see
``arms.py``), and goes into distillkit/checkpoints. One training seed each: this is not a comparison
of methods (``04_fair_fight.py`` is). The results of an arm are in
``experiments/results/00_students.ARM.json``.
"""

import argparse

import torch
from arms import VISITS, Classroom
from recording import Record
from remembering import RememberingTeacher
from shipping import ship

from distillkit.models import load_model

STEPS, CONVERSATIONS, SEED = 3600, 9600, 0
SIZES = ("student", "student-small", "student-large")
TRIALS: dict[str, list[dict]] = {
    "labels": [{"learning_rate": rate} for rate in (2.5e-3, 5e-3, 7e-3)],
    "distilled": [{"alpha": 0.9, "temperature": T} for T in (1.0, 2.0, 4.0)],
}
NAMES = {"labels": "front-desk-{}-labels", "distilled": "front-desk-{}"}
CARD = """\
A student of the front desk: {parameters:,} parameters, trained on {conversations:,} conversations
with {how}. Of {visits:,} visitors of towns that it has never seen it serves {success:.1%} to their
satisfaction; its NLL there is {nll:.3f} nats per assistant token. Made by
`experiments/00_students.py`, whose results stand in `experiments/results`."""
HOW = {"labels": "the labels alone", "distilled": "the soft labels of front-desk-teacher"}


def tune(record: Record, arm: str, classroom: Classroom) -> dict:
    """The settings that this arm is given at every size."""
    steps = STEPS // 4
    return record.best_trial(
        TRIALS[arm],
        lambda trial: classroom.train(arm, CONVERSATIONS, SEED, trial, steps=steps)[1],
        named="tried",
        arm=arm,
        steps=steps,
        **classroom.key(arm),
    )


def graduate(arm: str, size: str, trial: dict, classroom: Classroom) -> dict:
    """Train and measure one student, and put it where it ships."""
    model, run = classroom.train(arm, CONVERSATIONS, SEED, trial, shape=size, steps=STEPS)
    run |= {"name": NAMES[arm].format(size), "conversations": CONVERSATIONS}
    run |= classroom.measure(model)
    text = CARD.format(how=HOW[arm], visits=VISITS, **run)
    return run | {"bytes": ship(model, classroom.tokenizer, run["name"], text)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    teacher, tokenizer = load_model("front-desk-teacher")
    classroom = Classroom(RememberingTeacher(teacher), tokenizer)
    for arm in args.arms:
        record = Record(f"00_students.{arm}.json")
        trial = tune(record, arm, classroom)
        for size in SIZES:
            record.once(
                lambda run=(arm, size, trial): graduate(*run, classroom),
                arm=arm,
                size=size,
                seed=SEED,
                trial=trial,
                **classroom.key(arm),
            )


if __name__ == "__main__":
    main()
