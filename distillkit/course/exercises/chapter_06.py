"""Exercises of chapter 06, inside the network: which layers stand beside which."""

from __future__ import annotations

import operator

from distillkit import features
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 6.1 · which of the teacher's layers --------------------------------------------------------------

Maps = tuple[list[int], list[int]]


def _map_cases(draw: Draw) -> list[Case]:
    cases = []
    for every, least in ((2, 2), (3, 3), (2, 5), (4, 3)):
        mine = int(draw.integers(1, below=least + 5, least=least))
        cases.append(Case(f"{mine} of {mine * every} layers", (mine, mine * every)))
    return cases


def _map_oracle(student_layers: int, teacher_layers: int) -> Maps:
    every = teacher_layers // student_layers
    copied, states = [], [0]
    for layer in range(1, student_layers + 1):
        copied.append(layer * every - 1)
        states.append(layer * every)
    return copied, states


def _states_as_layers(mine: int, its: int) -> Maps:
    copied, _ = _map_oracle(mine, its)
    return copied, [0, *copied]


def _layers_as_states(mine: int, its: int) -> Maps:
    _, states = _map_oracle(mine, its)
    return states[1:], states


def _first_of_each(mine: int, its: int) -> Maps:
    copied, states = _map_oracle(mine, its)
    return [layer - its // mine + 1 for layer in copied], states


def _no_embeddings(mine: int, its: int) -> Maps:
    copied, states = _map_oracle(mine, its)
    return copied, states[1:]


def _last_ones(mine: int, its: int) -> Maps:
    return list(range(its - mine, its)), [0, *range(its - mine + 1, its + 1)]


def _spread(mine: int, its: int) -> Maps:
    copied = [round(step * (its - 1) / (mine - 1)) for step in range(mine)]
    return copied, [0, *(layer + 1 for layer in copied)]


def _spread_apart(mine: int, its: int) -> Maps:
    return _spread(mine, its)[0], _map_oracle(mine, its)[1]


def _first_ones(mine: int, its: int) -> Maps:
    return list(range(mine)), list(range(mine + 1))


def _exchanged(mine: int, its: int) -> Maps:
    copied, states = _map_oracle(mine, its)
    return states, copied


def _wrong_stride(mine: int, its: int) -> Maps:
    states = [layer * mine for layer in range(mine + 1)]
    return [state - 1 for state in states[1:]], states


def _without_the_last(mine: int, its: int) -> Maps:
    copied, states = _map_oracle(mine, its)
    return copied, states[:-1]


def _whole_numbers(layer_map: Function, draw: Draw) -> bool:
    mine = int(draw.integers(1, below=6, least=2))
    found = [operator.index(each) for part in layer_map(mine, 3 * mine) for each in part]
    return len(found) == 2 * mine + 1


LAYERS = Exercise(
    number="6.1",
    title="Which of the teacher's layers?",
    kind="write",
    minutes=10,
    difficulty=2,
    hints=(
        "Take 2 of 6 by hand. The student's first layer must leave what the teacher has after "
        "three layers. Which index has that in `hidden_states`, whose first entry is what goes "
        "into the first layer? And which number has the layer that leaves it, counted from 0?",
        "`every = teacher_layers // student_layers`. After student layer m = 1, 2, … stands the "
        "teacher's state m · every.",
        "`states = [m * every for m in range(student_layers + 1)]`; the layer that leaves state i "
        "has the number i - 1 in the list.",
    ),
    cases=_map_cases,
    oracle=_map_oracle,
    library=(features.uniform_layers, features.layers_to_copy),
    properties=(
        Property(
            "whole numbers",
            _whole_numbers,
            "The values are right, but they are floats: `stack[3.0]` is an error. Divide with "
            "`//`; L is a multiple of M.",
        ),
    ),
    mutants=(
        Mutant(
            "layers for states",
            _states_as_layers,
            "The layers to copy are right, the states are one too early: you took the layers' "
            "numbers. `hidden_states[0]` is the embeddings, so layer number 1 (the second) leaves "
            "`hidden_states[2]`.",
            "sparseml PR#1272; goombalab/phi-mamba#4, where somebody stumbles over it",
        ),
        Mutant(
            "states for layers",
            _layers_as_states,
            "The states are right, but layers are counted from 0: state i is left by layer number "
            "i - 1. Your last number lies outside of the teacher.",
            'huawei-noah/Pretrained-Language-Model#166, "index out of range"',
        ),
        Mutant(
            "the first of each group",
            _first_of_each,
            "The states are right, but you copy the *first* layer of each group. What is compared "
            "is what the *last* one leaves: a student layer that begins as another one starts at "
            "the wrong place.",
            'transformers#3585, "why not [0, 2, 4, 6, 8, 10]"',
        ),
        Mutant(
            "no embeddings",
            _no_embeddings,
            "The layers are right, and so is every state that you have, but the embeddings have "
            "no partner: `hidden_states[0]` of the student stands beside that of the teacher.",
            "huawei-noah/Pretrained-Language-Model#43, which misses them",
        ),
        Mutant(
            "the last layers",
            _last_ones,
            "You took the teacher's last layers. That is a map of the field, too, but this one is "
            "uniform: the same number of teacher layers for each of the student's.",
            "`last_layers`, the other strategy of Sun et al. 2019 (PKD)",
        ),
        Mutant(
            "spread from the first to the last",
            _spread,
            "You spread the numbers evenly from the first layer to the last. For 6 of 12 that is "
            "0, 2, 4, 7, 9, 11, DistilBERT's own choice; but then no two student layers replace "
            "the same number of teacher layers. Here each group gives its last one.",
            "transformers#3585, where DistilBERT's layers are asked about",
        ),
        Mutant(
            "spread to begin from",
            _spread_apart,
            "The states are right. Your layers are spread from the first to the last: the chapter "
            "measures that this is the better *beginning*. Here each of them must leave the state "
            "that it is compared with, so it is the last of its group.",
            "chapter 06, where a student begins so; transformers#3585",
        ),
        Mutant(
            "the first layers",
            _first_ones,
            "You took the teacher's first layers, one for each of the student's. The student's "
            "last layer must leave what the teacher's *last* one leaves.",
            "a reader: `hidden_states` zipped, which ends with the shorter of the two",
        ),
        Mutant(
            "the lists exchanged",
            _exchanged,
            "Both lists are right, in the other order: first the M layers to copy, then the M + 1 "
            "states.",
            "a reader",
        ),
        Mutant(
            "groups of the wrong size",
            _wrong_stride,
            "You count in steps of M, the number of groups. A *group* has L / M layers.",
            "a reader",
        ),
        Mutant(
            "without the last state",
            _without_the_last,
            "The layers are right, but the last state has no partner: `range(0, L, L // M)` stops "
            "before L. What the last layer leaves is `hidden_states[L]`.",
            "a reader",
        ),
    ),
)

EXERCISES = (LAYERS,)
