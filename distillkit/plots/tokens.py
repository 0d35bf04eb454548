"""Tokens: what is likely next, what pulls on it, and a value at each one of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from distillkit.errors import UserError
from distillkit.plots.look import ROLES, drawn, role_of, shown
from distillkit.words import WORDS

_SEEN = 0.005  # a bar of less cannot be seen


@drawn
def token_bars(
    distributions: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    said: str | None = None,
    top: int = 8,
    kl: Mapping[str, float] | None = None,
) -> Figure:
    """Next-token distributions side by side, one panel a role, the same tokens in each.

    distributions: role -> {token text: probability}. Shown are the `top` tokens that are likeliest
    in any panel, in the order of the first one. said: the token that came, set in bold. kl: role ->
    its divergence from the first panel in nats, written above its own.
    """
    if not distributions:
        raise UserError("found no distribution to draw: expected at least one role")
    tokens = _likeliest(distributions, top)
    size = (7.2, 1.3 + 0.26 * len(tokens) + (0.2 if kl else 0.0))
    figure, row = plt.subplots(1, len(distributions), figsize=size, sharey=True, squeeze=False)
    rows = np.arange(len(tokens))
    for axes, (role, distribution) in zip(row[0], distributions.items(), strict=True):
        look = role_of(role)
        chances = [distribution.get(token, 0.0) for token in tokens]
        axes.barh(rows, chances, color=look.colour, height=0.7)
        name = look.name.replace(", ", ",\n")
        if kl and role in kl:
            name += "\n" + WORDS["kl"].format(value=kl[role])
        axes.set_title(name, fontsize=9, fontweight="normal")
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        axes.grid(axis="y", visible=False)
    first = row[0][0]
    first.set_yticks(rows, [shown(token) for token in tokens])
    first.invert_yaxis()
    for label, token in zip(first.get_yticklabels(), tokens, strict=True):
        label.set_fontweight("bold" if token == said else "normal")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(WORDS["probability"], fontsize=10)
    return figure


@drawn
def token_strip(
    tokens: Sequence[str],
    rows: Mapping[str, ArrayLike],
    *,
    title: str,
    units: str = "",
    most: float | None = None,
) -> Figure:
    """A stretch of a conversation as a strip of tokens, with a value at each, one row a role.

    tokens: their texts, (N,). rows: role, or any other name -> values of shape (N,), of at least
    zero; the darker, the greater, from 0 to `most` (by default the greatest of all). units: what
    the values are, for the caption.
    """
    if not rows or not len(tokens):
        raise UserError("found nothing to draw: expected tokens, and at least one row of values")
    table = {name: np.asarray(values, dtype=float) for name, values in rows.items()}
    most = most or max(values.max() for values in table.values()) or 1.0
    size = (max(4.0, 0.24 * len(tokens) + 1.9), 0.9 + 0.34 * len(table) + 0.07 * _longest(tokens))
    figure, axes = plt.subplots(figsize=size)
    for row, (name, values) in enumerate(table.items()):
        colour = ROLES[name].colour if name in ROLES else "#444444"
        axes.bar(
            np.arange(len(tokens)),
            0.9,
            width=0.92,
            bottom=row - 0.45,
            color=[to_rgba(colour, min(1.0, value / most)) for value in values],
            edgecolor="#DDDDDD",
            linewidth=0.5,
        )
    axes.set_xticks(range(len(tokens)), [shown(token) for token in tokens], rotation=90)
    axes.set_yticks(range(len(table)), [ROLES[n].name if n in ROLES else n for n in table])
    axes.set(xlim=(-0.6, len(tokens) - 0.4), ylim=(len(table) - 0.5, -0.5), title=title)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    if units:
        axes.set_xlabel(units, fontsize=9)
    return figure


@drawn
def pull_bars(
    words: Sequence[str],
    chances: Mapping[str, ArrayLike],
    pulls: Mapping[str, ArrayLike],
    *,
    title: str,
    said: str | None = None,
) -> Figure:
    """What models give to the same words, and beside it what pulls on the student's logits.

    words: their texts, (N,). chances: role -> probabilities, (N,). pulls: "teacher" and "labels"
    -> minus the gradient of that term, (N,); a mark shows their sum. said: the word that came, in
    bold.
    """
    if not len(words):
        raise UserError("found no word to draw: expected at least one")
    size = (7.2, 1.7 + 0.34 * len(words))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True)
    _grouped(left, chances, {role: role_of(role).name for role in chances})
    _grouped(right, pulls, {role: WORDS[f"pull_{role}"] for role in pulls})
    total = np.sum([np.asarray(values) for values in pulls.values()], axis=0)
    right.plot(total, np.arange(len(words)), "k|", ms=13, mew=2, label=WORDS["pull_sum"])
    right.axvline(0, color="#666666", lw=0.8)
    most = max(0.5, 1.05 * np.abs([*map(np.asarray, pulls.values()), total]).max())
    left.set(xlim=(0, 1), xlabel=WORDS["probability"])
    right.set(xlim=(-most, most), xlabel=WORDS["pull"])
    left.set_yticks(range(len(words)), [shown(word) for word in words])
    for label, word in zip(left.get_yticklabels(), words, strict=True):
        label.set_fontweight("bold" if word == said else "normal")
    left.invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def _grouped(axes: Axes, bars: Mapping[str, ArrayLike], names: Mapping[str, str]) -> None:
    height = 0.8 / len(bars)
    for place, (role, values) in enumerate(bars.items()):
        rows = np.arange(len(np.asarray(values))) + (place - (len(bars) - 1) / 2) * height
        axes.barh(rows, values, height, color=role_of(role).colour, label=names[role])


def _longest(tokens: Sequence[str]) -> int:
    return max(len(shown(token)) for token in tokens)


def _likeliest(distributions: Mapping[str, Mapping[str, float]], top: int) -> list[str]:
    best: dict[str, float] = {}
    for distribution in distributions.values():
        for token, chance in distribution.items():
            best[token] = max(chance, best.get(token, 0.0))
    seen = [token for token in best if best[token] >= _SEEN] or list(best)
    chosen = sorted(seen, key=lambda token: (-best[token], token))[:top]
    first = next(iter(distributions.values()))
    return sorted(chosen, key=lambda token: (-first.get(token, 0.0), -best[token], token))
