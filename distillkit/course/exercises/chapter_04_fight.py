"""Exercises of chapter 04, the student: comparing two ways of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit import intervals
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 4.3 · the interval of a difference ---------------------------------------------------------------


def _interval_cases(draw: Draw) -> list[Case]:
    cases = []
    for samples, seeds, visitors in ((60, 5, 12), (41, 3, 20), (80, 4, 9)):
        marks = draw.integers(2, seeds, visitors, below=2).to(draw.dtype)
        drawn_seeds = draw.integers(samples, seeds, below=seeds)
        drawn_visitors = draw.integers(samples, visitors, below=visitors)
        name = f"{samples} samples of {seeds} seeds and {visitors} visitors"
        cases.append(Case(name, (marks[0], marks[1], drawn_seeds, drawn_visitors)))
    return cases


def _interval_oracle(
    ours: list[list[float]],
    theirs: list[list[float]],
    seed_draws: list[list[int]],
    visitor_draws: list[list[int]],
) -> tuple[float, float]:
    means = []
    for seeds, visitors in zip(seed_draws, visitor_draws, strict=True):
        total = 0.0
        for seed in seeds:
            for visitor in visitors:
                total += ours[seed][visitor] - theirs[seed][visitor]
        means.append(total / (len(seeds) * len(visitors)))
    means.sort()

    def quantile(share: float) -> float:
        place = share * (len(means) - 1)
        below = int(place)
        part = place - below
        return (1 - part) * means[below] + part * means[min(below + 1, len(means) - 1)]

    return quantile(0.025), quantile(0.975)


def _means(marks: Tensor, seeds: Tensor, visitors: Tensor) -> Tensor:
    """The mean of each sample, (samples,)."""
    return marks[seeds[:, :, None], visitors[:, None, :]].mean((1, 2))


def _ends(means: Tensor, tail: float = 0.025) -> tuple[Tensor, Tensor]:
    return means.quantile(tail), means.quantile(1 - tail)


def _ends_subtracted(a: Tensor, b: Tensor, seeds: Tensor, visitors: Tensor) -> tuple[Any, Any]:
    (low, high), (bottom, top) = (_ends(_means(marks, seeds, visitors)) for marks in (a, b))
    return low - top, high - bottom


INTERVAL = Exercise(
    number="4.3",
    title="Is the difference more than chance?",
    kind="write",
    minutes=15,
    difficulty=3,
    hints=(
        "Subtract first: `ours - theirs` has a difference for each seed and visitor. What a seed "
        "or a visitor does to both has cancelled, and one table is left to resample.",
        "One sample: the rows `seed_draws[n]`, then of those the columns `visitor_draws[n]`, then "
        "the mean. A loop over the samples is quick enough.",
        "`d[seed_draws[n]][:, visitor_draws[n]].mean()`; of all these means take "
        "`torch.quantile(means, 0.025)` and `torch.quantile(means, 0.975)`.",
    ),
    cases=_interval_cases,
    oracle=_interval_oracle,
    library=(intervals.bootstrap_interval, intervals.paired_difference_interval),
    mutants=(
        Mutant(
            "ends subtracted",
            _ends_subtracted,
            "You made an interval for each arm and subtracted the ends. So what is hard for both "
            "is counted twice, and a difference that is well supported looks like a tie. Subtract "
            "the marks, then resample.",
            "judging by overlap, as Schenker and Gentleman 2001 found it in published work",
        ),
        Mutant(
            "visitors alone",
            lambda a, b, seeds, visitors: _ends((a - b).mean(0)[visitors].mean(1)),
            "You drew visitors and kept the seeds. Yours says how sure the difference is for these "
            "trainings; another seed is another training, and they lie far apart.",
            "comparisons without the spread over seeds: Reimers and Gurevych 2017",
        ),
        Mutant(
            "seeds alone",
            lambda a, b, seeds, visitors: _ends((a - b).mean(1)[seeds].mean(1)),
            "You drew seeds and kept the visitors. They are a sample too: other visitors, another "
            "difference.",
            "evaluations without error bars over the questions: Miller 2024",
        ),
        Mutant(
            "theirs minus ours",
            lambda a, b, seeds, visitors: _ends(_means(b - a, seeds, visitors)),
            "That is the interval of theirs minus ours. For visits served more is better, so a "
            "win of ours must be above zero.",
            "chapter 04 itself has both orders: a gain in NLL is theirs minus ours",
        ),
        Mutant(
            "90 %",
            lambda a, b, seeds, visitors: _ends(_means(a - b, seeds, visitors), 0.05),
            "You cut 5 % off *each* end, which leaves 90 %. For an interval of 95 %, both tails "
            "together have 5 %.",
            "Efron and Tibshirani 1993, chapter 13, where α = 0.05 gives an interval of 90 %",
        ),
    ),
)


# 4.5 · each at its own best -----------------------------------------------------------------------


def _best_cases(draw: Draw) -> list[Case]:
    cases = []
    for arms, checkpoints in ((2, 6), (3, 9), (4, 5)):
        nll, success = draw.probabilities(2, arms, checkpoints)
        least = nll.min()
        nll[0, 0], nll[1:, 0] = least / 2, 1.0  # the first arm's best, and the others' worst
        if arms == 2:
            nll[:, 2] = 0.75 * least  # the best of the second, and of their mean
        cases.append(Case(f"{arms} arms, {checkpoints} checkpoints", (nll, success)))
    nll, success = draw.probabilities(2, 2, 7)
    nll[:, 3] = nll[:, 5] = nll.min() / 2
    success[:, 3], success[:, 5] = torch.tensor([0.3, 0.6]), torch.tensor([0.7, 0.2])
    return [*cases, Case("two checkpoints of the same validation NLL", (nll, success))]


def _best_oracle(validation_nll: list[list[float]], test_success: list[list[float]]) -> list[float]:
    chosen = []
    for nlls, successes in zip(validation_nll, test_success, strict=True):
        best = 0
        for place in range(len(nlls)):
            if nlls[place] < nlls[best]:
                best = place
        chosen.append(successes[best])
    return chosen


def _at(choose: Function) -> Function:
    """The successes at the checkpoints that `choose` takes."""

    def chosen(nll: Tensor, success: Tensor) -> Tensor:
        places = choose(nll, success)
        return success.gather(1, places.expand(len(nll)).unsqueeze(1)).squeeze(1)

    return chosen


BEST = Exercise(
    number="4.5",
    title="Each at its own best",
    kind="write",
    minutes=5,
    difficulty=1,
    hints=(
        "Choosing and judging are two steps, on two sets of conversations. Which of the two tables "
        "may the choice look at?",
        "`validation_nll.argmin(dim=1)` is the place of each arm's best checkpoint, the earliest "
        "of equals. Take the test's success there.",
    ),
    cases=_best_cases,
    oracle=_best_oracle,
    mutants=(
        Mutant(
            "last checkpoint",
            _at(lambda nll, success: torch.tensor(nll.shape[1] - 1)),
            "You took the last checkpoint. Nobody would ship it after it has overfitted: the fair "
            "rival of distillation is labels stopped in time.",
            "what a Trainer leaves unless told otherwise, transformers#10896",
        ),
        Mutant(
            "best on the test",
            lambda nll, success: success.amax(1),
            "You let the test choose. So the luck of each arm's best draw is in its score, and "
            "more checkpoints make any arm look better. Choose on validation.",
            "papers that Musgrave, Belongie and Lim 2020 examined: training with test feedback",
        ),
        Mutant(
            "highest NLL",
            _at(lambda nll, success: nll.argmax(1)),
            "You took the *highest* validation NLL, the worst checkpoint. NLL is a loss: less is "
            "better.",
            "transformers PR#31142, whose author lost seven hours of training to it",
        ),
        Mutant(
            "one step for all",
            _at(lambda nll, success: nll[0].argmin()),
            "You took the step that is best for the first arm, for all of them. Arms peak at "
            "different times, so that flatters the first.",
            "comparisons at equal steps: labels peak early in the runs of chapter 04",
        ),
        Mutant(
            "the validation's score",
            lambda nll, success: nll.amin(1),
            "The checkpoints are right. You return their validation NLL, though, with which they "
            "were chosen; the score is the success on the test.",
            "`best_metric` of transformers' TrainerState, which is the validation's",
        ),
        Mutant(
            "every arm at every best",
            lambda nll, success: success[:, nll.argmin(1)],
            "The checkpoints are right. But `test_success[:, best]` takes *all* rows at each of "
            "them, (arms, arms). Each arm has its own: `gather`, or `[torch.arange(arms), best]`.",
            "a reader",
        ),
        Mutant(
            "the last of equals",
            _at(lambda nll, success: nll.shape[1] - 1 - nll.flip(1).argmin(1)),
            "Of equal checkpoints you take the last. The earliest of them was as good, and cost "
            "less training: replace the best so far only by one that is *lower*.",
            "a reader",
        ),
        Mutant(
            "the luckiest of equals",
            lambda nll, success: success.masked_fill(nll > nll.amin(1, True), 0.0).amax(1),
            "Of equal checkpoints you take the one with the best *test*: a small look at what must "
            "not be looked at. The earliest of equals, whatever the test says about it.",
            "a reader",
        ),
        Mutant(
            "one checkpoint for all",
            _at(lambda nll, success: nll.mean(0).argmin()),
            "You took one step for all arms, the best of their mean. Arms peak at different times, "
            "so none of them is at its own best: `argmin` along dim=1.",
            "a reader",
        ),
    ),
)

EXERCISES = (INTERVAL, BEST)
