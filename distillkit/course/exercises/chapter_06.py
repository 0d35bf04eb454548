"""Exercises of chapter 06, inside the network: which layers stand beside which, and the cosine."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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
    ),
)

# 6.2 · the cosine of real tokens ------------------------------------------------------------------


def _states(draw: Draw, b: int, s: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two hidden states that are somewhat alike, and a mask with padding."""
    teacher = draw.logits(b, s, d)
    student = 3.0 * teacher + draw.logits(b, s, d, scale=8.0)
    return student, teacher, draw.mask(b, s).long()


def _cosine_cases(draw: Draw) -> list[Case]:
    shapes = ((3, 5, 4), (4, 7, 6), (2, 6, 9))
    return [Case(f"B={b}, S={s}, D={d}", _states(draw, b, s, d)) for b, s, d in shapes]


def _cosine_oracle(
    student_BSD: list[list[list[float]]],
    teacher_BSD: list[list[list[float]]],
    mask_BS: list[list[int]],
) -> float:
    total, count = 0.0, 0
    for mine, its, real in zip(student_BSD, teacher_BSD, mask_BS, strict=True):
        for h, t, counts in zip(mine, its, real, strict=True):
            if counts:
                total += 1 - _dot(h, t) / math.sqrt(_dot(h, h) * _dot(t, t))
                count += 1
    return total / count


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _away(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def _with_padding(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return _away(student, teacher).mean()


def _divided_by_all(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return (_away(student, teacher) * mask).mean()


def _all_by_real(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return _away(student, teacher).sum() / mask.sum()


def _mean_of_means(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return ((_away(student, teacher) * mask).sum(1) / mask.sum(1)).mean()


def _over_tokens(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    real = mask.unsqueeze(-1)
    return (1 - F.cosine_similarity(student * real, teacher * real, dim=1)).mean()


def _minus(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return (_away(student, teacher)[mask.bool()] - 1).mean()


def _as_one_vector(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    real = mask.bool()
    return _away(student[real].flatten(), teacher[real].flatten())


def _padding_is_free(loss: Function, draw: Draw) -> bool:
    student, teacher, mask = _states(draw, 3, 5, 4)
    clean = loss(student, teacher, mask)
    student[mask == 0], teacher[mask == 0] = torch.inf, torch.nan
    return bool(torch.isclose(clean, loss(student, teacher, mask)))


def _teacher_untouched(loss: Function, draw: Draw) -> bool:
    student, teacher, mask = _states(draw, 3, 5, 4)
    teacher.requires_grad_()
    loss(student.requires_grad_(), teacher, mask).backward()
    return bool(student.grad is not None and student.grad.any()) and (
        teacher.grad is None or not teacher.grad.any()
    )


COSINE = Exercise(
    number="6.2",
    title="DistilBERT's cosine, of real tokens",
    kind="write",
    minutes=8,
    difficulty=2,
    hints=(
        "`real = mask_BS.bool()`, and `student_BSD[real]` is (N, D): the N real tokens alone.",
        "`F.cosine_similarity(a, b, dim=-1)` compares along D. One minus it, and the mean over "
        "the N tokens. `detach` the teacher's states.",
    ),
    cases=_cosine_cases,
    oracle=_cosine_oracle,
    library=(features.hidden_cosine,),
    properties=(
        Property(
            "padding does not matter",
            _padding_is_free,
            "The values are right, but what stands at padding still matters: with infinities and "
            "NaN there the loss is no longer the same. Zero times NaN is NaN: select the real "
            "tokens, do not multiply by the mask.",
        ),
        Property(
            "a gradient to the student alone",
            _teacher_untouched,
            "The value is right, but the gradient is not: it must reach the student's states, and "
            "not the teacher's. `detach` the teacher's.",
        ),
    ),
    mutants=(
        Mutant(
            "padding counted",
            _with_padding,
            "You take the mean over all tokens, padding included. What a model computes at padding "
            "is nothing to learn, and it is different in every batch.",
            "NVIDIA/Model-Optimizer PR#892, where the cosine skips the mask; optipfair#34",
        ),
        Mutant(
            "divided by all",
            _divided_by_all,
            "Padding is masked, but you divide by B·S: the more padding, the smaller the loss. "
            "Divide by the number of real tokens.",
            "Fast-LLM#344",
        ),
        Mutant(
            "all tokens over the real ones",
            _all_by_real,
            "You sum over *all* tokens and divide by the number of real ones: padding counts, and "
            "makes the loss larger. Mask the numerator as well.",
            "Liger-Kernel PR#1478, the same in its cosine loss",
        ),
        Mutant(
            "mean of means",
            _mean_of_means,
            "You take the mean of each text and then the mean of these: a token of a short text "
            "weighs more. Every real token counts the same.",
            "trl#4719, mean of means over micro-batches",
        ),
        Mutant(
            "along the tokens",
            _over_tokens,
            "Your cosine runs along the tokens (`dim=1` is the default of `F.cosine_similarity`). "
            "A token's state is a vector of D numbers: compare along the last axis.",
            "facebookresearch/WMReward#11",
        ),
        Mutant(
            "minus the cosine",
            _minus,
            "This is minus the cosine: the same gradient, but -1 where the two agree. With "
            "1 - cos the loss is 0 there, and you can see how far you are.",
            "lightly PR#570, where it is the convention",
        ),
        Mutant(
            "one long vector",
            _as_one_vector,
            "You made one vector of all tokens together: then long states decide, and short ones "
            "are hardly heard. Every token has a cosine of its own.",
            "mdswyz/DMD#2, where states are flattened to fit the loss",
        ),
    ),
)

EXERCISES = (LAYERS, COSINE)
