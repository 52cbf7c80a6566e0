"""The tables of a report, for a console of 80 columns: one row for each arm, and the verdict below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kd_vision.evaluation.metrics import Metrics
from kd_vision.report.benchmark_data import Arm, BenchmarkData
from kd_vision.report.gains import RESULTS, class_ap, class_gain, overall_gain
from kd_vision.report.tables import (
    FEW_BOXES,
    MISSING,
    Cell,
    Tone,
    arm_spread,
    boxes_of,
    classes_to_show,
    gain_cell,
    has_few_boxes,
    interval_text,
    main_comparisons,
    metrics_class_table,
    metrics_table,
    pair_name,
    points,
    with_deviation,
)
from kd_vision.report.verdict import judge_benchmark

_MAX_CLASSES = 12
_STYLES: dict[Tone, str] = {"": "", "good": "green", "bad": "red", "noise": "dim"}
_SHORT = {"APs": "small", "APm": "medium", "APl": "large"}


def console_table(data: BenchmarkData) -> Group:
    """Return accuracy, differences, classes and cost, and the verdict below them.

    Of more than twelve classes, those with the largest gain or loss are shown.
    """
    verdict = judge_benchmark(data)
    parts: list[RenderableType] = [_results(data)]
    if data.comparisons():
        parts.append(_differences(data))
    if main_comparisons(data):
        parts.append(_classes(data))
    lines = [Text(verdict.headline, style="bold"), *(Text(f"- {line}") for line in verdict.details)]
    return Group(*parts, _costs(data), Text(), *lines, Text())


def console_metrics(metrics: Metrics, title: str) -> Table:
    """Return the twelve COCO numbers and those of each class as one table."""
    table = Table(title=f"{title}: points, pycocotools' definitions")
    table.add_column("")
    for column in ("AP", "AP50", "boxes"):
        table.add_column(column, justify="right")
    for part in (metrics_table(metrics), metrics_class_table(metrics)):
        for name, cells in part.rows:
            table.add_row(name, *map(_styled, cells))
        table.add_section()
    return table


def _results(data: BenchmarkData) -> Table:
    title = f"{data.title}: AP points on {data.data.name} {data.data.split} ({data.data.n_images} images)"
    counts = [data.box_counts.get(size) for size in ("small", "medium", "large")]
    boxes = "" if None in counts else f"; {counts[0]} small, {counts[1]} medium, {counts[2]} large boxes"
    table = _table(
        title, f"mean over seeds, ± standard deviation{boxes}", ["", *(_SHORT.get(key, key) for _, key, _ in RESULTS)]
    )
    for arm in data.arms:
        cells = []
        for label, key, number in RESULTS:
            spread = arm_spread(arm, number)
            text = with_deviation(spread) if label == "AP" else points(None if spread is None else spread.mean)
            cells.append(Cell(text, "noise" if has_few_boxes(data, key) else ""))
        table.add_row(escape(arm.name), *map(_styled, cells))
    return table


def _differences(data: BenchmarkData) -> Table:
    pairs = data.comparisons()
    gains = [overall_gain(data, pair) for pair in pairs]
    over = next((gain.over for gain in gains if gain is not None), "nothing")
    known = "" if over == "nothing" else f"interval over {over}; "
    table = _table(
        "Differences in AP", f"{known}images with fewer / more mistakes", ["", "AP", "95 % interval", "AP is", "images"]
    )
    for pair, gain in zip(pairs, gains, strict=True):
        own = data.difference(pair)
        images = MISSING if own is None else f"{own.images.won} / {own.images.lost}"
        cell = gain_cell(gain)
        mean, interval, outcome = (
            (MISSING,) * 3
            if gain is None
            else (cell.text.split("\n")[0], interval_text(gain) or MISSING, gain.outcome.removesuffix(" shown"))
        )
        row = [Cell(text, cell.tone) for text in (mean, interval, outcome)]
        table.add_row(escape(pair_name(pair)), *map(_styled, (*row, Cell(images))))
    return table


def _classes(data: BenchmarkData) -> Table:
    pair = main_comparisons(data)[0]
    names = classes_to_show(data, _MAX_CLASSES)
    hidden = len(data.data.classes) - len(names)
    few = any(boxes_of(data, name) < FEW_BOXES for name in names)
    notes = [f"{hidden} more classes in report.md"] * bool(hidden) + [f"dimmed: fewer than {FEW_BOXES} boxes"] * few
    title = f"AP of each class, {pair_name(pair)}"
    table = _table(title, "; ".join(notes), ["", "boxes", "before", "after", "change", "95 % interval"])
    for name in names:
        gain, boxes = class_gain(data, pair, name), boxes_of(data, name)
        before, after = (_mean(arm, name) for arm in (pair.before, pair.after))
        cell = gain_cell(gain)
        tone: Tone = "noise" if boxes < FEW_BOXES else cell.tone
        interval = MISSING if gain is None else interval_text(gain) or MISSING
        cells = [Cell(text, "noise" if boxes < FEW_BOXES else "") for text in (str(boxes), before, after)]
        cells += [Cell(text, tone) for text in (cell.text.split("\n")[0], interval)]
        table.add_row(escape(name), *map(_styled, cells))
    return table


def _costs(data: BenchmarkData) -> Table:
    table = _table(
        "Cost", "ms: ONNX latency, median; ratio: over that of plain", ["", "M param.", "GFLOPs", "MB", "ms", "ratio"]
    )
    for arm in data.arms:
        latency = arm.onnx_latency_ms
        values = (
            _number(arm.parameters, 1e6, 2),
            _number(arm.gflops),
            _number(arm.file_bytes, 1e6),
            _number(None if latency is None else latency.median_ms),
            _number(None if latency is None else latency.ratio, digits=2),
        )
        table.add_row(escape(arm.name), *values)
    return table


def _table(title: str, caption: str, columns: Sequence[str]) -> Table:
    """Return a table whose numbers are never cut: where it is too wide, the names in its first column wrap."""
    table = Table(title=escape(title), caption=escape(caption) or None)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _mean(arm: Arm, name: str) -> str:
    spread = arm_spread(arm, class_ap(name))
    return points(None if spread is None else spread.mean)


def _number(value: float | None, divisor: float = 1.0, digits: int = 1) -> str:
    return MISSING if value is None else f"{value / divisor:.{digits}f}"


def _styled(cell: Cell) -> str:
    style = _STYLES[cell.tone]
    return f"[{style}]{escape(cell.text)}[/]" if style else escape(cell.text)
