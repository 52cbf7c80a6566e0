"""The report as one HTML file that needs no network: styles, plots and images are part of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kd_vision.report.benchmark_data import BenchmarkData, Example
from kd_vision.report.drawing import (
    FN_COLOUR,
    FP_COLOUR,
    GROUND_TRUTH_COLOUR,
    TP_COLOUR,
    draw_ground_truth,
    draw_matches,
    encode_jpeg,
)
from kd_vision.report.examples import SCORE_THRESHOLD, example_detections, example_matches, example_record
from kd_vision.report.markdown import benchmark_facts, describe_difference
from kd_vision.report.plots import Plot, arm_colours, benchmark_plots, run_plots
from kd_vision.report.run_data import RunData
from kd_vision.report.tables import (
    Table,
    class_table,
    cost_table,
    difference_table,
    error_table,
    metrics_class_table,
    metrics_table,
    result_table,
    seed_table,
)
from kd_vision.report.verdict import judge_benchmark
from kd_vision.runtime.images import Pixels, read_image

_FOLD_CLASSES = 20
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Panel:
    """One image of a comparison: the arm, its counts, and the pixels as a data URI."""

    name: str
    outcome: str
    source: str


@dataclass(frozen=True)
class ExampleView:
    """One image with its panels."""

    file_name: str
    difference: str
    panels: tuple[Panel, ...]


def benchmark_html(data: BenchmarkData, directory: Path) -> str:
    """Return the text of `report.html` of a benchmark.

    Args:
        data: the benchmark.
        directory: where its example images and run directories are.

    Raises:
        RequestError: an example image cannot be read.
    """
    return (
        _environment()
        .get_template("benchmark.html.j2")
        .render(
            title=data.title,
            verdict=judge_benchmark(data),
            data=data,
            colours=arm_colours(data.arms),
            results=result_table(data),
            differences=difference_table(data),
            errors=error_table(data),
            classes=class_table(data),
            fold_classes=len(data.data.classes) > _FOLD_CLASSES,
            cost=cost_table(data).without_empty_rows(),
            runs=seed_table(data),
            plots=_safe(benchmark_plots(data, directory)),
            examples=[_view(data, example, directory) for example in data.examples],
            legend=_legend(),
            threshold=SCORE_THRESHOLD,
            facts=benchmark_facts(data),
        )
    )


def run_html(run: RunData) -> str:
    """Return the text of `report.html` of one training run."""
    tables: list[Table] = []
    if run.metrics is not None:
        tables = [metrics_table(run.metrics), metrics_class_table(run.metrics)]
    return (
        _environment()
        .get_template("run.html.j2")
        .render(title=run.title, run=run, tables=tables, plots=_safe(run_plots(run.history)))
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("kd_vision.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _safe(plots: Sequence[Plot]) -> list[tuple[str, str, Markup]]:
    """Mark the plots as HTML; matplotlib has escaped their text."""
    return [(plot.title, plot.caption, Markup(plot.svg)) for plot in plots]


def _legend() -> list[tuple[str, str]]:
    return [
        (GROUND_TRUTH_COLOUR, "ground truth"),
        (TP_COLOUR, "true positive (TP)"),
        (FP_COLOUR, "false positive (FP)"),
        (FN_COLOUR, "missed (FN), corners"),
    ]


def _view(data: BenchmarkData, example: Example, directory: Path) -> ExampleView:
    image = read_image(directory / example.image, 3)
    classes = data.data.classes
    record = example_record(example, *image.shape[:2])
    boxes = int((~record.crowd).sum())
    drawn = draw_ground_truth(image, record, classes)
    panels = [_panel("ground truth", f"{boxes} box{'' if boxes == 1 else 'es'}", drawn)]
    for arm in data.arms:
        if arm.name in example.detections:
            stored = example.detections[arm.name]
            matches = example_matches(stored, record, classes)
            drawn = draw_matches(image, record, example_detections(stored), matches, classes)
            panels.append(_panel(arm.name, str(matches), drawn))
    return ExampleView(example.file_name, describe_difference(example.difference), tuple(panels))


def _panel(name: str, outcome: str, image: Pixels) -> Panel:
    encoded = base64.b64encode(encode_jpeg(image, _JPEG_QUALITY)).decode("ascii")
    return Panel(name, outcome, f"data:image/jpeg;base64,{encoded}")
