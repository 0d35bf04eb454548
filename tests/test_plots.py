"""Figures: one look for each role, the numbers that were passed, small files, nothing left open."""

import io
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from distillkit.choosing import Variant
from distillkit.errors import UserError
from distillkit.evaluation import Bin, Calibration
from distillkit.plots import (
    ROLES,
    dot_rows,
    interval_plot,
    learning_curves,
    lines,
    memory_plot,
    pareto_plot,
    predicted_measured,
    pull_bars,
    reliability,
    throughput_plot,
    token_bars,
    token_strip,
)

DOTS = {"first": [0.1, 0.3], "second": [0.6, 0.8]}
STEPS = np.arange(0, 2001, 50)
SIZES = (100, 300, 1000, 3000)


def curves():
    random = np.random.default_rng(0)
    shapes = {"labels": 0.3, "distilled": 0.05, "smoothing": 0.2}
    return {
        role: (STEPS, 1 / (1 + STEPS / 90) + up * STEPS / 2000 + random.normal(0, 0.01, (5, 41)))
        for role, up in shapes.items()
    }


def arms():
    return {
        role: [
            (size, 0.1 * k + 0.1 * n, 0.1 * k - 0.05, 0.1 * k + 0.4) for n, size in enumerate(SIZES)
        ]
        for k, role in enumerate(("labels", "smoothing", "written", "distilled"), 1)
    }


def calibrations():
    bins = [Bin(k / 10, (k + 1) / 10, 40, k / 10 + 0.05, (k / 10) ** 0.5) for k in range(10)]
    few = Bin(0.0, 0.1, 3, 0.05, 0.9)
    return {"labels": Calibration(0.123, bins), "distilled": Calibration(0.01, [few, *bins[3:]])}


def panels():
    words = [" Which", " Would", " $5", " do", " shall", " I", "<|call|>", " one", " any", "\n"]
    return {
        role: dict(zip(words, np.random.default_rng(n).dirichlet(np.full(10, 0.3)), strict=True))
        for n, role in enumerate(("truth", "teacher", "labels", "distilled"))
    }


NEEDS = {
    "to run": {"small": 0.3e9, "large": 16e9},
    "to train": {"small": 2.2e9, "large": 128e9},
}
LIMITS = {"phone": 8e9, "board": 8.1e9, "T4": 16.1e9}
TIMES = {"student": ("distilled", 0.05, 0.65, 0.6, 0.7), "135M": ("real", 19, 56, 50, 57)}

VARIANTS = [
    Variant("teacher", "teacher", 7.9e6, 31.0, 0.951, 0.937, 0.964),
    Variant("student", "distilled", 1.35e6, 8.0, 0.874, 0.854, 0.894),
    Variant("student, int8", "quantized", 0.5e6, 4.2, 0.872, 0.851, 0.892),
    Variant("teacher, 2:4", "pruned", 7.9e6, 30.0, 0.62, 0.59, 0.65),
    Variant("pruned and int8", "combined", 0.4e6, 3.9, 0.86, 0.84, 0.88),
    Variant("yours", "mine", 0.9e6, 5.0, 0.91, 0.89, 0.93),
]

