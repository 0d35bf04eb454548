"""Does a student's own history take it further from its teacher? The same visitors, served twice.

    python experiments/07_drift.py [--students front-desk-student] [--threads 1]

Each of `VISITORS` visitors of test worlds is served by the desk, and by the student, which draws
its words at temperature 1, once with each of `SEEDS`. The teacher then scores the student on both:
KL(teacher ‖ student) per assistant token, by groups of turns (`drift.EDGES`). A student's visit
ends where it fails, so a group is compared on the visitors who come there both ways; one that
breaks off early is in no later group, on either side. Of each visitor the mean over the tokens of
the group counts, on the student's words over both seeds together: so each visitor weighs the same,
and long visits do not count more. Intervals are bootstrapped over visitors, the same for both.

Results: ``experiments/results/07_drift.json``. A student that is there is not measured again.
"""

import argparse
import time

import numpy as np
import torch
from recording import Record

from distillkit.chat import encode_rows
from distillkit.dialogues import front_desk
from distillkit.drift import EDGES, TurnSums, sums_by_turn
from distillkit.intervals import (
    bootstrap_interval,
    paired_difference_interval,
    paired_ratio_interval,
)
from distillkit.models import load_model
from distillkit.on_policy import WholeVisits
from distillkit.sampling import Sampling

TEACHER = "front-desk-teacher"
STUDENTS = (
    "front-desk-student",
    "front-desk-student-labels",
    "front-desk-student-small",
    "front-desk-student-small-labels",
)
VISITORS, VISITOR_SEED = 500, 70  # nobody else is served or scored with this seed
SEEDS = (0, 1)  # of the student's words
AT_ONCE = 250  # visits


def measure(name: str) -> dict:
    """One student: its KL to the teacher on the desk's words and on its own, group by group."""
    began = time.process_time()
    (student, tokenizer), (teacher, _) = load_model(name), load_model(TEACHER)
    opens = tokenizer.convert_tokens_to_ids("<|user|>")
    rows = encode_rows(tokenizer, front_desk(VISITORS, seed=VISITOR_SEED, split="test"))
    desk = sums_by_turn(student, teacher, rows, opens)
    own = [spoken(student, teacher, tokenizer, seed, opens) for seed in SEEDS]
    return {
        "visitors": VISITORS,
        "seeds": list(SEEDS),
        "groups": compared(desk, summed(own)),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def spoken(student, teacher, tokenizer, seed: int, opens: int) -> TurnSums:
    """The student's own words to the same visitors, (visitors, groups)."""
    crowd = WholeVisits(tokenizer, [], Sampling(seed=seed), split="test")
    names = [f"{VISITOR_SEED}/{number}" for number in range(VISITORS)]
    heard = []
    for first in range(0, VISITORS, AT_ONCE):
        some = names[first : first + AT_ONCE]
        heard += crowd.serve_each(student, some, some)
    rows = [row for each in heard for row in each]
    sums = sums_by_turn(student, teacher, rows, opens)
    whose = np.repeat(np.arange(VISITORS), [len(each) for each in heard])
    by_visitor = np.zeros((3, VISITORS, len(EDGES)))
    for total, part in zip(by_visitor, (sums.values, sums.turns, sums.tokens), strict=True):
        np.add.at(total, whose, part)
    return TurnSums(*by_visitor)


def summed(parts: list[TurnSums]) -> TurnSums:
    """Several samples of the same visitors as one."""
    return TurnSums(
        sum(part.values for part in parts),
        sum(part.turns for part in parts),
        sum(part.tokens for part in parts),
    )


def compared(desk: TurnSums, own: TurnSums) -> list[dict]:
    """Each group of turns, and all of them: both means, their difference and their quotient."""
    firsts = [1, *(edge + 1 for edge in EDGES[:-1])]
    columns = {
        f"{first}-{last}": slice(at, at + 1)
        for at, (first, last) in enumerate(zip(firsts, EDGES, strict=True))
    }
    both = [
        compare(desk, own, column) | {"turns": name}
        for name, column in (columns | {"all": slice(None)}).items()
    ]
    return [group for group in both if "desk" in group]


def compare(desk: TurnSums, own: TurnSums, column: slice) -> dict:
    """One group of turns, on the visitors who come there both ways.

    Of all turns together, the groups that a visitor has on both sides weigh as often as the tokens
    of the desk have them: so neither side is compared on other turns than the other.
    """
    reached = (desk.tokens[:, column] > 0) & (own.tokens[:, column] > 0)
    kept = reached.any(1)
    if not kept.any():
        return {}
    weights = desk.tokens[:, column] * reached
    weights = weights[kept] / weights[kept].sum(1, keepdims=True)
    means = {}
    for name, sums in (("desk", desk), ("own", own)):
        values = sums.values[:, column] / np.maximum(sums.tokens[:, column], 1)
        means[name] = (values[kept] * weights).sum(1)[None]
    pair = means["own"], means["desk"]
    turns = desk.turns[kept, column].sum() / desk.tokens[kept, column].sum()
    return {
        "visitors": int(kept.sum()),
        "mean_turn": round(float(turns), 2),
        "desk_tokens": int(desk.tokens[kept, column].sum()),
        "own_tokens": int(own.tokens[kept, column].sum()),
        **{name: float(each.mean()) for name, each in means.items()},
        **{f"{name}_interval": bootstrap_interval(each) for name, each in means.items()},
        "difference": float(pair[0].mean() - pair[1].mean()),
        "difference_interval": paired_difference_interval(*pair),
        "ratio": float(pair[0].mean() / pair[1].mean()),
        "ratio_interval": paired_ratio_interval(*pair),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = Record("07_drift.json")
    for name in args.students:
        record.once(lambda name=name: measure(name), student=name)


if __name__ == "__main__":
    main()
