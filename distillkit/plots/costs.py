"""What a model costs: memory, times, tokens a second, and what is served for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from distillkit.choosing import Variant, pareto_front
from distillkit.errors import UserError
from distillkit.plots.look import drawn, new_axes, role_of, size_axis
from distillkit.words import WORDS

# Kinds of memory are no roles of models, so they have looks of their own.
_KINDS = (("#44AA99", "<"), ("#4477AA", "d"), ("#AA3377", ">"))


@drawn
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
    figure, axes = new_axes(title, WORDS["bytes"], "")
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


@drawn
def predicted_measured(
    points: Mapping[str, tuple[str, float, float, float, float]], *, title: str
) -> Figure:
    """Times as measured against times as predicted; on the diagonal, the prediction came out.

    points: name -> (role, predicted, measured, low, high), in milliseconds.
    """
    figure, axes = new_axes(title, WORDS["predicted"], WORDS["measured"])
    every = [value for point in points.values() for value in point[1:]]
    ends = [min(every) / 2, max(every) * 2]
    axes.plot(ends, ends, color="#666666", ls=":", lw=1.2, label=WORDS["as_predicted"])
    for name, (role, predicted, measured, low, high) in points.items():
        look = role_of(role)
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


@drawn
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
    figure, axes = new_axes(title, WORDS["tokens_per_step"], WORDS["throughput"])
    axes.plot(*np.array(bound, dtype=float).T, color="#666666", ls=":", label=WORDS["bound"])
    size, rate, low, high = np.array(sorted(points), dtype=float).T
    look = role_of(role)
    axes.errorbar(
        size,
        rate,
        yerr=np.maximum([rate - low, high - rate], 0),
        color=look.colour,
        marker=look.marker,
        label=look.name,
        capsize=3,
    )
    size_axis(axes, size)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="upper left")
    return figure


_COSTS = {"bytes": 1e-6, "milliseconds": 1.0}  # and what they are multiplied by for the axis


@drawn
def pareto_plot(variants: Sequence[Variant], *, title: str) -> Figure:
    """Visits served against bytes, and against the time of a turn, one point a model.

    The line is the front: models that no other one beats in this panel. Those are numbered, and the
    numbers are told beside the panel. Bars are the intervals of `variants`.
    """
    if not variants:
        raise UserError("found no variant to draw: expected at least one")
    figure, panels = plt.subplots(2, 1, figsize=(7.2, 7.6), sharey=True)
    for axes, (cost, factor) in zip(panels, _COSTS.items(), strict=True):
        for family in dict.fromkeys(each.family for each in variants):
            _family(axes, [each for each in variants if each.family == family], cost, factor)
        _front(axes, pareto_front(variants, [cost]), cost, factor)
        axes.set(xscale="log", xlabel=WORDS[f"cost_{cost}"], ylabel=WORDS["served"])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _family(axes: Axes, members: Sequence[Variant], cost: str, factor: float) -> None:
    look = role_of(members[0].family)
    rate = np.array([each.success for each in members])
    bars = [rate - [each.low for each in members], [each.high for each in members] - rate]
    axes.errorbar(
        [factor * getattr(each, cost) for each in members],
        rate,
        yerr=np.maximum(bars, 0),
        color=look.colour,
        marker=look.marker,
        ms=7,
        ls="",
        elinewidth=0.8,
        label=look.name,
    )


def _front(axes: Axes, front: Sequence[Variant], cost: str, factor: float) -> None:
    x, y = [factor * getattr(each, cost) for each in front], [each.success for each in front]
    axes.step(x, y, where="post", color="#666666", lw=1.0, ls="--", zorder=0)
    for number, place in enumerate(zip(x, y, strict=True), 1):
        axes.annotate(
            str(number), place, (-5, 6), textcoords="offset points", ha="right", fontsize=8
        )
    told = "\n".join(f"{number} {each.name}" for number, each in enumerate(front, 1))
    axes.text(1.01, 1.0, told, transform=axes.transAxes, va="top", fontsize=7.5)
