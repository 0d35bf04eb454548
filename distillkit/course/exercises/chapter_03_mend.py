"""Exercises of chapter 03, the teacher: a training step to mend."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_03 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function

# 3.2 · mend it ------------------------------------------------------------------------------------


def _step_cases(draw: Draw) -> list[Case]:
    cases = []
    for n, b, s, v in ((2, 2, 6, 5), (3, 1, 8, 4), (2, 3, 5, 7)):
        ids = draw.integers(n, b, s, below=v, least=1)
        labels = ids.clone()
        labels[:, :, 0] = IGNORED
        labels[0, :, : s // 2 + 1] = IGNORED  # a short answer, and in the others a long one
        for number in range(1, n):
            labels[number, :, s // 2] = IGNORED  # a visitor's word between two turns
        ids[0, -1, -1], labels[0, -1, -1] = 0, IGNORED  # padding
        rate = 0.5 + 0.5 * b
        cases.append(
            Case(f"N={n}, B={b}, S={s}, V={v}", (draw.logits(v, v), ids, labels, rate)),
        )
    return cases


def _step_oracle(
    weights_VV: list[list[float]],
    ids_NBS: list[list[list[int]]],
    labels_NBS: list[list[list[int]]],
    learning_rate: float,
) -> list[list[float]]:
    width = len(weights_VV)
    gradient = [[0.0] * width for _ in range(width)]
    asked = 0
    for ids_BS, labels_BS in zip(ids_NBS, labels_NBS, strict=True):
        for ids, labels in zip(ids_BS, labels_BS, strict=True):
            for s in range(len(ids) - 1):
                if labels[s + 1] == IGNORED:  # after the token at s, that at s + 1 is asked for
                    continue
                asked += 1
                for v, q in enumerate(loops.softmax(weights_VV[ids[s]])):
                    gradient[ids[s]][v] += q - (v == labels[s + 1])
    return [
        [weight - learning_rate * slope / asked for weight, slope in zip(row, slopes, strict=True)]
        for row, slopes in zip(weights_VV, gradient, strict=True)
    ]


def _stepped(
    *, shift: int = 1, mask: str = "next", divide: str = "all", parts: bool = False
) -> Function:
    """A step mended in part.

    shift: how many places after a token stands the one which it is to predict. mask: at the
    "next" token, at the one "here", or wherever there is no "padding". divide: by
    the asked tokens of "all" micro-batches, or of its "own". parts: by their number, too.
    """

    def step(weights: Tensor, ids: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        weights = weights.clone().requires_grad_()
        early, late = slice(None, -abs(shift) or None), slice(abs(shift), None)
        here, then = (early, late) if shift > 0 else (late, early)
        where: Any = ids != 0 if mask == "padding" else labels != IGNORED
        where = where[..., here if mask == "here" else then]
        log_q = weights[ids[..., here]].log_softmax(-1)
        nll = -log_q.gather(-1, ids[..., then].unsqueeze(-1)).squeeze(-1)
        sums = (nll * where).sum((1, 2))
        means = sums / (where.sum() if divide == "all" else where.sum((1, 2)))
        (means.sum() / (len(ids) if parts else 1)).backward()
        assert weights.grad is not None
        return weights.detach() - learning_rate * weights.grad

    return step


def _stepwise(divide: str) -> Function:
    """Mended, but with a step after each micro-batch; divide: as in `_stepped`."""
    one = _stepped(divide="own")

    def steps(weights: Tensor, ids: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        asked = (labels[..., 1:] != IGNORED).sum((1, 2))
        for n in range(len(ids)):
            share = 1.0 if divide == "own" else asked[n] / asked.sum()
            weights = one(weights, ids[n : n + 1], labels[n : n + 1], learning_rate * share)
        return weights

    return steps


_SHIFT = "ms-swift PR#8436 and Arcee's DistillKit"
_PROMPTS = "optipfair#34 and MambaInLlama#11"
_MEANS = "trl#4719, ms-swift#10076 and, for years, most trainers (torchtune PR#1875)"

MEND_STEP = Exercise(
    number="3.2",
    title="A training step with three faults",
    kind="mend",
    minutes=15,
    difficulty=3,
    hints=(
        "Ask three questions: which token do the logits at position s predict? Which tokens are "
        "asked for? And is a micro-batch with two such tokens worth as much as one with twenty?",
        "`log_q[:, :-1]` belongs to `ids_BS[:, 1:]`, and the mask is `labels_BS[:, 1:] != -100`.",
        "Count the asked tokens of *all* micro-batches before the loop, and divide each sum by "
        "that count. Gradients add up by themselves, so nothing is divided by N any more.",
    ),
    cases=_step_cases,
    oracle=_step_oracle,
    given=broken.train_step,
    mutants=(
        Mutant(
            "mean of means",
            _stepped(divide="own", parts=True),
            "Shift and mask are mended. One fault is left: each micro-batch is divided by its own "
            "tokens, so a token of a short one weighs more. Divide every sum by the tokens of all.",
            _MEANS,
        ),
        Mutant(
            "not shifted",
            _stepped(shift=0),
            "Mask and mean are mended. One fault is left: the logits at position s predict the "
            "token at s + 1. Yours learn to repeat the token that they have read.",
            _SHIFT,
        ),
        Mutant(
            "prompts counted",
            _stepped(mask="padding"),
            "Shift and mean are mended. One fault is left: your mask takes out the padding alone, "
            "and the visitor's words are learned. The asked tokens are those with a label.",
            _PROMPTS,
        ),
        Mutant(
            "only the mean mended",
            _stepped(shift=0, mask="padding"),
            "The mean is mended. Two faults are left: nothing is shifted, and the visitor's words "
            "are asked for.",
            f"{_SHIFT}; {_PROMPTS}",
        ),
        Mutant(
            "only the mask mended",
            _stepped(shift=0, divide="own", parts=True),
            "The mask is mended. Two faults are left: nothing is shifted, and each micro-batch is "
            "divided by its own tokens.",
            f"{_SHIFT}; {_MEANS}",
        ),
        Mutant(
            "only the shift mended",
            _stepped(mask="padding", divide="own", parts=True),
            "The shift is mended. Two faults are left: the visitor's words are asked for, and each "
            "micro-batch is divided by its own tokens.",
            f"{_PROMPTS}; {_MEANS}",
        ),
        Mutant(
            "mask not shifted",
            _stepped(mask="here"),
            "The tokens are shifted, and the mask is not: it still stands one token too early. It "
            "belongs to the token that is predicted.",
            "ms-swift PR#8436, where the mask was left unshifted",
        ),
        Mutant(
            "shifted backwards",
            _stepped(shift=-1),
            "Mask and mean are mended. The shift goes the wrong way: yours learn to name the token "
            "*before* the one that they have read. `log_q[:, :-1]` belongs to `ids_BS[:, 1:]`.",
            "a reader",
        ),
        Mutant(
            "tokens shifted backwards",
            _stepped(shift=-1, mask="here"),
            "Mean and mask are mended. The tokens are shifted the wrong way: yours learn to name "
            "the one before. `log_q[:, :-1]` belongs to `ids_BS[:, 1:]`, as your mask has it.",
            "a reader",
        ),
        Mutant(
            "only shifted, backwards",
            _stepped(shift=-1, mask="padding", divide="own", parts=True),
            "You have shifted, but the wrong way: the logits at position s predict the token at "
            "s + 1, not at s - 1. Mask and mean are as they were.",
            "a reader",
        ),
        Mutant(
            "divided twice",
            _stepped(parts=True),
            "You divide by the tokens of all micro-batches, and then by N as well. The first is "
            "the whole mean; the second makes the step N times too small.",
            "unsloth-zoo PR#1023 and easydistill PR#16",
        ),
        Mutant(
            "means added up",
            _stepped(divide="own"),
            "The means of the micro-batches are added up: the step grows with N, and short "
            "micro-batches still weigh more. Divide every sum by the tokens of all.",
            "verl PR#3332",
        ),
        Mutant(
            "a step in each micro-batch",
            _stepwise("all"),
            "You step after each micro-batch, so the second one's gradient is taken at other "
            "weights. Let the gradients add up in the loop, and step once after it.",
            "a reader",
        ),
        Mutant(
            "a step in each micro-batch, by its own mean",
            _stepwise("own"),
            "You step after each micro-batch, each with its own mean: those are N steps of small "
            "batches. Divide by the tokens of all, let the gradients add up, and step once.",
            "a reader",
        ),
    ),
)

EXERCISES = (MEND_STEP,)
