"""Plots as inline SVG. Text stays text, ids are unique on the page, nothing is loaded from elsewhere.

Arms keep their colour and line style in every plot (Okabe-Ito colours; line styles differ too).
"""

from __future__ import annotations

import html
import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_vision.core.run_directory import read_log
from kd_vision.evaluation.tide import ERROR_KINDS
from kd_vision.report.benchmark_data import Arm, BenchmarkData
from kd_vision.report.files import VAL, History, Series
from kd_vision.report.gains import RESULTS, Number, class_ap, class_gain, gains, overall_gain
from kd_vision.report.tables import arm_spread, boxes_of, classes_to_show, pair_name, signed

_WIDTH = 4.7
_MOST_CLASSES = 20
_TERM_PREFIX = "loss/kd/"
_TASK_PREFIX = "loss/task/"
_SHARE_PREFIX = "share/"
_ROLE_COLOURS = {"teacher": "#5c6670", "plain": "#d55e00", "distilled": "#0072b2"}
_OTHER_COLOURS = ("#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7b3f00")
_DASHES = ("-", "--", "-.", ":")
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ab",
    "axes.labelcolor": "#39424a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ea",
    "grid.linewidth": 0.8,
    "xtick.color": "#39424a",
    "ytick.color": "#39424a",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Plot:
    """A plot with its title and caption.

    Attributes:
        title: heading above it.
        caption: what is drawn, with units.
        svg: the SVG element, ready for a page.
    """

    title: str
    caption: str
    svg: str


def benchmark_plots(data: BenchmarkData, directory: Path | None = None) -> list[Plot]:
    """Return the plots of a benchmark; those without data are left out.

    Args:
        data: the benchmark.
        directory: of the benchmark; the logs of distilled runs are read from the run directories in it.
    """
    plots = [_validation_curves(data), _pairs(data), _intervals(data), _errors(data), _sizes(data), _classes(data)]
    histories = {} if directory is None else _histories_of_distilled(data, directory)
    plots += [_terms(histories), _shares(histories)]
    return [plot for plot in plots if plot is not None]


def run_plots(history: History) -> list[Plot]:
    """Return the plots of one run; those without data are left out."""
    plots = [
        _run_accuracy(history),
        _lines(
            "Training loss",
            "The total and the terms of the detector's own loss as logged; logarithmic if they differ much.",
            _train_series(history, "loss/total", _TASK_PREFIX),
            "loss",
            "training-loss",
        ),
        _terms({"run": history}),
        _shares({"run": history}),
    ]
    return [plot for plot in plots if plot is not None]


