"""The tables of a report, for the console."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from kd_vision.evaluation.metrics import Metrics
from kd_vision.report.benchmark_data import BenchmarkData
from kd_vision.report.tables import (
    Cell,
    class_table,
    cost_table,
    metrics_class_table,
    metrics_table,
    result_table,
)

_MAX_CLASSES = 12


def console_table(data: BenchmarkData) -> Table:
    """Return accuracy, classes and cost as one table.

    Of more than twelve classes, those with the largest gain or loss are shown.
    """
    shown = min(len(data.data.classes), _MAX_CLASSES)
    hidden = len(data.data.classes) - shown
    parts = (result_table(data), class_table(data, shown), cost_table(data))
    table = Table(
        title=f"{data.title}: AP points on {data.data.name} {data.data.split} ({data.data.n_images} images)",
        caption=f"mean ± sd over seeds{f'; {hidden} more classes in report.md' if hidden else ''}",
    )
    table.add_column("")
    for column in parts[0].columns[1:]:
        table.add_column(column, justify="right")
    for part in parts:
        for name, cells in part.rows:
            table.add_row(name, *map(_styled, cells))
        table.add_section()
    return table


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


def _styled(cell: Cell) -> str:
    style = {"good": "green", "bad": "red"}.get(cell.tone)
    return f"[{style}]{escape(cell.text)}[/]" if style else escape(cell.text)
