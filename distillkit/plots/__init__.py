"""Every figure of the course: one look, and one colour for each role in all chapters.

Titles are sentences and come from the caller; what the functions themselves write is in `words.py`.
A function returns its figure and leaves none open: a notebook shows it when it is the last line of
a cell.
"""

from distillkit.plots.costs import memory_plot, pareto_plot, predicted_measured, throughput_plot
from distillkit.plots.curves import dot_rows, interval_plot, learning_curves, lines, reliability
from distillkit.plots.look import ROLES, STYLE, Role
from distillkit.plots.tokens import pull_bars, token_bars, token_strip

__all__ = [
    "ROLES",
    "STYLE",
    "Role",
    "dot_rows",
    "interval_plot",
    "learning_curves",
    "lines",
    "memory_plot",
    "pareto_plot",
    "predicted_measured",
    "pull_bars",
    "reliability",
    "throughput_plot",
    "token_bars",
    "token_strip",
]