def arm_colours(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the colour of each arm; the first arm of a role gets the colour of the role."""
    colours: dict[str, str] = {}
    spare = iter(_OTHER_COLOURS * (1 + len(arms) // len(_OTHER_COLOURS)))
    for arm in arms:
        of_role = _ROLE_COLOURS.get(arm.role)
        colours[arm.name] = next(spare) if of_role is None or of_role in colours.values() else of_role
    return colours


def _validation_curves(data: BenchmarkData) -> Plot | None:
    arms = [arm for arm in data.arms if any(len(run.curve) > 1 for run in arm.runs)]
    if not arms:
        return None
    colours = arm_colours(data.arms)

    def draw(axes: Any) -> None:
        for number, arm in enumerate(arms):
            by_step: dict[int, list[float]] = defaultdict(list)
            for point in (point for run in arm.runs for point in run.curve):
                if point.ap is not None:
                    by_step[point.step].append(100 * point.ap)
            steps = sorted(by_step)
            mean = [float(np.mean(by_step[step])) for step in steps]
            low, high = [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps]
            axes.fill_between(steps, low, high, color=colours[arm.name], alpha=0.16, linewidth=0)
            style = _DASHES[number % len(_DASHES)] if arm.role != "distilled" else "-"
            axes.plot(steps, mean, style, color=colours[arm.name], label=arm.name)
        _label_batches(axes)
        axes.set_ylabel("AP, points")
        axes.set_ylim(bottom=0)

    caption = "AP points on the validation split. Line: mean over seeds; band: lowest to highest seed."
    return _plot("Validation AP during training", caption, "curves", draw)


def _pairs(data: BenchmarkData) -> Plot | None:
    """Plot before and after of every seed, joined by a line."""
    pair = next((pair for pair in data.comparisons() if pair.before.role == "plain"), None)
    if pair is None:
        return None
    number = RESULTS[0][2]
    difference = gains(pair, number)
    if not difference:
        return None
    before, after = _by_seed(pair.before, number), _by_seed(pair.after, number)
    colours = arm_colours(data.arms)
    seeds = sorted(difference)

    def draw(axes: Any) -> None:
        for row, seed in enumerate(seeds):
            axes.plot([before[seed], after[seed]], [row, row], color="#9aa3ab", linewidth=2.5, zorder=1)
            middle = (before[seed] + after[seed]) / 2
            axes.annotate(signed(difference[seed]), (middle, row), (0, 6), textcoords="offset points", ha="center")
        rows = list(range(len(seeds)))
        for arm, values, marker in ((pair.before, before, "s"), (pair.after, after, "o")):
            where = [values[seed] for seed in seeds]
            axes.scatter(where, rows, 52, colours[arm.name], marker=marker, label=arm.name, zorder=2)
        axes.set_yticks(rows, [f"seed {seed}" for seed in seeds])
        axes.set_ylim(len(seeds) - 0.4, -0.7)
        axes.margins(x=0.15)
        axes.set_xlabel("AP, points")
        axes.grid(axis="y", visible=False)

    caption = (
        f"AP points on {data.data.name} {data.data.split}. Each line joins the runs of one seed: "
        "same data order, same initial weights, with and without the teacher."
    )
    return _plot("Seed by seed", caption, "pairs", draw, height=1.3 + 0.45 * len(seeds))


def _intervals(data: BenchmarkData) -> Plot | None:
    """Plot the headline's difference with its interval: overall, by size, by class."""
    pair = next(iter(data.comparisons()), None)
    if pair is None:
        return None
    rows = [(label, overall_gain(data, pair, key)) for label, key, _ in RESULTS]
    rows += [(f"{_short(name)} ({boxes_of(data, name)})", class_gain(data, pair, name))
             for name in classes_to_show(data, _MOST_CLASSES)]  # fmt: skip
    shown = [(label, gain) for label, gain in rows if gain is not None and gain.over != "nothing"]
    if not shown:
        return None
    tones = {"better": "#00674f", "worse": "#a63c00"}

    def draw(axes: Any) -> None:
        axes.axvline(0, color="#39424a", linewidth=1)
        for row, (_, gain) in enumerate(shown):
            colour = tones.get(gain.outcome, "#7d868e")
            axes.plot(
                [100 * bound for bound in (gain.low, gain.high) if bound is not None],
                [row, row],
                color=colour,
                linewidth=2.2,
            )
            axes.scatter([100 * gain.mean], [row], 30, colour, zorder=2)
        axes.set_yticks(range(len(shown)), [label for label, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("difference, AP points")
        axes.grid(axis="y", visible=False)

    caption = (
        f"{pair_name(pair)}: the mean over seeds and its 95 % interval over {shown[0][1].over}; by class with the "
        "number of boxes. Green or red: the interval leaves 0 out, with two seeds or more."
    )
    return _plot(
        "Differences and their intervals", caption, "intervals", draw, height=max(2.4, 0.9 + 0.26 * len(shown))
    )


def _errors(data: BenchmarkData) -> Plot | None:
    arms = [arm for arm in data.arms if arm.errors and arm.role != "teacher"]
    if not arms:
        return None

    def draw(axes: Any) -> None:
        height = 0.8 / len(arms)
        colours = arm_colours(data.arms)
        for index, arm in enumerate(arms):
            where = np.arange(len(ERROR_KINDS)) + (index - (len(arms) - 1) / 2) * height
            costs = [100 * arm.errors[kind].cost if kind in arm.errors else 0.0 for kind in ERROR_KINDS]
            axes.barh(where, costs, height * 0.92, color=colours[arm.name], label=arm.name)
        axes.set_yticks(range(len(ERROR_KINDS)), ERROR_KINDS)
        axes.set_ylim(len(ERROR_KINDS) - 0.45, -0.55)
        axes.set_xlabel("cost, AP50 points")
        axes.grid(axis="y", visible=False)

    caption = "AP50 points that would be gained if all errors of a kind were mended; shorter is better."
    height = 1.2 + len(ERROR_KINDS) * (0.12 * len(arms) + 0.14)
    return _plot("What the errors cost", caption, "errors", draw, height=max(2.8, height))


def _sizes(data: BenchmarkData) -> Plot | None:
    rows = [(RESULTS[index][0], RESULTS[index][2]) for index in (0, 3, 4, 5)]
    shown = [row for row in rows if any(arm_spread(arm, row[1]) for arm in data.arms)]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        width = 0.8 / len(data.arms)
        colours = arm_colours(data.arms)
        for index, arm in enumerate(data.arms):
            heights, errors = _bars(arm, [number for _, number in shown])
            where = np.arange(len(shown)) + (index - (len(data.arms) - 1) / 2) * width
            axes.bar(where, heights, width * 0.92, color=colours[arm.name], label=arm.name)
            axes.errorbar(where, heights, errors, fmt="none", ecolor="#20262b", elinewidth=1, capsize=2)
        axes.set_xticks(range(len(shown)), ["all" if name == "AP" else name[3:] for name, _ in shown])
        axes.set_ylabel("AP, points")
        axes.grid(axis="x", visible=False)

    caption = (
        f"AP points on {data.data.name} {data.data.split} by size of the object "
        "(below 32², up to 96², above; pixels). Whisker: standard deviation over seeds."
    )
    return _plot("AP by object size", caption, "sizes", draw)


def _classes(data: BenchmarkData) -> Plot | None:
    names = classes_to_show(data, _MOST_CLASSES)
    if len(data.data.classes) < 2:
        return None

    def draw(axes: Any) -> None:
        height = 0.8 / len(data.arms)
        colours = arm_colours(data.arms)
        for index, arm in enumerate(data.arms):
            lengths, errors = _bars(arm, [class_ap(name) for name in names])
            where = np.arange(len(names)) + (index - (len(data.arms) - 1) / 2) * height
            axes.barh(where, lengths, height * 0.92, color=colours[arm.name], label=arm.name)
            axes.errorbar(lengths, where, xerr=errors, fmt="none", ecolor="#20262b", elinewidth=1, capsize=2)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.set_xlabel("AP, points")
        axes.grid(axis="y", visible=False)

    hidden = len(data.data.classes) - len(names)
    caption = f"AP points on {data.data.name} {data.data.split}. Whisker: standard deviation over seeds."
    if hidden:
        caption += f" Shown are the {len(names)} classes that changed most; {hidden} more are in the table."
    height = 1.2 + len(names) * (0.14 * len(data.arms) + 0.14)
    return _plot("AP by class", caption, "classes", draw, height=max(2.8, height))


def _terms(histories: Mapping[str, History]) -> Plot | None:
    return _lines(
        "Distillation terms",
        "Each term of the distillation loss as logged; logarithmic where they differ much.",
        _mean_series(histories, _TERM_PREFIX),
        "loss",
        "terms",
    )


def _shares(histories: Mapping[str, History]) -> Plot | None:
    return _lines(
        "Gradient share of each term",
        "Size of the term's gradient at the student's neck over that of the task's own losses (1: equally strong).",
        _mean_series(histories, _SHARE_PREFIX),
        "share of the task gradient",
        "shares",
    )


def _run_accuracy(history: History) -> Plot | None:
    logged = {key: history.series(VAL, key) for key in ("AP", "AP50", "AP75")}
    curves = {
        key: Series(series.steps, tuple(100 * value for value in series.values)) for key, series in logged.items()
    }
    caption = "Points on the validation split."
    return _lines("Validation AP during training", caption, curves, "points", "accuracy", zero=True)


def _lines(
    title: str, caption: str, curves: Mapping[str, Series], unit: str, name: str, zero: bool = False
) -> Plot | None:
    """Draw one line per series, those with two values or more."""
    shown = {key: series for key, series in curves.items() if len(series) > 1}
    if not shown:
        return None
    highest = [max(series.values) for series in shown.values()]
    lowest = min(min(series.values) for series in shown.values())
    logarithmic = not zero and lowest > 0 and max(highest) > 30 * min(highest)
    palette = ("#0072b2", "#d55e00", *_OTHER_COLOURS)

    def draw(axes: Any) -> None:
        for number, (key, series) in enumerate(shown.items()):
            colour = palette[number % len(palette)]
            style = _DASHES[number % len(_DASHES)]
            axes.plot(series.steps, series.values, style, color=colour, label=key)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        elif lowest >= 0:
            axes.set_ylim(bottom=0)
        _label_batches(axes)
        axes.set_ylabel(unit)

    return _plot(title, caption, name, draw)


def _train_series(history: History, total: str, prefix: str) -> dict[str, Series]:
    keys = [total, *history.keys("train", prefix)]
    return {key.removeprefix(prefix).removeprefix("loss/"): history.series("train", key) for key in keys}


def _mean_series(histories: Mapping[str, History], prefix: str) -> dict[str, Series]:
    """Return the mean over runs of every number logged under `prefix`, by its name without the prefix."""
    keys = dict.fromkeys(key for history in histories.values() for key in history.keys("train", prefix))
    curves = {}
    for key in keys:
        by_step: dict[int, list[float]] = defaultdict(list)
        for history in histories.values():
            series = history.series("train", key)
            for step, value in zip(series.steps, series.values, strict=True):
                by_step[step].append(value)
        steps = tuple(sorted(by_step))
        curves[key.removeprefix(prefix)] = Series(steps, tuple(float(np.mean(by_step[step])) for step in steps))
    return curves


def _histories_of_distilled(data: BenchmarkData, directory: Path) -> dict[str, History]:
    """Return the logs of the first distilled arm; runs whose directory is gone are left out."""
    logs = {
        run.directory: directory / run.directory / "metrics.jsonl"
        for arm in data.with_role("distilled")[:1]
        for run in arm.runs
        if run.directory is not None
    }
    return {name: History(read_log(path)) for name, path in logs.items() if path.is_file()}


def _bars(arm: Arm, numbers: Sequence[Number]) -> tuple[list[float], list[float]]:
    spreads = [arm_spread(arm, number) for number in numbers]
    means = [0.0 if spread is None else 100 * spread.mean for spread in spreads]
    errors = [0.0 if spread is None else 100 * (spread.deviation or 0.0) for spread in spreads]
    return means, errors


def _by_seed(arm: Arm, number: Number) -> dict[int, float]:
    """Return a number in points by seed."""
    values = {}
    for run in arm.runs:
        value = number(run.metrics)
        if run.seed is not None and value is not None:
            values[run.seed] = 100 * value
    return values


def _plot(title: str, caption: str, name: str, draw: Callable[[Any], None], height: float = 3.1) -> Plot:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        _, labels = axes.get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(loc="outside upper left", ncols=4, handlelength=1.9, columnspacing=1.1)
        buffer = io.StringIO()
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=no_metadata, transparent=True)
    return Plot(title, caption, _for_page(buffer.getvalue(), name, title))


def _label_batches(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("batch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _for_page(svg: str, name: str, title: str) -> str:
    """Remove the XML head, make ids unique, and add a label for screen readers."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", body, count=1)
    # Use the font of the page; a style rule for `*` inside an SVG would apply to the whole page.
    body = body.replace("'DejaVu Sans', sans-serif", "inherit")
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    label = html.escape(title, quote=True)
    return body.replace("<svg ", f'<svg role="img" aria-label="{label}" stroke-linejoin="round" ', 1)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
