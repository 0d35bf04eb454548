"""How figures look: one style, and one colour and marker for each role in all chapters.

The colours are Okabe and Ito's, which readers with any colour vision can tell apart; each role has
a marker of its own as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterMathtext, NullLocator

from distillkit.errors import UserError


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
    "logits_mse": Role("MSE of the logits", "#770099", "$z$"),
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
    "pruned": Role("pruned", "#775500", "$p$"),
    "quantized": Role("quantized", "#DD33DD", "$q$"),
    "combined": Role("several of them", "#33BB00", "$m$"),
    "mine": Role("yours", "#FF0000", "$y$"),
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

P = ParamSpec("P")


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the course's style, and leave no figure open for the notebook to show twice."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return in_style


def role_of(role: str) -> Role:
    """The look of a role. UserError for a name that is none."""
    if role not in ROLES:
        raise UserError(f"found the role {role!r}: expected one of {', '.join(ROLES)}")
    return ROLES[role]


def new_axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """A figure with one field, its title and its axes named."""
    figure, axes = plt.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def level_lines(axes: Axes, levels: Mapping[str, float] | None) -> None:
    """A dashed horizontal line for each role, to compare with."""
    for role, value in (levels or {}).items():
        look = role_of(role)
        axes.axhline(value, color=look.colour, ls="--", lw=1.4, label=look.name)


def size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """A logarithmic axis that names the sizes measured, and no others."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


class Plain(LogFormatterMathtext):
    """0.6 in the place of 6 × 10⁻¹, where numbers are neither tiny nor huge."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = str(super().__call__(x, pos))
        return f"{x:g}" if text and 1e-4 < x < 1e5 else text


def shown(token: str) -> str:
    """A blank must be seen; a dollar sign must not start a formula."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("$", r"\$") or "∅"
