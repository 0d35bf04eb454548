"""Measures against steps, sizes, confidence or each other, and rows of shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from distillkit.plots.look import Plain, drawn, level_lines, new_axes, role_of, size_axis
from distillkit.words import WORDS

if TYPE_CHECKING:
    from distillkit.evaluation import Calibration

_FEW = 20  # more markers than these hide their line
_DASHES = ("-", "--", ":", "-.")  # lines that lie on each other can all be seen


@drawn
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
    figure, axes = new_axes(title, xlabel, ylabel)
    for role, (steps, values) in curves.items():
        look = role_of(role)
        table = np.atleast_2d(np.asarray(values, dtype=float))
        mean = table.mean(axis=0)
        axes.plot(steps, mean, color=look.colour, label=look.name)
        if len(table) > 1:
            axes.fill_between(
                np.asarray(steps), table.min(0), table.max(0), color=look.colour, alpha=0.2, lw=0
            )
        best = int(np.nanargmin(mean))
        axes.plot(np.asarray(steps)[best], mean[best], look.marker, color=look.colour)
    level_lines(axes, levels)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@drawn
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
    figure, axes = new_axes(title, xlabel, ylabel)
    for place, (role, rows) in enumerate(points.items()):
        look = role_of(role)
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
    level_lines(axes, levels)
    size_axis(axes, sorted({row[0] for rows in points.values() for row in rows}))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@drawn
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
    figure, axes = new_axes(title, xlabel, "")
    figure.set_size_inches(7.2, 1.5 + 0.32 * len(rows))
    for place, (name, values) in enumerate(rows.items()):
        look = role_of((others or {}).get(name, role))
        axes.barh(place, np.mean(values), color=look.colour, alpha=0.25, height=0.6)
        axes.plot(values, [place] * len(values), look.marker, color=look.colour, alpha=0.8)
    for each, value in (levels or {}).items():
        other = role_of(each)
        axes.axvline(value, color=other.colour, ls="--", lw=1.4, label=other.name)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", visible=False)
    if levels:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


@drawn
def reliability(
    calibrations: Mapping[str, Calibration], *, title: str, least_count: int = 20
) -> Figure:
    """Accuracy against confidence, bin by bin; on the diagonal, a model is as right as it says.

    calibrations: role -> evaluation.calibration_error(...). Bins of fewer than `least_count` tokens
    are left out of the picture (not of the error).
    """
    figure, axes = new_axes(title, WORDS["confidence"], WORDS["accuracy"])
    figure.set_size_inches(5.2, 4.6)
    axes.plot([0, 1], [0, 1], color="#666666", ls=":", lw=1.2, label=WORDS["calibrated"])
    for role, calibration in calibrations.items():
        look = role_of(role)
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


@drawn
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
    figure, axes = new_axes(title, xlabel, ylabel)
    dashes = cycle(_DASHES)
    for role, (x, y) in curves.items():
        look, at, values = role_of(role), np.asarray(x), np.asarray(y)
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
            getattr(getattr(axes, f"{name}axis"), f"set_{which}_formatter")(Plain())
    figure.legend(loc="outside lower center", ncols=4)
    return figure