FIGURES = {
    "curves": lambda: learning_curves(
        curves(),
        title="Labels overfit; the teacher's distributions do not",
        levels={"teacher": 0.1, "truth": 0.05},
    ),
    "intervals": lambda: interval_plot(
        arms(), title="The gain shrinks as data grows", percent=True, levels={"teacher": 0.97}
    ),
    "reliability": lambda: reliability(calibrations(), title="The student is too sure of itself"),
    "bars": lambda: token_bars(panels(), title="The student has learned to doubt", said=" do"),
    "strip": lambda: token_strip(
        [" Which", " day", "?", "<|end|>"],
        {"labels": [0.1, 0.6, 0.0, 0.0], "distilled": [0.0, 0.3, 0.1, 0.0]},
        title="The labels' student doubts more",
        units="KL (nats)",
    ),
    "lines": lambda: lines(
        {"forward_kl": ([1, 2, 4], [1.0, 0.5, 0.1]), "total_variation": (STEPS, 1 + STEPS)},
        title="T² levels one of them",
        xlabel="temperature",
        ylabel="gradient",
        log="y",
    ),
    "pulls": lambda: pull_bars(
        ["na", "nell", " $5"],
        {"teacher": [0.9, 0.06, 0.04], "distilled": [0.1, 0.8, 0.1]},
        {"teacher": [0.8, -0.74, -0.06], "labels": [0.45, -0.4, -0.05]},
        title="Both terms pull the same way",
        said="na",
    ),
    "memory": lambda: memory_plot(NEEDS, LIMITS, title="A phone runs the small one"),
    "predicted": lambda: predicted_measured(TIMES, title="Bytes explain the large one"),
    "throughput": lambda: throughput_plot(
        [(1, 20, 18, 21), (8, 100, 90, 130)], [(1, 25), (8, 150)], title="Eight at once gain much"
    ),
    "pareto": lambda: pareto_plot(VARIANTS, title="Small and fast is not free"),
    "dots": lambda: dot_rows(
        DOTS, title="The second repair brings most", xlabel="right", levels={"teacher": 0.9}
    ),
}
OF_PANELS = ("bars", "pulls", "pareto")  # one title for the whole figure


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_small_has_a_title_and_named_axes_and_is_closed(name):
    figure = FIGURES[name]()
    assert not plt.get_fignums()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert 4_000 < len(picture.getvalue()) <= 60_000
    axes = figure.axes[0]
    title = figure.get_suptitle() if name in OF_PANELS else axes.get_title(loc="left")
    assert " " in title
    xlabel = axes.get_xlabel() if name != "bars" else figure.get_supxlabel()
    assert xlabel and (axes.get_ylabel() or name in ("bars", "strip", "pulls", "memory", "dots"))


def test_roles_differ_in_colour_and_marker():
    assert len({role.marker for role in ROLES.values()}) == len(ROLES)
    for one, other in combinations(ROLES.values(), 2):
        assert np.abs(np.subtract(to_rgb(one.colour), to_rgb(other.colour))).max() > 0.2


def test_a_role_has_its_colour_in_every_figure():
    wanted = ROLES["distilled"].colour.lower()
    line = _line(FIGURES["curves"](), "student, distilled")
    assert to_hex(line.get_color()) == wanted
    assert (
        to_hex(_line(FIGURES["reliability"](), "student, distilled (ECE 0.010)").get_color())
        == wanted
    )
    bars = FIGURES["bars"]().axes[3].patches
    assert {to_hex(bar.get_facecolor()) for bar in bars} == {wanted}
    containers = FIGURES["intervals"]().axes[0].containers
    assert to_hex(containers[3].lines[0].get_color()) == wanted


def test_curves_show_the_mean_and_mark_its_best_point():
    figure = learning_curves({"labels": (STEPS, curves()["labels"][1])}, title="A title")
    line = _line(figure, "student, labels")
    mean = curves()["labels"][1].mean(axis=0)
    np.testing.assert_allclose(line.get_ydata(), mean)
    best = figure.axes[0].lines[1]
    assert best.get_xdata()[0] == STEPS[mean.argmin()] and best.get_ydata()[0] == mean.min()
    assert len(figure.axes[0].collections) == 1  # the band over seeds
    one = learning_curves({"labels": ([0, 1, 2], [3.0, 1.0, 2.0])}, title="A title")
    assert not one.axes[0].collections


def test_intervals_show_what_was_passed_beside_each_other():
    figure = FIGURES["intervals"]()
    places = []
    for container, rows in zip(figure.axes[0].containers, arms().values(), strict=True):
        x, y = container.lines[0].get_data()
        np.testing.assert_allclose(y, [row[1] for row in rows])
        ends = [bar[:, 1] for bar in container.lines[2][0].get_segments()]
        np.testing.assert_allclose(ends, [row[2:] for row in rows])
        places.append(x)
    assert len(np.unique(places)) == 16
    np.testing.assert_allclose(np.exp(np.log(places).mean(axis=0)), SIZES)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [
        "100",
        "300",
        "1,000",
        "3,000",
    ]


