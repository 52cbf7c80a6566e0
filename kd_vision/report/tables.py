"""The tables of a report, built once and rendered as markdown, as HTML and on the console.

Accuracy is in AP points (fractions x 100) with one decimal: mean ± sample standard deviation over seeds. A difference
is the mean over runs that share a seed, with its 95 % interval; only what the interval shows has a tone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kd_vision.evaluation.metrics import Metrics
from kd_vision.evaluation.statistics import Spread, summarise
from kd_vision.evaluation.tide import ERROR_KINDS
from kd_vision.report.benchmark_data import Arm, BenchmarkData, Comparison
from kd_vision.report.gains import RESULTS, Gain, Number, class_ap, class_gain, overall_gain

Tone = Literal["", "good", "bad", "noise"]

MISSING = "–"
FEW_BOXES = 30
"""Below this number of boxes an AP is mostly noise."""

_SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
_FEW_NOTE = f"Dimmed: fewer than {FEW_BOXES} boxes, so mostly noise."
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
    """Text of a cell; `tone` colours gains and losses that are shown, and dims what rests on few boxes."""

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

    def without_empty_rows(self) -> Table:
        """Return the table without rows that are empty in every column."""
        return replace(self, rows=tuple((name, cells) for name, cells in self.rows if any(cell.text for cell in cells)))

    def to_markdown(self) -> str:
        """Return a GitHub table, numbers to the right."""
        lines = [
            _markdown_row(self.columns),
            "|" + "|".join([":---", *["---:"] * (len(self.columns) - 1)]) + "|",
        ]
        lines += [_markdown_row((name, *map(_markdown_text, cells))) for name, cells in self.rows]
        return "\n".join(lines)


def result_table(data: BenchmarkData) -> Table:
    """AP, AP50, AP75 and AP by size: one row for each arm."""
    rows = tuple(
        (arm.name, tuple(_dim(data, key, Cell(with_deviation(arm_spread(arm, number)))) for _, key, number in RESULTS))
        for arm in data.arms
    )
    return Table(
        f"Accuracy on {data.data.name} {data.data.split}",
        "AP points (0 to 100), mean ± standard deviation over seeds; in brackets the number of ground-truth boxes. AP "
        "is the COCO mean over IoU 0.50 to 0.95; small, medium and large are box areas below 32², up to 96² and above, "
        f"in pixels of the original image.{_few_note(data, _SIZES)}",
        ("", *result_heads(data)),
        rows,
    )


def difference_table(data: BenchmarkData) -> Table:
    """Differences of every comparison with their intervals, and on how many images mistakes became fewer or more."""
    rows = []
    for pair in data.comparisons():
        cells = [_dim(data, key, gain_cell(overall_gain(data, pair, key))) for _, key, _ in RESULTS]
        headline, own = overall_gain(data, pair), data.difference(pair)
        images = MISSING if own is None else f"{own.images.won} / {own.images.lost} / {own.images.equal}"
        outcome = MISSING if headline is None else headline.outcome.replace(" shown", "\nshown")
        rows.append((pair_name(pair), (Cell(outcome, cells[0].tone), *cells, Cell(images))))
    return Table(
        "Differences",
        f"AP points with the 95 % interval {_interval_facts(data)}. Coloured: an interval that leaves 0 out, from two "
        "seeds on. Images: those with fewer mistakes, with more, and with as many: false positives and missed boxes at "
        "IoU 0.5, at the score with which each student reports as many boxes as there are."
        f"{_few_note(data, _SIZES)}",
        ("", "AP is", *result_heads(data), "images won / lost / equal"),
        tuple(rows),
    )


def class_table(data: BenchmarkData, most: int | None = None) -> Table:
    """AP of each class for each arm, and what the first distilled arm gains over plain and control.

    Args:
        data: the benchmark.
        most: keep only the classes whose first gain is largest either way; None: all.
    """
    pairs = main_comparisons(data)
    rows = []
    for name in classes_to_show(data, most):
        values = [Cell(with_deviation(arm_spread(arm, class_ap(name)))) for arm in data.arms]
        values += [gain_cell(class_gain(data, pair, name)) for pair in pairs]
        few = boxes_of(data, name) < FEW_BOXES
        cells = tuple(replace(cell, tone="noise") if few else cell for cell in values)
        rows.append((f"{name} ({boxes_of(data, name)})", cells))
    few_note = f" {_FEW_NOTE}" if any(boxes_of(data, name) < FEW_BOXES for name in data.data.classes) else ""
    return Table(
        "AP of each class",
        "AP points (0 to 100) at IoU 0.50 to 0.95, mean ± standard deviation over seeds; differences with their 95 % "
        f"interval; in brackets the number of ground-truth boxes.{few_note}",
        ("class (boxes)", *(arm.name for arm in data.arms), *map(pair_name, pairs)),
        tuple(rows),
    )


def error_table(data: BenchmarkData) -> Table | None:
    """What each kind of error costs each arm; None where it was not measured."""
    arms = [arm for arm in data.arms if arm.errors]
    if not arms:
        return None
    rows = tuple((arm.name, tuple(_error_cell(arm, kind) for kind in ERROR_KINDS)) for arm in arms)
    seed = "" if data.examples_seed is None else f" Students: runs of seed {data.examples_seed}."
    return Table(
        "What the errors cost",
        "AP50 points that would be gained if all errors of a kind were mended, and in brackets their number. "
        "Classification: right place, wrong class. Localisation: right class, IoU 0.1 to 0.5. Both: wrong class and "
        "place. Duplicate: a second box of an object. Background: no object there. Missed: no box near the object. "
        f"Kinds after Bolya et al., ECCV 2020; the costs do not add up.{seed}",
        ("", *ERROR_KINDS),
        rows,
    )


def cost_table(data: BenchmarkData) -> Table:
    """Cost of each arm: parameters, GFLOPs, file size, latency, training."""
    rows: list[tuple[str, Callable[[Arm], str]]] = [
        ("Model", lambda arm: arm.model),
        ("Parameters (million)", lambda arm: MISSING if arm.parameters is None else f"{arm.parameters / 1e6:.2f}"),
        ("GFLOPs an image", lambda arm: _plain(arm.gflops)),
        ("File size (MB)", lambda arm: _plain(None if arm.file_bytes is None else arm.file_bytes / 1e6)),
        ("ONNX latency (ms), median (p90)", _latency),
        ("Latency over that of plain", _latency_ratio),
        ("Training time (min)", lambda arm: _mean_of([_over(run.seconds, 60) for run in arm.runs])),
        ("Training speed (images/s)", lambda arm: _mean_of([run.images_per_second for run in arm.runs])),
    ]
    return Table(
        "Cost",
        f"One image of {data.image_size} x {data.image_size} pixels; training time and speed are means over "
        f"seeds{_latency_facts(data)}.",
        ("", *(arm.name for arm in data.arms)),
        tuple((label, tuple(Cell(text(arm)) for arm in data.arms)) for label, text in rows),
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
        tuple(
            (label, (Cell(points(number(metrics))),))
            for label, number in (*((label, number) for label, _, number in RESULTS), *RECALLS)
        ),
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


def classes_to_show(data: BenchmarkData, most: int | None) -> tuple[str, ...]:
    """Return the class names, or the `most` with the largest difference of the first comparison."""
    names = data.data.classes
    if most is None or len(names) <= most:
        return names
    pairs = data.comparisons()

    def size(name: str) -> float:
        gain = class_gain(data, pairs[0], name) if pairs else None
        return -1.0 if gain is None else abs(gain.mean)

    chosen = set(sorted(names, key=size, reverse=True)[:most])
    return tuple(name for name in names if name in chosen)


def points(value: float | None) -> str:
    """Format a fraction as AP points."""
    return MISSING if value is None else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Format a difference of fractions as signed AP points, with a true minus sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def with_deviation(spread: Spread | None) -> str:
    """Format a mean and its deviation as AP points."""
    if spread is None:
        return MISSING
    deviation = "" if spread.deviation is None else f" ± {points(spread.deviation)}"
    return f"{points(spread.mean)}{deviation}"


def pair_name(pair: Comparison) -> str:
    """Return e.g. ``distilled − plain``."""
    return f"{pair.after.name} − {pair.before.name}"


def interval_text(gain: Gain) -> str:
    """Format the interval of a gain in points; empty where none is known."""
    return "" if gain.low is None or gain.high is None else f"{signed(gain.low)} to {signed(gain.high)}"


def gain_cell(gain: Gain | None) -> Cell:
    """Return a difference with its interval on a second line, coloured where it is shown."""
    if gain is None:
        return Cell(MISSING)
    tones: dict[str, Tone] = {"better": "good", "worse": "bad"}
    return Cell(f"{signed(gain.mean)}\n{interval_text(gain)}".strip(), tones.get(gain.outcome, ""))


def main_comparisons(data: BenchmarkData) -> tuple[Comparison, ...]:
    """Return the comparisons of the first distilled arm: over plain, and over the control."""
    first = [arm.name for arm in data.with_role("distilled")[:1]]
    return tuple(pair for pair in data.comparisons() if pair.after.name in first)


def boxes_of(data: BenchmarkData, name: str) -> int:
    """Return the number of ground-truth boxes of a class."""
    numbers = data.arms[0].runs[0].metrics.per_class.get(name)
    return 0 if numbers is None else numbers.boxes


def has_few_boxes(data: BenchmarkData, key: str) -> bool:
    """Say whether one of `RESULTS`, named by its key, rests on fewer than 30 boxes."""
    size = _SIZES.get(key, "all")
    return size in data.box_counts and data.box_counts[size] < FEW_BOXES


def result_heads(data: BenchmarkData) -> list[str]:
    """Return the column heads of `RESULTS`, with the number of boxes where it is known."""
    counts = {key: data.box_counts.get(size) for key, size in {"AP": "all", **_SIZES}.items()}
    return [label if counts.get(key) is None else f"{label} ({counts[key]})" for label, key, _ in RESULTS]


def _dim(data: BenchmarkData, key: str, cell: Cell) -> Cell:
    return replace(cell, tone="noise") if has_few_boxes(data, key) else cell


def _few_note(data: BenchmarkData, keys: Sequence[str] | dict[str, str]) -> str:
    return f" {_FEW_NOTE}" if any(has_few_boxes(data, key) for key in keys) else ""


def _interval_facts(data: BenchmarkData) -> str:
    """Say what the intervals are over, e.g. ``over images and seeds (1000 draws of the images)``."""
    gain = next((gain for gain in (overall_gain(data, pair) for pair in data.comparisons()) if gain), None)
    if gain is None or gain.over == "nothing":
        return "over seeds (none, as there is one seed)"
    draws = f" ({data.differences[0].draws} draws of the images)" if data.differences else ""
    return f"over {gain.over}{draws}"


def _error_cell(arm: Arm, kind: str) -> Cell:
    error = arm.errors.get(kind)
    return Cell(MISSING if error is None else f"{points(error.cost)} ({error.count})")


def _latency(arm: Arm) -> str:
    latency = arm.onnx_latency_ms
    return MISSING if latency is None else f"{latency.median_ms:.1f} ({latency.p90_ms:.1f})"


def _latency_ratio(arm: Arm) -> str:
    latency = arm.onnx_latency_ms
    return "" if latency is None or latency.ratio is None else f"{latency.ratio:.2f}"


def _latency_facts(data: BenchmarkData) -> str:
    facts = {(arm.onnx_latency_ms.threads, arm.onnx_latency_ms.runs) for arm in data.arms if arm.onnx_latency_ms}
    if len(facts) != 1:
        return ""
    threads, runs = facts.pop()
    turns = ", the arms in turn" if any(arm.onnx_latency_ms and arm.onnx_latency_ms.ratio for arm in data.arms) else ""
    return f"; latency on {threads} CPU thread{'s' if threads > 1 else ''}, {runs} runs{turns}"


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _mean_of(values: Sequence[float | None]) -> str:
    spread = summarise(value for value in values if value is not None)
    return _plain(None if spread is None else spread.mean)


def _plain(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"


def _markdown_text(cell: Cell) -> str:
    return f"_{cell.text}_".replace("\n", "_<br>_") if cell.tone == "noise" and cell.text else cell.text
