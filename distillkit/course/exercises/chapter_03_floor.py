"""Exercises of chapter 03, the teacher: how far a model is from the truth."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from distillkit import losses
from distillkit.course.exercises import loops
from distillkit.course.exercises.definition import OFFERED, Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function

# 3.4 · half the way -------------------------------------------------------------------------------

BEFORE, AFTER, TEACHER, FLOOR = 0.136, 0.122, 0.115, 0.108
"""Nats a token, as the statement has them."""

HALF_WAY = Exercise(
    number="3.4",
    title="How much of the way?",
    kind="predict",
    minutes=4,
    difficulty=1,
    hints=(
        "What would a perfect model score? Not 0: some of what the desk says is chance.",
        "At the beginning the student could gain its NLL minus the floor, in nats. How many of "
        "these nats has it gained?",
    ),
    oracle=lambda: (BEFORE - AFTER) / (BEFORE - FLOOR),
    tolerance=0.05,
    mutants=(
        Mutant(
            "of the whole NLL",
            (BEFORE - AFTER) / BEFORE,
            "That is the share of the whole NLL. Most of it is the desk's own chance, which no "
            "student can take away: measure from the floor.",
            OFFERED,
        ),
        Mutant(
            "what is left",
            AFTER / BEFORE,
            "That is what is left of the NLL, the floor included, and not what was gained.",
            OFFERED,
        ),
        Mutant(
            "nats",
            BEFORE - AFTER,
            "That is the gain in nats. It is asked for as a share of what there was to gain.",
            OFFERED,
        ),
        Mutant(
            "on the way to the teacher",
            (BEFORE - AFTER) / (BEFORE - TEACHER),
            "That is the share of the way to the teacher. The teacher is not the end of the way: "
            "it is above the floor itself, and a student can pass it.",
            OFFERED,
        ),
    ),
)

# 3.5 · excess over the floor ----------------------------------------------------------------------


def _excess_cases(draw: Draw) -> list[Case]:
    cases = []
    for (b, s, v), zeros in (((3, 5, 7), 0), ((2, 6, 5), 3), ((4, 4, 8), 6)):
        p = draw.probabilities(b, s, v)
        p[..., :zeros] = 0.0
        p /= p.sum(-1, keepdim=True)
        labels = draw.labels(draw.mask(b, s), v)
        labels = torch.where(labels == IGNORED, labels, labels.clamp(min=zeros))  # possible ones
        name = f"B={b}, S={s}, V={v}, " + (f"{zeros} impossible tokens" if zeros else "p > 0")
        cases.append(Case(name, (draw.logits(b, s, v), p, labels)))
    return cases


def _excess_oracle(logits_BSV: list[Any], true_BSV: list[Any], labels_BS: list[list[int]]) -> float:
    total, spoken = 0.0, 0
    for b in range(len(labels_BS)):
        for s in range(len(labels_BS[b])):
            if labels_BS[b][s] == IGNORED:
                continue
            log_q = loops.log_softmax(logits_BSV[b][s])
            for p, log in zip(true_BSV[b][s], log_q, strict=True):
                if p > 0.0:
                    total += p * (math.log(p) - log)
            spoken += 1
    return total / spoken


def _log_or_zero(p: Tensor) -> Tensor:
    return p.clamp(min=1e-30).log()


def _kl(log_q: Tensor, p: Tensor) -> Tensor:
    return (p * (_log_or_zero(p) - log_q)).sum(-1)


def _excess_with(
    token: Function, *, masked: bool = True, count: Function = lambda mask: mask.sum()
) -> Function:
    """The mean of a value of each token, from log q and p; count: by what the sum is divided."""

    def excess(logits: Tensor, true: Tensor, labels: Tensor) -> Tensor:
        mask = labels != IGNORED if masked else labels == labels
        values = token(logits.log_softmax(-1), true).masked_fill(~mask, 0.0)
        return values.sum() / count(mask)

    return excess


def _sampled(logits: Tensor, true: Tensor, labels: Tensor) -> Tensor:
    at = labels.clamp(min=0).unsqueeze(-1)
    gaps = true.gather(-1, at).log() - logits.log_softmax(-1).gather(-1, at)
    return gaps.squeeze(-1)[labels != IGNORED].mean()


def _zero_for_the_truth(excess: Function, draw: Draw) -> bool:
    p = draw.probabilities(2, 4, 5)
    labels = draw.labels(draw.mask(2, 4), 5)
    return abs(float(excess(p.log(), p, labels))) < 1e-5


EXCESS = Exercise(
    number="3.5",
    title="The excess over the floor",
    kind="write",
    minutes=12,
    difficulty=3,
    hints=(
        "The excess of one token is KL(p‖q) = Σ p · (log p - log q): the *true* distribution "
        "weighs the sum. Then a mean over the tokens that have a label.",
        "What the desk never says has p = 0 and adds nothing. But `log(0)` is -inf, and 0 · -inf "
        "is NaN: `torch.xlogy(p, p)` is p · log p, with 0 where p is 0.",
        "`kl_BS = (torch.xlogy(p, p) - p * log_q).sum(-1)`, and `kl_BS[labels_BS != -100].mean()`.",
    ),
    cases=_excess_cases,
    oracle=_excess_oracle,
    library=(losses.forward_kl,),
    properties=(
        Property(
            "zero for the truth",
            _zero_for_the_truth,
            "A model whose probabilities are the true ones has no excess, and yours is not 0.",
        ),
    ),
    mutants=(
        Mutant(
            "swapped",
            _excess_with(lambda log_q, p: (log_q.exp() * (log_q - p.log())).sum(-1)),
            "You computed KL(q‖p), weighed by the model: where the desk never says a token, that "
            "is infinite. The truth weighs the sum.",
            "two projects name the directions in opposite order, ms-swift PR#6334",
        ),
        Mutant(
            "entropy forgotten",
            _excess_with(lambda log_q, p: -(p * log_q).sum(-1)),
            "That is the cross-entropy, -Σ p log q: the NLL to be expected, with the floor still "
            "in it. Take away the truth's own -Σ p log p.",
            "torchtune's ForwardKLLoss, DistiLLM and MiniLLM",
        ),
        Mutant(
            "mean over the vocabulary",
            _excess_with(lambda log_q, p: _kl(log_q, p) / p.shape[-1]),
            "You took the mean over the vocabulary, so your excess is too small by the factor V: "
            "an expectation is a sum, weighted by p.",
            "haitongli/knowledge-distillation-pytorch#2 and #48",
        ),
        Mutant(
            "divided by all tokens",
            _excess_with(_kl, count=Tensor.numel),
            "The sum is masked, but divided by all B·S tokens. Divide by the number of tokens "
            "that have a label.",
            "Fast-LLM#344",
        ),
        Mutant(
            "divided by conversations",
            _excess_with(_kl, count=len),
            "The sum is right, but divided by the number of conversations, B: your excess grows "
            "with their length. Divide by the number of tokens that have a label.",
            "a reader",
        ),
        Mutant(
            "batchmean",
            _excess_with(_kl, masked=False, count=len),
            'That is `F.kl_div` with `reduction="batchmean"`: it adds up all tokens, also those '
            "without a label, and divides by the first dimension alone, B. Take the tokens with "
            "a label, and their mean.",
            "a reader",
        ),
        Mutant(
            "padding counted",
            _excess_with(_kl, masked=False),
            "Tokens whose label is -100 count in your mean: the visitor's words and the padding, "
            "about which nobody asks the model.",
            "optipfair#34 and MambaInLlama#11",
        ),
        Mutant(
            "NaN at impossible tokens",
            _excess_with(lambda log_q, p: (p * (p.log() - log_q)).sum(-1)),
            "All is right until a token is impossible: there log p is -inf, and 0 · -inf is NaN. "
            "Such a token adds nothing; see `torch.xlogy`.",
            "Soup#719 and pylate#239",
        ),
        Mutant(
            "sampled",
            _sampled,
            "You look at the label alone, log p - log q of what the desk did say. That is right on "
            "average over many conversations. In expectation means over *all* tokens that it could "
            "have said, each weighed by p.",
            "a reader",
        ),
    ),
)

EXERCISES = (HALF_WAY, EXCESS)
