"""Exercises of chapter 00, start here: which visits succeed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw

# 0.3 · task success -------------------------------------------------------------------------------

NOTHING = 0
"""The number of a place that is none."""


def _visits_cases(draw: Draw) -> list[Case]:
    cases = []
    for visits, kinds in ((40, 3), (25, 4), (60, 2)):
        wanted = draw.integers(visits, kinds, below=9)
        wanted[draw.integers(visits, kinds, below=3) == 0] = NOTHING
        wanted[:2] = torch.tensor([[5], [NOTHING]])
        booked = wanted.clone()
        amiss = draw.integers(visits, kinds, below=6)
        booked[amiss == 0] = NOTHING
        booked[amiss == 1] = wanted[amiss == 1] + 1  # another place, or one that nobody wanted
        untrue = (draw.integers(visits, below=8) - 5).clamp(min=0)
        booked[2:8], untrue[2:8] = wanted[2:8], torch.tensor([0, 0, 0, 0, 1, 2])
        wanted[8], booked[8], untrue[8] = 3, NOTHING, 0
        wanted[9], booked[9], untrue[9] = 3, 4, 0
        wanted[10] = booked[10] = untrue[10] = 0
        wanted[10, :2], booked[10, :2] = torch.tensor([3, 4]), torch.tensor([4, 3])
        cases.append(Case(f"N={visits}, D={kinds}", (wanted, booked, untrue)))
    return [*cases, Case("15 visits, of which 5 succeed", _each_fault_another_number(draw))]


def _each_fault_another_number(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Three unwanted bookings, none where one was wanted, two other places, four untrue words.

    So whoever overlooks one of these faults has a share that no other has.
    """
    wanted = draw.integers(15, 2, below=9, least=1)
    wanted[:4, 1] = NOTHING
    booked, untrue = wanted.clone(), torch.zeros(15, dtype=torch.long)
    booked[:3, 1] = wanted[:3, 0]
    booked[4] = NOTHING
    booked[5:7] += 1
    untrue[7:11] = 1
    return wanted, booked, untrue


def _visits_oracle(
    wanted_ND: list[list[int]], booked_ND: list[list[int]], untrue_N: list[int]
) -> float:
    served = 0
    for wanted, booked, untrue in zip(wanted_ND, booked_ND, untrue_N, strict=True):
        right = untrue == 0
        for place, other in zip(wanted, booked, strict=True):
            if place != other:
                right = False
        served += right
    return served / len(wanted_ND)


def _served(
    booking: Callable[[Tensor, Tensor], Tensor], *, told: bool = True, partly: bool = False
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The share, by what counts as a right booking; partly: by the share of right ones."""

    def share(wanted: Tensor, booked: Tensor, untrue: Tensor) -> Tensor:
        right = booking(wanted, booked).double()
        each = right.mean(1) if partly else right.prod(1)
        return (each * (untrue == 0) if told else each).mean()

    return share


def _number_served(wanted: Tensor, booked: Tensor, untrue: Tensor) -> Tensor:
    return ((wanted == booked).all(1) & (untrue == 0)).sum()


def _sums_served(wanted: Tensor, booked: Tensor, untrue: Tensor) -> Tensor:
    return ((wanted.sum(1) == booked.sum(1)) & (untrue == 0)).double().mean()


TASK_SUCCESS = Exercise(
    number="0.3",
    title="Which visits succeed?",
    kind="write",
    minutes=6,
    difficulty=1,
    hints=(
        "A visit succeeds, or it does not: there is nothing between. What two things must hold?",
        "Bookings are right if `booked` is `wanted` in every one of the D kinds, also where "
        "nothing was wanted. Nothing untrue was told if the count is 0.",
        "`(wanted_ND == booked_ND).all(dim=1)` is one verdict a visit; `&` joins two of them.",
    ),
    cases=_visits_cases,
    oracle=_visits_oracle,
    mutants=(
        Mutant(
            "half a success",
            _served(lambda wanted, booked: wanted == booked, partly=True),
            "A visit with one right booking out of two counts as a half of a success. The visitor "
            "came for both: it has failed.",
            "android_world#361 and flow_matching#8",
        ),
        Mutant(
            "words not checked",
            _served(lambda wanted, booked: wanted == booked, told=False),
            "You look at the bookings alone. Whoever is told something untrue was not served, "
            "however right the booking is.",
            "tau2-bench#15, where rewards were full and checks of what was said had failed",
        ),
        Mutant(
            "anything booked",
            _served(lambda wanted, booked: (wanted > 0) == (booked > 0)),
            "You ask whether something was booked, not whether it was the right place.",
            "ConvLab-3 PR#24: a rate of completed goals, which does not look at the wishes",
        ),
        Mutant(
            "nothing done",
            _served(lambda wanted, booked: (wanted == booked) | (booked == NOTHING)),
            "A desk that books nothing passes your check. Where something was wanted, nothing is "
            "wrong.",
            "tau2-bench#384, where agents that did nothing were rewarded",
        ),
        Mutant(
            "extra bookings accepted",
            _served(lambda wanted, booked: (wanted == booked) | (wanted == NOTHING)),
            "You look only at the kinds in which something was wanted. A desk that books besides "
            "what nobody asked for has failed: 0 in `wanted_ND` asks for 0 in `booked_ND`.",
            "a reader",
        ),
        Mutant(
            "the count",
            _number_served,
            "That is how many visits succeed, and each is rightly judged. Task success is their "
            "share: divide by N, or take the mean.",
            "a reader",
        ),
        Mutant(
            "sums of numbers",
            _sums_served,
            "You compare sums, or sorted numbers. Places 3 and 4 and places 4 and 3 have the same "
            "sum, and they are other places: compare kind by kind, and then ask for `all`.",
            "a reader",
        ),
        Mutant(
            "the share of bookings",
            _served(lambda wanted, booked: wanted == booked, partly=True, told=False),
            "That is the share of *bookings* that are right. A visit succeeds whole or not at all: "
            "take `all` over its kinds. And whoever was told something untrue was not served.",
            "a reader",
        ),
    ),
)

EXERCISES = (TASK_SUCCESS,)
