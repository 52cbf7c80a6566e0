"""The console shows the tables of the report."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from kd_vision.cli.tables import console_metrics, console_table
from kd_vision.evaluation.metrics import ClassMetrics, Metrics
from kd_vision.report.benchmark_data import Arm, ArmRun, BenchmarkData, DataFacts

CLASSES = tuple(f"c[{index}]" for index in range(14))


def metrics(ap: float) -> Metrics:
    """All numbers equal `ap`, but those of class 13, which are half of it."""
    per_class = {name: ClassMetrics(ap=ap / (1 + (i == 13)), ap50=ap, boxes=7) for i, name in enumerate(CLASSES)}
    numbers: dict[str, Any] = dict.fromkeys(Metrics.model_fields, ap)
    return Metrics(**{**numbers, "ap_small": None, "per_class": per_class, "n_images": 72})


def arm(name: Any, aps: list[float]) -> Arm:
    runs = tuple(ArmRun(seed=seed, metrics=metrics(ap)) for seed, ap in enumerate(aps))
    return Arm(name=name, role=name, description="", model="yolov8n", runs=runs)


def text_of(table: Table) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_benchmark_shows_accuracy_classes_and_cost() -> None:
    data = BenchmarkData(
        title="t",
        data=DataFacts(name="bccd", split="test", n_images=72, classes=CLASSES),
        image_size=256,
        seeds=(0, 1),
        arms=(arm("plain", [0.45, 0.47]), arm("distilled", [0.51, 0.51])),
        created="today",
        command="kd-vision benchmark",
    )
    text = text_of(console_table(data))
    assert "AP points on bccd test (72 images)" in text
    assert "+5.0 ± 1.4" in text
    assert "c[0]" in text, "square brackets of a class name are no markup"
    assert text.count("c[") == 12
    assert "c[13]" not in text, "the class that changed least is left out"
    assert "2 more classes in report.md" in text
    assert "ONNX latency (ms), median (p90)" in text


def test_metrics_show_the_twelve_numbers_and_each_class() -> None:
    lines = [line.split() for line in text_of(console_metrics(metrics(0.4), "val")).splitlines()]
    assert ["│", "AR,", "100", "boxes", "│", "40.0", "│", "│", "│"] in lines
    assert ["│", "AP", "small", "│", "–", "│", "│", "│"] in lines
    assert ["│", "c[13]", "│", "20.0", "│", "40.0", "│", "7", "│"] in lines