def test_bins_of_few_tokens_are_left_out_of_the_diagram():
    line = _line(FIGURES["reliability"](), "student, distilled (ECE 0.010)")
    assert len(line.get_xdata()) == 7


def test_bars_show_the_same_likeliest_tokens_in_every_panel():
    first = {" yes": 0.6, " no": 0.3, " so": 0.1}
    second = {" so": 0.7, " perhaps": 0.3}
    figure = token_bars(
        {"truth": first, "labels": second}, title="Two of a kind", top=3, said=" so"
    )
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["␣yes", "␣no", "␣so"]
    assert [label.get_fontweight() for label in labels] == ["normal", "normal", "bold"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[0.6, 0.3, 0.1], [0.0, 0.0, 0.7]]


def test_bars_too_short_to_be_seen_are_left_out_and_the_divergence_is_written():
    sharp = {" yes": 0.999, " no": 0.001}
    figure = token_bars(
        {"truth": sharp, "labels": sharp}, title="Two of a kind", kl={"labels": 0.25}
    )
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["␣yes"]
    assert "KL" not in figure.axes[0].get_title(loc="left")
    assert figure.axes[1].get_title(loc="left").endswith("KL 0.250")


def test_a_strip_is_darker_where_the_value_is_greater():
    figure = FIGURES["strip"]()
    axes = figure.axes[0]
    shades = [patch.get_facecolor() for patch in axes.patches]
    np.testing.assert_allclose([shade[3] for shade in shades[:4]], [1 / 6, 1, 0, 0])
    assert {to_hex(shade[:3]) for shade in shades[4:]} == {ROLES["distilled"].colour.lower()}
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "␣Which",
        "␣day",
        "?",
        "<|end|>",
    ]
    named = token_strip(["a"], {"what is trained on": [1.0]}, title="A mask", most=2.0)
    assert named.axes[0].get_yticklabels()[0].get_text() == "what is trained on"
    assert named.axes[0].patches[0].get_facecolor()[3] == 0.5
    with pytest.raises(UserError, match="nothing to draw"):
        token_strip([], {"labels": []}, title="A title")


def test_lines_have_markers_where_points_are_few_and_an_area_where_asked():
    few, many = FIGURES["lines"]().axes[0].lines
    assert (few.get_marker(), many.get_marker()) == (ROLES["forward_kl"].marker, "")
    assert to_hex(many.get_color()) == ROLES["total_variation"].colour.lower()
    assert few.get_linestyle() != many.get_linestyle()
    assert FIGURES["lines"]().axes[0].get_yscale() == "log"
    figure = lines(
        {"teacher": ([0, 1], [0, 2]), "forward_kl": ([0, 1], [1, 1])},
        title="A title",
        xlabel="x",
        ylabel="y",
        filled="teacher",
    )
    [area] = figure.axes[0].collections
    assert to_hex(area.get_facecolor()[0][:3]) == ROLES["teacher"].colour.lower()
    assert len(figure.axes[0].lines) == 1


def test_lines_have_bands_a_mark_and_plain_numbers():
    figure = lines(
        {"teacher": ([0, 1], [0.2, 0.6]), "forward_kl": ([0, 1], [0.4, 0.5])},
        title="A title",
        xlabel="x",
        ylabel="y",
        log="y",
        bands={"teacher": ([0.1, 0.5], [0.3, 0.7])},
        mark=0.5,
    )
    axes = figure.axes[0]
    [band] = axes.collections
    assert to_hex(band.get_facecolor()[0][:3]) == ROLES["teacher"].colour.lower()
    assert list(axes.lines[-1].get_xdata()) == [0.5, 0.5]
    figure.canvas.draw()
    shown = [label.get_text() for label in axes.get_yticklabels("both")]
    assert "0.2" in shown and not any("times" in each for each in shown)


