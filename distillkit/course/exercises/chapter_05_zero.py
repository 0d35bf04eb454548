"""Exercise of chapter 05, a classifier: what four losses are where the student is the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from distillkit.course.exercises import loops
from distillkit.course.exercises.definition import OFFERED, Exercise, Mutant

# 5.4 · what a loss is at its best -----------------------------------------------------------------

LOSSES = ("KL", "cross-entropy", "kl_div of probabilities", "its mean")
_P = (0.5, 0.25, 0.25)


def at_equality() -> list[str]:
    """The four losses where the student is the teacher, the least first."""
    logits = torch.tensor(_P, dtype=torch.float64).log().unsqueeze(0)
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    wrong = F.kl_div(p, p, reduction="batchmean").item()
    values = {
        "KL": loops.kl(log_p[0].tolist(), log_p[0].tolist()),
        "cross-entropy": -(p * log_p).sum().item(),
        "kl_div of probabilities": wrong,
        "its mean": wrong / len(_P),
    }
    return sorted(LOSSES, key=values.__getitem__)


ZERO = Exercise(
    number="5.4",
    title="What does a perfect student cost?",
    kind="predict",
    minutes=5,
    difficulty=2,
    hints=(
        "Only one of the four is 0 there. `kl_div(input, target)` is the sum of "
        "`target * (log(target) - input)`: put probabilities in for `input`, and look at its sign.",
        "It is minus the entropy, about -1.04, minus the sum of p², 0.375. Its mean is a third.",
    ),
    choices=LOSSES,
    oracle=at_equality,
    mutants=(
        Mutant(
            "a KL is the least",
            ["KL", "its mean", "kl_div of probabilities", "cross-entropy"],
            "No KL is below 0, but `kl_div` of probabilities is not a KL: at this place it is "
            "-1.41, and a loop that minimises it goes lower still.",
            "Knowledge-Distillation-Zoo#12, where somebody wonders about a negative loss",
        ),
        Mutant(
            "a KL is the least, and then the sum",
            ["KL", "kl_div of probabilities", "its mean", "cross-entropy"],
            "The other three are in order. But nothing says that a KL is the least: it is 0 here, "
            "and in `kl_div` of probabilities both parts, p log p and -p·q, are below 0.",
            "a reader: no KL is below 0, so nothing is",
        ),
        Mutant(
            "a KL is the least, the mean the greatest",
            ["KL", "kl_div of probabilities", "cross-entropy", "its mean"],
            "The KL is 0, and two of the others are below it. The mean is a third of `kl_div` of "
            "probabilities, so it has the same sign: above or below the cross-entropy together.",
            "a reader: no KL is below 0, so nothing is",
        ),
        Mutant(
            "a KL is the least, a cross-entropy next",
            ["KL", "cross-entropy", "kl_div of probabilities", "its mean"],
            "The KL is 0 here and the cross-entropy is the teacher's entropy, 1.04. The two "
            "others are wrong enough to be below both: what sign has p·(log p - q)?",
            "a reader, who put the two right programs first",
        ),
        Mutant(
            "a KL is the least, the sum the greatest",
            ["KL", "cross-entropy", "its mean", "kl_div of probabilities"],
            "A sum is *farther* from 0 than its mean, but on which side? `target * (log(target) - "
            "input)` is negative for every class here, so both come before the KL.",
            "a reader, who forgot the sign",
        ),
        Mutant(
            "the mean above 0",
            ["kl_div of probabilities", "KL", "its mean", "cross-entropy"],
            "One of the two is below 0, you say, and the other is not. The mean is a third of the "
            "sum: it has the same sign.",
            "a reader",
        ),
        Mutant(
            "the sum above 0",
            ["its mean", "KL", "kl_div of probabilities", "cross-entropy"],
            "The mean is below 0, you say, and its sum above. One is a third of the other: they "
            "have one sign, and below 0 the sum is the lower of the two.",
            "a reader",
        ),
        Mutant(
            "the mean is smaller",
            ["its mean", "kl_div of probabilities", "KL", "cross-entropy"],
            "A mean is nearer to 0 than its sum; below 0 that makes it the larger of the two.",
            OFFERED,
        ),
        Mutant(
            "a cross-entropy is below",
            ["kl_div of probabilities", "its mean", "cross-entropy", "KL"],
            "A cross-entropy is the KL *plus* the teacher's entropy, which is above 0 unless the "
            "teacher is certain.",
            "torchtune's ForwardKLLoss, a cross-entropy by that name",
        ),
        Mutant(
            "the greatest first",
            ["cross-entropy", "KL", "its mean", "kl_div of probabilities"],
            "These are in order, the greatest first. The least comes first.",
            OFFERED,
        ),
        Mutant(
            "by distance from zero",
            ["KL", "its mean", "cross-entropy", "kl_div of probabilities"],
            "That is their order without their signs. Two of them are below 0, and an optimizer "
            "goes where it is lowest.",
            "Knowledge-Distillation-Zoo#12, whose sign was the only symptom",
        ),
    ),
)

EXERCISES = (ZERO,)
