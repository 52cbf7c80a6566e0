"""A benchmark with known numbers, drawn images and logs; and the run directory of one training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kd_vision.core.latency import Latency
from kd_vision.evaluation.metrics import ClassMetrics, Metrics
from kd_vision.evaluation.tide import ERROR_KINDS
from kd_vision.report.benchmark_data import (
    Arm,
    ArmRun,
    BenchmarkData,
    Bounds,
    BudgetCheck,
    CurvePoint,
    DataFacts,
    DetectedBox,
    Difference,
    ErrorKindFacts,
    Example,
    GroundTruthBox,
    ImageCounts,
    write_benchmark,
)

CLASSES = ("RBC", "WBC", "Platelets")
STEPS = (65, 130, 195, 260, 325)


def make_metrics(ap: float, classes: tuple[str, ...] = CLASSES) -> Metrics:
    """Numbers that all follow from one AP; no small boxes."""
    return Metrics(
        ap=ap,
        ap50=ap + 0.2,
        ap75=max(ap - 0.1, 0.0),
        ap_small=None,
        ap_medium=max(ap - 0.05, 0.0),
        ap_large=ap + 0.05,
        ar1=ap / 2,
        ar10=ap,
        ar100=ap + 0.1,
        ar_small=None,
        ar_medium=ap,
        ar_large=ap + 0.1,
        per_class={
            name: ClassMetrics(ap=ap + 0.01 * (index % 7), ap50=ap + 0.2, boxes=100 + index)
            for index, name in enumerate(classes)
        },
        n_images=72,
    )


def make_arm(name: str, role: Any, aps: list[float], classes: tuple[str, ...] = CLASSES, **facts: Any) -> Arm:
    """An arm with one run per AP, seeds 0, 1, ...; its curve rises to that AP."""
    runs = tuple(
        ArmRun(
            seed=seed,
            metrics=make_metrics(ap, classes),
            seconds=120.0 + seed,
            images_per_second=43.0,
            curve=tuple(CurvePoint(step=step, ap=ap * (step / 325) ** 0.5) for step in STEPS),
            directory=f"{name}/seed{seed}",
        )
        for seed, ap in enumerate(aps)
    )
    given = {"description": f"how {name} was made", "model": "yolov8n", "parameters": 3_011_433, **facts}
    return Arm(name=name, role=role, runs=runs, **given)


@pytest.fixture
def metrics() -> Metrics:
    """Numbers that follow from AP 0.46."""
    return make_metrics(0.46)


@pytest.fixture
def benchmark() -> Callable[..., BenchmarkData]:
    """Build a benchmark from the APs of the plain and the distilled student."""

    def build(plain: list[float], distilled: list[float], **changes: Any) -> BenchmarkData:
        classes = changes.pop("classes", CLASSES)
        other, control = changes.pop("other", None), changes.pop("control", None)
        latency = Latency(median_ms=12.34, p90_ms=14.0, runs=50, threads=2)
        teacher = make_arm("teacher", "teacher", [0.614], classes, model="yolov8s", parameters=11_136_761, gflops=28.6)
        arms = [teacher, make_arm("plain", "plain", plain, classes)]
        if control is not None:
            arms.append(make_arm("control", "control", control, classes))
        if other is not None:
            arms.append(make_arm("built-in", "other", other, classes))
        facts: dict[str, Any] = {"gflops": 8.7, "file_bytes": 6_250_000, "onnx_latency_ms": latency}
        arms.append(make_arm("distilled", "distilled", distilled, classes, **facts))
        content: dict[str, Any] = {
            "title": "yolov8s → yolov8n",
            "data": DataFacts(name="bccd", split="test", n_images=72, classes=classes),
            "image_size": 256,
            "steps": 325,
            "seeds": tuple(range(len(plain))),
            "arms": tuple(arms),
            "created": "2026-07-29T12:00:00",
            "command": "kd-vision benchmark configs/bccd.yaml --seeds 0 1 2",
            "hardware": {"cpu": "2 cores", "gpu": None},
            "versions": {"torch": "2.15.0"},
        }
        return BenchmarkData(**{**content, **changes})

    return build


def with_intervals(data: BenchmarkData, overall: dict[tuple[str, str], tuple[float, float]]) -> BenchmarkData:
    """The benchmark with intervals of the comparisons (after, before), the same for every number and class."""
    differences = []
    for (after, before), (low, high) in overall.items():
        bounds = Bounds(low=low, high=high)
        difference = Difference(
            after=after,
            before=before,
            seeds=len(data.seeds),
            draws=1000,
            overall=dict.fromkeys(("AP", "AP50", "AP75", "APm", "APl"), bounds),
            per_class=dict.fromkeys(data.data.classes, bounds),
            images=ImageCounts(won=31, lost=12, equal=29),
        )
        differences.append(difference)
    return data.model_copy(update={"differences": tuple(differences)})


@pytest.fixture
def intervals() -> Callable[..., BenchmarkData]:
    """Gives `with_intervals`."""
    return with_intervals


@pytest.fixture
def benchmark_directory(tmp_path: Path, benchmark: Callable[..., BenchmarkData]) -> Path:
    """A complete benchmark directory: three seeds, five arms, two examples, logs of distilled runs."""
    directory = tmp_path / "bench"
    (directory / "examples").mkdir(parents=True)
    examples = tuple(_example(directory, number) for number in (4, 9))
    data = benchmark(
        [0.455, 0.46, 0.465],
        [0.509, 0.513, 0.515],
        other=[0.485, 0.49, 0.489],
        control=[0.47, 0.468, 0.473],
        examples=examples,
        examples_seed=0,
        box_counts={"all": 967, "small": 12, "medium": 205, "large": 750},
        budget=BudgetCheck(split="val", seed=0, steps=325, longer_steps=488, ap=0.46, longer_ap=0.463),
    )
    errors = [{kind: ErrorKindFacts(count=9 + 7 * row, cost=0.01 + 0.012 * row * (1 + place % 3))
               for row, kind in enumerate(ERROR_KINDS)} for place in range(len(data.arms))]  # fmt: skip
    arms = tuple(arm.model_copy(update={"errors": own}) for arm, own in zip(data.arms, errors, strict=True))
    data = with_intervals(
        data.model_copy(update={"arms": arms}),
        {
            ("distilled", "plain"): (0.021, 0.083),
            ("distilled", "control"): (0.009, 0.071),
            ("built-in", "plain"): (-0.004, 0.061),
            ("built-in", "control"): (-0.011, 0.048),
            ("control", "plain"): (-0.017, 0.039),
        },
    )
    for seed in range(3):
        write_log(directory / f"distilled/seed{seed}", seed)
    write_benchmark(directory, data)
    return directory


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A complete run directory of `train`."""
    directory = tmp_path / "run"
    write_log(directory, 0)
    teacher = "teacher: {family: ultralytics, weights: /runs/big/student.pt}\n"
    (directory / "config.yaml").write_text(
        f"data: /d/bccd.yaml\nimage_size: 256\nstudent: {{model: <yolov8n>}}\n{teacher}"
    )
    (directory / "fit.json").write_text(json.dumps({"split": "test"}))
    (directory / "teacher.json").write_text(json.dumps({"teacher": {"split": "val", **make_metrics(0.61).to_json()}}))
    (directory / "environment.json").write_text(json.dumps({"versions": {"torch": "2.15"}, "seed": 0}))
    (directory / "metrics.json").write_text(json.dumps(make_metrics(0.46).to_json()))
    return directory


