"""Exercises of chapter 06, inside the network: what each loss does not see, to predict."""

from __future__ import annotations

import torch

from distillkit.course.exercises.definition import OFFERED, Exercise, Mutant
from distillkit.features import hidden_cosine, hidden_mse, relation_kl

# 6.5 · the same thoughts in other coordinates -----------------------------------------------------

NONE, ALL = "none", "all three"
BOTH = "cosine and relations"
CHOICES = (NONE, "hidden", "cosine", "relations", BOTH, ALL)
ZERO = 1e-6


def blind() -> str:
    """Which losses are 0 between states and the same states turned, and which are not: measured."""
    generator = torch.Generator().manual_seed(6)
    states = torch.randn(1, 9, 12, generator=generator, dtype=torch.float64)
    drawn = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    turned = states @ torch.linalg.qr(drawn).Q
    visible = torch.ones(1, 9, 9).bool().tril()
    losses = {
        "hidden": hidden_mse(turned, states),
        "cosine": hidden_cosine(turned, states),
        "relations": relation_kl(turned, states, visible, heads=1),
    }
    zero = [name for name, loss in losses.items() if loss.abs().max() < ZERO]
    return {0: NONE, len(losses): ALL}.get(len(zero), " and ".join(zero))


TURNED = Exercise(
    number="6.5",
    title="The same thoughts in other coordinates",
    kind="predict",
    minutes=5,
    difficulty=3,
    hints=(
        "Take one loss after the other. What does it read: the numbers of one token, or products "
        "of two tokens of the *same* model? And what does Q do to that?",
        "With $h_i = Q\\,t_i$: is $h_i - t_i$ zero? Is $h_i \\cdot t_i$ the product of their "
        "lengths? And what is $h_i \\cdot h_j$, when Q keeps all lengths and angles?",
    ),
    choices=CHOICES,
    oracle=blind,
    mutants=(
        Mutant(
            "cosine",
            "cosine",
            "The cosine does not see how *long* a state is, but Q turns it to point elsewhere: h "
            "and t of the same token are no longer parallel.",
            OFFERED,
        ),
        Mutant(
            "both",
            BOTH,
            "One of the two. A turn keeps the angle between two states of the *student*, but not "
            "the angle between a student's state and its teacher's, which stays where it was.",
            OFFERED,
        ),
        Mutant(
            "all",
            ALL,
            "h is Q t, and Q t is not t: the squared difference is as large as between strangers, "
            "unless a projection W undoes the turn.",
            OFFERED,
        ),
        Mutant(
            "none",
            NONE,
            "One of them never puts a student's number beside a teacher's. It compares what tokens "
            "are to each other, each within its own model, and products survive a turn.",
            OFFERED,
        ),
        Mutant(
            "hidden",
            "hidden",
            "The mean square of h - t compares number by number: of the three it sees most, "
            "length and direction.",
            OFFERED,
        ),
    ),
)

EXERCISES = (TURNED,)
