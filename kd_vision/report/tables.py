"""The tables of a report, built once and rendered as markdown, as HTML and on the console.

Accuracy is in AP points (fractions x 100) with one decimal: mean ± sample standard deviation over
seeds. A gain is the mean of the differences of runs that share a seed, ± their deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kd_vision.evaluation.metrics import Metrics
from kd_vision.evaluation.statistics import Spread, paired_differences, summarise
from kd_vision.report.benchmark_data import Arm, BenchmarkData, Comparison

Tone = Literal["", "good", "bad"]
Number = Callable[[Metrics], "float | None"]

MISSING = "–"

RESULTS: tuple[tuple[str, Number], ...] = (
    ("AP", lambda metrics: metrics.ap),
    ("AP50", lambda metrics: metrics.ap50),
    ("AP75", lambda metrics: metrics.ap75),
    ("AP small", lambda metrics: metrics.ap_small),
    ("AP medium", lambda metrics: metrics.ap_medium),
    ("AP large", lambda metrics: metrics.ap_large),
)
"""Rows of the main table: label, and how to read the number."""

RECALLS: tuple[tuple[str, Number], ...] = (
    ("AR, 1 box an image", lambda metrics: metrics.ar1),
    ("AR, 10 boxes", lambda metrics: metrics.ar10),
    ("AR, 100 boxes", lambda metrics: metrics.ar100),
    ("AR small", lambda metrics: metrics.ar_small),
    ("AR medium", lambda metrics: metrics.ar_medium),
    ("AR large", lambda metrics: metrics.ar_large),
)


@dataclass(frozen=True)
class Cell:
    """Text of a cell; `tone` colours gains and losses."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """A table: the first column names the row, the others hold cells.

    Attributes:
        title: heading.
        caption: what the numbers are, with units.
        columns: head of every column, that of the row names first.
        rows: name and cells.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    def without_empty_columns(self) -> Table:
        """Return the table without columns that are empty in every row."""
        kept = [column for column in range(len(self.columns) - 1) if any(cells[column].text for _, cells in self.rows)]
        return replace(
            self,
            columns=(self.columns[0], *(self.columns[column + 1] for column in kept)),
            rows=tuple((name, tuple(cells[column] for column in kept)) for name, cells in self.rows),
        )

    def to_markdown(self) -> str:
        """Return a GitHub table, numbers to the right."""
        lines = [
            _markdown_row(self.columns),
            "|" + "|".join([":---", *["---:"] * (len(self.columns) - 1)]) + "|",
        ]
        lines += [_markdown_row((name, *(cell.text for cell in cells))) for name, cells in self.rows]
        return "\n".join(lines)


def result_table(data: BenchmarkData) -> Table:
    """AP, AP50, AP75 and AP by size for each arm, with gains."""
    return Table(
        f"Accuracy on {data.data.name} {data.data.split}",
        "AP points (0 to 100), mean ± standard deviation over seeds. AP is the COCO mean over IoU 0.50 to "
        "0.95; small, medium and large are box areas below 32², up to 96² and above, in pixels of the "
        "original image. A gain is the mean of the differences of runs with the same seed.",
        ("", *_columns(data)),
        tuple((label, _accuracy_cells(data, number)) for label, number in RESULTS),
    )


def class_table(data: BenchmarkData, most: int | None = None) -> Table:
    """AP of each class for each arm, with gains.

    Args:
        data: the benchmark.
        most: keep only the classes whose first gain is largest either way; None: all.
    """
    names = classes_to_show(data, most)
    return Table(
        "AP of each class",
        "AP points (0 to 100) at IoU 0.50 to 0.95, mean ± standard deviation over seeds; "
        "in brackets the number of ground-truth boxes.",
        ("class (boxes)", *_columns(data)),
        tuple((f"{name} ({_boxes(data, name)})", _accuracy_cells(data, class_ap(name))) for name in names),
    )


def cost_table(data: BenchmarkData) -> Table:
    """Cost of each arm: parameters, GFLOPs, file size, latency, training."""
    rows: list[tuple[str, Callable[[Arm], str]]] = [
        ("Model", lambda arm: arm.model),
        ("Parameters (million)", lambda arm: MISSING if arm.parameters is None else f"{arm.parameters / 1e6:.2f}"),
        ("GFLOPs an image", lambda arm: _plain(arm.gflops)),
        ("File size (MB)", lambda arm: _plain(None if arm.file_bytes is None else arm.file_bytes / 1e6)),
        ("ONNX latency (ms), median (p90)", _latency),
        ("Training time (min)", lambda arm: _mean_of([_over(run.seconds, 60) for run in arm.runs])),
        ("Training speed (images/s)", lambda arm: _mean_of([run.images_per_second for run in arm.runs])),
    ]
    empty = (Cell(""),) * len(data.comparisons())
    return Table(
        "Cost",
        f"One image of {data.image_size} x {data.image_size} pixels; training time and speed are means over "
        f"seeds{_latency_facts(data)}.",
        ("", *_columns(data)),
        tuple((label, (*(Cell(text(arm)) for arm in data.arms), *empty)) for label, text in rows),
    )