def write_log(directory: Path, seed: int) -> None:
    """`metrics.jsonl` of a run of 325 steps with two distillation terms."""
    directory.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(5, 326, 5):
        decay = float(np.exp(-step / 150))
        lines.append(
            {
                "step": step,
                "epoch": step // 13,
                "split": "train",
                "lr": 0.01,
                "images_per_second": 43.0,
                "loss/total": 9 * decay + 3 + seed / 10,
                "loss/task/box": 3 * decay + 1,
                "loss/task/class": 4 * decay + 0.5,
                "loss/kd/class_qfl": 2 * decay + 0.5,
                "loss/kd/box_iou": 0.8 * decay + 0.2,
                "share/class_qfl": 0.6 - 0.2 * decay,
                "share/box_iou": 0.3,
            }
        )
        if step in STEPS:
            ap = 0.46 * (step / 325) ** 0.5
            lines.append({"step": step, "epoch": step // 13, "split": "val", "AP": ap, "AP50": ap + 0.2})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)


def _example(directory: Path, number: int) -> Example:
    rng = np.random.default_rng(number)
    image = np.full((240, 320, 3), 225, np.uint8)
    image = (image - rng.integers(0, 25, image.shape)).astype(np.uint8)
    boxes: list[tuple[float, float, float, float]] = []
    for column in range(4):
        centre = (45 + 75 * column, int(rng.integers(50, 190)))
        cv2.circle(image, centre, 26, (150, 90, 160), -1)
        boxes.append((centre[0] - 26, centre[1] - 26, centre[0] + 26, centre[1] + 26))
    name = f"examples/{number}.jpg"
    cv2.imwrite(str(directory / name), image)
    detected = tuple(DetectedBox(box_xyxy=box, score=0.9 - 0.1 * i, label=i % 3) for i, box in enumerate(boxes))
    wrong = DetectedBox(box_xyxy=(5.0, 200.0, 60.0, 235.0), score=0.4, label=1)
    return Example(
        image=name,
        file_name=f"BloodImage_{number}.jpg",
        ground_truth=tuple(GroundTruthBox(box_xyxy=box, label=i % 3) for i, box in enumerate(boxes)),
        detections={"teacher": detected, "plain": (*detected[:2], wrong), "distilled": detected[:3]},
        difference=2.0,
    )
