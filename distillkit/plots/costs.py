"""What a model costs: memory against devices, times against predictions, tokens a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

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
