"""The console shows the tables of the report."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType

from kd_vision.cli.tables import console_metrics, console_table
from kd_vision.core.latency import Latency
from kd_vision.evaluation.metrics import ClassMetrics, Metrics
from kd_vision.report.benchmark_data import (
    Arm,
    ArmRun,
    BenchmarkData,
    Bounds,
    DataFacts,
    Difference,
    ImageCounts,
)

CLASSES = tuple(f"c[{index}]" for index in range(14))


def metrics(ap: float) -> Metrics:
    """All numbers equal `ap`, but those of class 13, which are half of it."""
    per_class = {name: ClassMetrics(ap=ap / (1 + (i == 13)), ap50=ap, boxes=7) for i, name in enumerate(CLASSES)}
    numbers: dict[str, Any] = dict.fromkeys(Metrics.model_fields, ap)
    return Metrics(**{**numbers, "ap_small": None, "per_class": per_class, "n_images": 72})


def arm(name: Any, aps: list[float]) -> Arm:
    runs = tuple(ArmRun(seed=seed, metrics=metrics(ap)) for seed, ap in enumerate(aps))
    return Arm(name=name, role=name, description="", model="yolov8n", runs=runs)


def benchmark_of(arms: tuple[Arm, ...], classes: tuple[str, ...] = CLASSES, **changes: Any) -> BenchmarkData:
    content: dict[str, Any] = {
        "title": "t",
        "data": DataFacts(name="bccd", split="test", n_images=72, classes=classes),
        "image_size": 256,
        "seeds": (0, 1),
        "arms": arms,
        "created": "today",
        "command": "kd-vision benchmark",
    }
    return BenchmarkData(**{**content, **changes})


def text_of(table: RenderableType, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_benchmark_shows_accuracy_classes_cost_and_verdict() -> None:
    text = text_of(console_table(benchmark_of((arm("plain", [0.45, 0.47]), arm("distilled", [0.51, 0.51])))))
    assert "AP points on bccd test (72 images)" in text
    cells = [[part.strip() for part in line.strip("│ ").split("│")] for line in text.splitlines()]
    assert ["plain", "46.0 ± 1.4", "46.0", "46.0", "–", "46.0", "46.0"] in cells
    assert ["distilled − plain", "+5.0", "−7.7 to +17.7", "no difference", "–"] in cells  # 12.706 x 1
    assert ["c[0]", "7", "46.0", "51.0", "+5.0", "−7.7 to +17.7"] in cells, "square brackets are no markup"
    assert text.count("c[") == 12
    assert "c[13]" not in text, "the class that changed least is left out"
    assert "2 more classes in report.md; dimmed: fewer than 30 boxes" in text
    assert "ratio" in text
    assert "No difference is shown, as the interval contains 0: +5.0 AP points" in text
    assert "- Training length: not checked." in text


def test_a_console_of_80_columns_cuts_nothing() -> None:
    """Five students, long names of arms and classes, wide numbers."""
    names = ("plain", "distilled", "control", "distilled-with-all-losses-and-a-long-name", "region_feedback_v2")
    roles = ("plain", "distilled", "control", "other", "other")
    classes = ("Platelets_of_an_unusually_long_class_name_that_goes_on", "awning-tricycle")
    arms = []
    for name, role in zip(names, roles, strict=True):
        one = arm(role, [0.45, 0.4551])
        latency = Latency(median_ms=1234.5, p90_ms=1240.0, ratio=1.02, runs=50, threads=1)
        facts = {"name": name, "parameters": 143_000_000, "gflops": 1028.6, "file_bytes": 290_000_000}
        arms.append(one.model_copy(update={**facts, "onnx_latency_ms": latency}))
    per_class = {name: ClassMetrics(ap=0.4, ap50=0.5, boxes=12345) for name in classes}
    for index, one in enumerate(arms):
        runs = tuple(
            run.model_copy(update={"metrics": run.metrics.model_copy(update={"per_class": per_class})})
            for run in one.runs
        )
        arms[index] = one.model_copy(update={"runs": runs})
    counts = {"all": 99999, "small": 33333, "medium": 33333, "large": 33333}
    text = text_of(console_table(benchmark_of(tuple(arms), classes, box_counts=counts)), width=80)
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    heads = [part.strip() for line in text.splitlines() if line.startswith("┃") for part in line.strip("┃").split("┃")]
    expected = ["AP", "AP50", "AP75", "small", "medium", "large", "95 % interval", "AP is", "images", "boxes", "before"]
    assert set(expected) | {"after", "M param.", "GFLOPs", "MB", "ms", "ratio"} <= set(heads)
    for name in (*names, *classes):
        assert name in without_breaks(text), name


def without_breaks(text: str) -> str:
    """The first column of a table with wrapped names, joined."""
    return "".join(line.strip("│┃ ").split("│")[0].strip() for line in text.splitlines())


def test_colours_are_for_what_is_shown_and_few_boxes_are_dim() -> None:
    bounds = Bounds(low=0.02, high=0.09)
    images = ImageCounts(won=30, lost=10, equal=32)
    difference = Difference(
        after="distilled", before="plain", seeds=2, draws=1000, overall={"AP": bounds},
        per_class=dict.fromkeys(CLASSES, bounds), images=images,
    )  # fmt: skip
    two = benchmark_of((arm("plain", [0.45, 0.47]), arm("distilled", [0.51, 0.51])), differences=(difference,))
    one = two.model_copy(update={"arms": tuple(a.model_copy(update={"runs": a.runs[:1]}) for a in two.arms)})

    def ansi(data: BenchmarkData) -> str:
        console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="standard")
        console.print(console_table(data))
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    green, dim = "\x1b[32m", "\x1b[2m"
    assert f"{green}+5.0" in ansi(two)
    assert "30 / 10" in ansi(two)
    assert green not in ansi(one), "one seed shows nothing"
    assert f"{dim}" in ansi(two), "seven boxes a class"


def test_metrics_show_the_twelve_numbers_and_each_class() -> None:
    lines = [line.split() for line in text_of(console_metrics(metrics(0.4), "val")).splitlines()]
    assert ["│", "AR,", "100", "boxes", "│", "40.0", "│", "│", "│"] in lines
    assert ["│", "AP", "small", "│", "–", "│", "│", "│"] in lines
    assert ["│", "c[13]", "│", "20.0", "│", "40.0", "│", "7", "│"] in lines