def seed_table(data: BenchmarkData) -> Table:
    """AP and training time of each run."""
    rows = []
    for arm in data.arms:
        for run in arm.runs:
            seed = "given weights" if run.seed is None else f"seed {run.seed}"
            numbers = [points(run.metrics.ap), points(run.metrics.ap50), points(run.metrics.ap75)]
            numbers += [_plain(_over(run.seconds, 60)), run.directory or MISSING]
            rows.append((f"{arm.name}, {seed}", tuple(Cell(text) for text in numbers)))
    return Table(
        "Every run",
        "AP points; training time in minutes; the run directory is relative to the report.",
        ("run", "AP", "AP50", "AP75", "minutes", "directory"),
        tuple(rows),
    )


def metrics_table(metrics: Metrics) -> Table:
    """The twelve COCO numbers of one model."""
    return Table(
        "COCO metrics",
        f"Points (0 to 100) on {metrics.n_images} images. AP and AR are means over IoU 0.50 to 0.95.",
        ("", "points"),
        tuple((label, (Cell(points(number(metrics))),)) for label, number in (*RESULTS, *RECALLS)),
    )


def metrics_class_table(metrics: Metrics) -> Table:
    """AP and AP50 of each class of one model."""
    rows = tuple(
        (name, (Cell(points(numbers.ap)), Cell(points(numbers.ap50)), Cell(str(numbers.boxes))))
        for name, numbers in metrics.per_class.items()
    )
    return Table("Each class", "AP points; boxes of the ground truth.", ("class", "AP", "AP50", "boxes"), rows)


def arm_spread(arm: Arm, number: Number) -> Spread | None:
    """Mean and deviation over the runs of an arm in which `number` is defined; a fraction."""
    values = [number(run.metrics) for run in arm.runs]
    return summarise(value for value in values if value is not None)


def gains(pair: Comparison, number: Number) -> dict[int, float]:
    """Differences after - before by seed; fractions."""
    return paired_differences(_by_seed(pair.after, number), _by_seed(pair.before, number))


def class_ap(name: str) -> Number:
    """Return the function that reads the AP of a class."""

    def read(metrics: Metrics) -> float | None:
        numbers = metrics.per_class.get(name)
        return None if numbers is None else numbers.ap

    return read


def classes_to_show(data: BenchmarkData, most: int | None) -> tuple[str, ...]:
    """Return the class names, or the `most` with the largest difference of the first comparison."""
    names = data.data.classes
    if most is None or len(names) <= most:
        return names
    pairs = data.comparisons()

    def size(name: str) -> float:
        spread = summarise(gains(pairs[0], class_ap(name)).values()) if pairs else None
        return -1.0 if spread is None else abs(spread.mean)

    chosen = set(sorted(names, key=size, reverse=True)[:most])
    return tuple(name for name in names if name in chosen)


def points(value: float | None) -> str:
    """Format a fraction as AP points."""
    return MISSING if value is None else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Format a difference of fractions as signed AP points, with a true minus sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _columns(data: BenchmarkData) -> list[str]:
    pairs = data.comparisons()
    return [arm.name for arm in data.arms] + [f"{pair.after.name} − {pair.before.name}" for pair in pairs]


def _accuracy_cells(data: BenchmarkData, number: Number) -> tuple[Cell, ...]:
    values = [Cell(_with_deviation(arm_spread(arm, number), points)) for arm in data.arms]
    return (*values, *(_gain_cell(gains(pair, number)) for pair in data.comparisons()))


def _gain_cell(differences: Mapping[int, float]) -> Cell:
    spread = summarise(differences.values())
    if spread is None:
        return Cell(MISSING)
    shown = round(100 * spread.mean, 1)
    tone: Tone = "good" if shown > 0 else "bad" if shown < 0 else ""
    return Cell(_with_deviation(spread, signed), tone)


def _with_deviation(spread: Spread | None, show: Callable[[float], str]) -> str:
    if spread is None:
        return MISSING
    deviation = "" if spread.deviation is None else f" ± {points(spread.deviation)}"
    return f"{show(spread.mean)}{deviation}"


def _by_seed(arm: Arm, number: Number) -> dict[int, float | None]:
    return {run.seed: number(run.metrics) for run in arm.runs if run.seed is not None}


def _boxes(data: BenchmarkData, name: str) -> int | str:
    numbers = data.arms[0].runs[0].metrics.per_class.get(name)
    return MISSING if numbers is None else numbers.boxes


def _latency(arm: Arm) -> str:
    latency = arm.onnx_latency_ms
    return MISSING if latency is None else f"{latency.median_ms:.1f} ({latency.p90_ms:.1f})"


def _latency_facts(data: BenchmarkData) -> str:
    facts = {(arm.onnx_latency_ms.threads, arm.onnx_latency_ms.runs) for arm in data.arms if arm.onnx_latency_ms}
    if len(facts) != 1:
        return ""
    threads, runs = facts.pop()
    return f"; latency on {threads} CPU thread{'s' if threads > 1 else ''}, {runs} runs"


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _mean_of(values: Sequence[float | None]) -> str:
    spread = summarise(value for value in values if value is not None)
    return _plain(None if spread is None else spread.mean)


def _plain(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
