"""Every figure of the course: one look, and one colour for each role in all chapters.

Titles are sentences and come from the caller; what the functions themselves write is in `words.py`.
The colours are Okabe and Ito's, which readers with any colour vision can tell apart; each role has
a marker of its own as well. A function returns its figure and leaves none open: a notebook shows it
when it is the last line of a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import cycle
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogFormatterMathtext,
    LogLocator,
    NullLocator,
    PercentFormatter,
)
from numpy.typing import ArrayLike

from distillkit.errors import UserError
from distillkit.words import WORDS

if TYPE_CHECKING:
    from distillkit.evaluation import Calibration

__all__ = [
    "ROLES",
    "STYLE",
    "Role",
    "dot_rows",
    "interval_plot",
    "learning_curves",
    "lines",
    "memory_plot",
    "predicted_measured",
    "pull_bars",
    "reliability",
    "throughput_plot",
    "token_bars",
    "token_strip",
]


@dataclass(frozen=True)
class Role:
    """How one kind of model, of tokens, or of divergence looks in every figure."""

    name: str
    colour: str
    marker: str


ROLES = {
    "teacher": Role("teacher", "#0072B2", "s"),
    "labels": Role("student, labels", "#E69F00", "o"),
    "smoothing": Role("student, label smoothing", "#56B4E9", "^"),
    "written": Role("student, teacher's text", "#CC79A7", "D"),
    "distilled": Role("student, distilled", "#009E73", "v"),
    "truth": Role("truth", "#000000", "x"),
    "before": Role("student before training", "#999999", "P"),
    "copied": Role("copied names and numbers", "#D55E00", "*"),
    "own": Role("the desk's own words", "#332288", "h"),
    "real": Role("a real LLM's size", "#AA4499", "H"),
    "forward_kl": Role("forward KL", "#882255", ">"),
    "reverse_kl": Role("reverse KL", "#999933", "<"),
    "jensen_shannon": Role("Jensen-Shannon", "#44AA99", "p"),
    "total_variation": Role("total variation", "#661100", "d"),
    "on_policy": Role("on-policy", "#99DD33", "+"),
    "desk_words": Role("on the desk's words", "#4466CC", "3"),
    "own_words": Role("on the student's words", "#C05538", "4"),
    "right": Role("the right form", "#117733", "8"),
    "wrong": Role("the wrong form", "#EE3377", "X"),
    "hidden": Role("logits and hidden states", "#0000FF", "2"),
    "cosine": Role("logits and their direction", "#8A2BE2", "$c$"),
    "attention": Role("logits and attention", "#99DDFF", "$a$"),
    "relations": Role("logits and relations", "#BB0000", "|"),
    "piece": Role("logits, from the teacher's layers", "#00CED1", "_"),
    "wrong_too": Role("another wrong form", "#DDCC77", "1"),
}

STYLE: Any = {
    "figure.figsize": (7.2, 4.2),
    "figure.dpi": 90,
    "savefig.dpi": 90,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


_SEEN = 0.005  # a bar of less cannot be seen
_FEW = 20  # more markers than these hide their line
_DASHES = ("-", "--", ":", "-.")  # lines that lie on each other can all be seen

P = ParamSpec("P")


def _drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the course's style, and leave no figure open for the notebook to show twice."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return in_style


@_drawn
def learning_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str = WORDS["steps"],
    ylabel: str = WORDS["nll"],
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """How a measure goes as training does: one line a role, its best point marked.

    curves: role -> (steps of shape (points,), values of shape (points,) or (seeds, points)); with
    several seeds the line is their mean and the band goes from the least to the greatest.
    levels: role -> a horizontal line to compare with, such as the teacher or the truth.
    """
    figure, axes = _new(title, xlabel, ylabel)
    for role, (steps, values) in curves.items():
        look = _role(role)
        table = np.atleast_2d(np.asarray(values, dtype=float))
        mean = table.mean(axis=0)
        axes.plot(steps, mean, color=look.colour, label=look.name)
        if len(table) > 1:
            axes.fill_between(
                np.asarray(steps), table.min(0), table.max(0), color=look.colour, alpha=0.2, lw=0
            )
        best = int(np.nanargmin(mean))
        axes.plot(np.asarray(steps)[best], mean[best], look.marker, color=look.colour)
    _levels(axes, levels)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@_drawn
def interval_plot(
    points: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    title: str,
    xlabel: str = WORDS["conversations"],
    ylabel: str = WORDS["success"],
    levels: Mapping[str, float] | None = None,
    percent: bool = False,
) -> Figure:
    """A measure with its interval for every arm and size, on a logarithmic axis of sizes.

    points: role -> [(size, mean, low, high), ...]. Arms are set a little apart so that their
    intervals do not hide each other. levels: role -> a horizontal line to compare with.
    """
    figure, axes = _new(title, xlabel, ylabel)
    for place, (role, rows) in enumerate(points.items()):
        look = _role(role)
        size, mean, low, high = np.array(sorted(rows), dtype=float).T
        apart = 1.06 ** (place - (len(points) - 1) / 2)
        axes.errorbar(
            size * apart,
            mean,
            yerr=np.maximum([mean - low, high - mean], 0),
            color=look.colour,
            marker=look.marker,
            label=look.name,
            capsize=3,
            elinewidth=1.2,
        )
    _levels(axes, levels)
    _size_axis(axes, sorted({row[0] for rows in points.values() for row in rows}))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@_drawn
def dot_rows(
    rows: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    role: str = "distilled",
    others: Mapping[str, str] | None = None,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """A share measured under each of several names, one row each: a mark a seed, a bar the mean.

    rows: name -> its values of 0 to 1, in the order from top to bottom. others: name -> its role,
    where a row has another one. levels: role -> a vertical line to compare with.
    """
    figure, axes = _new(title, xlabel, "")
    figure.set_size_inches(7.2, 1.5 + 0.32 * len(rows))
    for place, (name, values) in enumerate(rows.items()):
        look = _role((others or {}).get(name, role))
        axes.barh(place, np.mean(values), color=look.colour, alpha=0.25, height=0.6)
        axes.plot(values, [place] * len(values), look.marker, color=look.colour, alpha=0.8)
    for each, value in (levels or {}).items():
        other = _role(each)
        axes.axvline(value, color=other.colour, ls="--", lw=1.4, label=other.name)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", visible=False)
    if levels:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


@_drawn
def reliability(
    calibrations: Mapping[str, Calibration], *, title: str, least_count: int = 20
) -> Figure:
    """Accuracy against confidence, bin by bin; on the diagonal, a model is as right as it says.

    calibrations: role -> evaluation.calibration_error(...). Bins of fewer than `least_count` tokens
    are left out of the picture (not of the error).
    """
    figure, axes = _new(title, WORDS["confidence"], WORDS["accuracy"])
    figure.set_size_inches(5.2, 4.6)
    axes.plot([0, 1], [0, 1], color="#666666", ls=":", lw=1.2, label=WORDS["calibrated"])
    for role, calibration in calibrations.items():
        look = _role(role)
        bins = [each for each in calibration.bins if each.count >= least_count]
        axes.plot(
            [each.confidence for each in bins],
            [each.accuracy for each in bins],
            color=look.colour,
            marker=look.marker,
            label=WORDS["calibration"].format(name=look.name, error=calibration.error),
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left")
    return figure


@_drawn
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
        look = _role(role)
        chances = [distribution.get(token, 0.0) for token in tokens]
        axes.barh(rows, chances, color=look.colour, height=0.7)
        name = look.name.replace(", ", ",\n")
        if kl and role in kl:
            name += "\n" + WORDS["kl"].format(value=kl[role])
        axes.set_title(name, fontsize=9, fontweight="normal")
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        axes.grid(axis="y", visible=False)
    first = row[0][0]
    first.set_yticks(rows, [_shown(token) for token in tokens])
    first.invert_yaxis()
    for label, token in zip(first.get_yticklabels(), tokens, strict=True):
        label.set_fontweight("bold" if token == said else "normal")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(WORDS["probability"], fontsize=10)
    return figure


@_drawn
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
    axes.set_xticks(range(len(tokens)), [_shown(token) for token in tokens], rotation=90)
    axes.set_yticks(range(len(table)), [ROLES[n].name if n in ROLES else n for n in table])
    axes.set(xlim=(-0.6, len(tokens) - 0.4), ylim=(len(table) - 0.5, -0.5), title=title)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    if units:
        axes.set_xlabel(units, fontsize=9)
    return figure


@_drawn
def lines(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    log: str = "",
    filled: str | None = None,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    mark: float | None = None,
) -> Figure:
    """One measure against another: a line a role, with its marker where points are few.

    curves: role -> (x of shape (N,), y of shape (N,)). log: the axes on a logarithmic scale, "x",
    "y" or "xy". filled: the role that is drawn as an area, for the others to be compared with.
    bands: role -> (low, high), the interval of each of its points. mark: an x where something
    changes, which the text explains.
    """
    figure, axes = _new(title, xlabel, ylabel)
    dashes = cycle(_DASHES)
    for role, (x, y) in curves.items():
        look, at, values = _role(role), np.asarray(x), np.asarray(y)
        if role == filled:
            axes.fill_between(at, values, color=look.colour, alpha=0.25, lw=0, label=look.name)
            continue
        marker = look.marker if len(at) <= _FEW else ""
        axes.plot(at, values, next(dashes), color=look.colour, marker=marker, label=look.name)
        if bands and role in bands:
            axes.fill_between(at, *bands[role], color=look.colour, alpha=0.18, lw=0)
    if mark is not None:
        axes.axvline(mark, color="#666666", lw=1.0, ls=":")
    for name in log:
        axes.set(**{f"{name}scale": "log"})
        for which in ("major", "minor"):
            getattr(getattr(axes, f"{name}axis"), f"set_{which}_formatter")(_Plain())
    figure.legend(loc="outside lower center", ncols=4)
    return figure


@_drawn
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
    _grouped(left, chances, {role: _role(role).name for role in chances})
    _grouped(right, pulls, {role: WORDS[f"pull_{role}"] for role in pulls})
    total = np.sum([np.asarray(values) for values in pulls.values()], axis=0)
    right.plot(total, np.arange(len(words)), "k|", ms=13, mew=2, label=WORDS["pull_sum"])
    right.axvline(0, color="#666666", lw=0.8)
    most = max(0.5, 1.05 * np.abs([*map(np.asarray, pulls.values()), total]).max())
    left.set(xlim=(0, 1), xlabel=WORDS["probability"])
    right.set(xlim=(-most, most), xlabel=WORDS["pull"])
    left.set_yticks(range(len(words)), [_shown(word) for word in words])
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
        axes.barh(rows, values, height, color=_role(role).colour, label=names[role])


@_drawn
def memory_plot(
    needs: Mapping[str, Mapping[str, float]], limits: Mapping[str, float], *, title: str
) -> Figure:
    """What models need, one row each, against what devices have, as vertical lines.

    needs: what for, such as "to run" -> {model: bytes}, with the same models in each (three kinds
    at most). limits: device -> bytes.
    """
    if not needs or len(needs) > len(_KINDS):
        raise UserError(f"found {len(needs)} kinds of need: expected 1 to {len(_KINDS)}")
    models = list(next(iter(needs.values())))
    figure, axes = _new(title, WORDS["bytes"], "")
    for (kind, bytes_of), (colour, marker) in zip(needs.items(), _KINDS, strict=False):
        gigabytes = [bytes_of[model] / 1e9 for model in models]
        axes.plot(gigabytes, range(len(models)), marker, color=colour, label=kind, ms=8)
    by_size: dict[float, list[str]] = {}
    for device, size in limits.items():
        by_size.setdefault(round(size / 1e9), []).append(device)
    for size, devices in by_size.items():
        axes.axvline(size, color="#666666", ls="--", lw=1.2)
        side = "right" if size == min(by_size) else "left"
        name = "\n".join(f" {device} " for device in devices)
        axes.text(size, -1.5, name, va="top", ha=side, fontsize=8, color="#444444")
    axes.set_xscale("log")
    axes.set_yticks(range(len(models)), models)
    axes.set_ylim(len(models) - 0.5, -1.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


# Kinds of memory are no roles of models, so they have looks of their own.
_KINDS = (("#44AA99", "<"), ("#4477AA", "d"), ("#AA3377", ">"))


@_drawn
def predicted_measured(
    points: Mapping[str, tuple[str, float, float, float, float]], *, title: str
) -> Figure:
    """Times as measured against times as predicted; on the diagonal, the prediction came out.

    points: name -> (role, predicted, measured, low, high), in milliseconds.
    """
    figure, axes = _new(title, WORDS["predicted"], WORDS["measured"])
    every = [value for point in points.values() for value in point[1:]]
    ends = [min(every) / 2, max(every) * 2]
    axes.plot(ends, ends, color="#666666", ls=":", lw=1.2, label=WORDS["as_predicted"])
    for name, (role, predicted, measured, low, high) in points.items():
        look = _role(role)
        bars = np.maximum([[measured - low], [high - measured]], 0)
        axes.errorbar(
            predicted, measured, yerr=bars, color=look.colour, marker=look.marker, capsize=3, ls=""
        )
        right = len(axes.containers) % 2 == 0  # neighbours on either side
        axes.annotate(
            f"  {name}  ", (predicted, measured), ha="left" if right else "right", va="center"
        )
    axes.set(xscale="log", yscale="log", xlim=(ends[0] / 3, ends[1] * 4), ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(loc="upper left")
    return figure


@_drawn
def throughput_plot(
    points: Sequence[tuple[float, float, float, float]],
    bound: Sequence[tuple[float, float]],
    *,
    title: str,
    role: str = "real",
) -> Figure:
    """Tokens a second against tokens in one step, with the most that bytes and operations allow.

    points: [(tokens in a step, median, low, high), ...], measured; bound: [(tokens, rate), ...].
    """
    figure, axes = _new(title, WORDS["tokens_per_step"], WORDS["throughput"])
    axes.plot(*np.array(bound, dtype=float).T, color="#666666", ls=":", label=WORDS["bound"])
    size, rate, low, high = np.array(sorted(points), dtype=float).T
    look = _role(role)
    axes.errorbar(
        size,
        rate,
        yerr=np.maximum([rate - low, high - rate], 0),
        color=look.colour,
        marker=look.marker,
        label=look.name,
        capsize=3,
    )
    _size_axis(axes, size)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="upper left")
    return figure


def _longest(tokens: Sequence[str]) -> int:
    return max(len(_shown(token)) for token in tokens)


def _role(role: str) -> Role:
    if role not in ROLES:
        raise UserError(f"found the role {role!r}: expected one of {', '.join(ROLES)}")
    return ROLES[role]


def _new(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, axes


class _Plain(LogFormatterMathtext):
    """0.6 in the place of 6 × 10⁻¹, where numbers are neither tiny nor huge."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = str(super().__call__(x, pos))
        return f"{x:g}" if text and 1e-4 < x < 1e5 else text


def _levels(axes: Axes, levels: Mapping[str, float] | None) -> None:
    for role, value in (levels or {}).items():
        look = _role(role)
        axes.axhline(value, color=look.colour, ls="--", lw=1.4, label=look.name)


def _size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _likeliest(distributions: Mapping[str, Mapping[str, float]], top: int) -> list[str]:
    best: dict[str, float] = {}
    for distribution in distributions.values():
        for token, chance in distribution.items():
            best[token] = max(chance, best.get(token, 0.0))
    seen = [token for token in best if best[token] >= _SEEN] or list(best)
    chosen = sorted(seen, key=lambda token: (-best[token], token))[:top]
    first = next(iter(distributions.values()))
    return sorted(chosen, key=lambda token: (-first.get(token, 0.0), -best[token], token))


def _shown(token: str) -> str:
    """A blank must be seen; a dollar sign must not start a formula."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("$", r"\$") or "∅"