def test_pulls_stand_beside_the_probabilities_and_their_sum_is_marked():
    left, right = FIGURES["pulls"]().axes
    assert [bar.get_width() for bar in left.patches] == [0.9, 0.06, 0.04, 0.1, 0.8, 0.1]
    assert [bar.get_width() for bar in right.patches] == [0.8, -0.74, -0.06, 0.45, -0.4, -0.05]
    np.testing.assert_allclose(right.lines[0].get_xdata(), [1.25, -1.14, -0.11])
    low, high = right.get_xlim()
    assert low == -high and high > 1.25
    labels = left.get_yticklabels()
    assert [label.get_text() for label in labels] == ["na", "nell", r"␣\$5"]
    assert [label.get_fontweight() for label in labels] == ["bold", "normal", "normal"]
    with pytest.raises(UserError, match="no word to draw"):
        pull_bars([], {"teacher": []}, {"teacher": []}, title="A title")


def test_memory_is_drawn_in_gigabytes_with_equal_devices_on_one_line():
    axes = FIGURES["memory"]().axes[0]
    np.testing.assert_allclose(_line(axes.figure, "to train").get_xdata(), [2.2, 128])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "large"]
    assert [text.get_text() for text in axes.texts] == [" phone \n board ", " T4 "]
    with pytest.raises(UserError, match="0 kinds of need"):
        memory_plot({}, LIMITS, title="A title")


def test_a_prediction_stands_against_its_measurement():
    axes = FIGURES["predicted"]().axes[0]
    for container, (role, told, measured, low, high) in zip(
        axes.containers, TIMES.values(), strict=True
    ):
        assert to_hex(container.lines[0].get_color()) == ROLES[role].colour.lower()
        assert container.lines[0].get_xydata().tolist() == [[told, measured]]
        assert container.lines[2][0].get_segments()[0][:, 1] == pytest.approx([low, high])
    ends = axes.lines[0].get_xydata()
    assert (ends[:, 0] == ends[:, 1]).all() and [t.get_text().strip() for t in axes.texts] == list(
        TIMES
    )


def test_throughput_stands_under_its_bound():
    axes = FIGURES["throughput"]().axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 25], [8, 150]]
    assert axes.containers[0].lines[0].get_xydata().tolist() == [[1, 20], [8, 100]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "8"]


def test_every_seed_has_its_dot_and_the_bar_is_their_mean():
    axes = FIGURES["dots"]().axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.2, 0.7])
    for place, (line, values) in enumerate(zip(axes.lines, DOTS.values(), strict=False)):
        assert line.get_xydata().tolist() == [[value, place] for value in values]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(DOTS)
    assert axes.lines[-1].get_xdata()[0] == 0.9 and axes.yaxis_inverted()


def test_an_unknown_role_is_refused():
    with pytest.raises(UserError, match="'pupil': expected one of teacher"):
        learning_curves({"pupil": ([0], [1.0])}, title="A title")
    with pytest.raises(UserError, match="at least one role"):
        token_bars({}, title="A title")


def _line(figure, label):
    return next(line for line in figure.axes[0].lines if line.get_label() == label)


def test_a_row_may_have_another_role():
    figure = dot_rows(
        {"a": [0.5], "b": [0.6]},
        title="one row is right",
        xlabel="share",
        role="wrong",
        others={"a": "right"},
    )
    first, second = (line.get_color() for line in figure.axes[0].lines)
    assert (first, second) == (ROLES["right"].colour, ROLES["wrong"].colour)


def test_the_front_is_numbered_and_told():
    by_size, by_time = FIGURES["pareto"]().axes
    names = ["pruned and int8", "student, int8", "yours", "teacher"]
    for axes, wanted in ((by_size, names), (by_time, [names[0], names[1], names[2], "teacher"])):
        numbers = [text.get_text() for text in axes.texts if text.get_text().isdigit()]
        told = axes.texts[-1].get_text().splitlines()
        assert told == [f"{n} {name}" for n, name in enumerate(wanted, 1)]
        assert numbers == [str(n) for n in range(1, len(wanted) + 1)]
    assert {text.get_text() for text in by_size.figure.legends[0].get_texts()} == {
        ROLES[each.family].name for each in VARIANTS
    }
    with pytest.raises(UserError, match="no variant"):
        pareto_plot([], title="nothing at all")
