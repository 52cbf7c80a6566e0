"""Negative controls: a teacher with shuffled classes or shifted boxes is refused, and never shown to help.

The predictions are the labels, spoiled: whatever else a teacher may lack is not what makes the gate refuse these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_vision.cli.main import main
from kd_vision.config.load import load_config
from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import GateError
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.pipeline.benchmark import benchmark
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.check import check, exit_code
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.teacher_gate import measure_teachers, refuse_weak_teacher
from kd_vision.pipeline.train import train
from kd_vision.report.verdict import judge_benchmark
from kd_vision.teachers.frozen import FrozenTeacher

Entry = dict[str, Any]
Spoil = Callable[[Entry], list[Entry]]
Write = Callable[[Spoil], Path]


def sound(entry: Entry) -> list[Entry]:
    return [entry]


def shuffled(entry: Entry) -> list[Entry]:
    """Red and blue are exchanged."""
    return [{**entry, "category_id": 3 - entry["category_id"]}]


def mostly_shuffled(entry: Entry) -> list[Entry]:
    """The right class too, with a lower score: an AP far above that of an untrained student."""
    return [{**entry, "category_id": 3 - entry["category_id"]}, {**entry, "score": 0.3}]


def shifted(entry: Entry) -> list[Entry]:
    """Eight pixels to the right, four down; the squares are 14 to 25 px wide."""
    left, top, width, height = entry["bbox"]
    return [{**entry, "bbox": [left + 8, top + 4, width, height]}]


def slightly_shifted(entry: Entry) -> list[Entry]:
    """Five pixels to the right, three down: the larger squares still overlap by half."""
    left, top, width, height = entry["bbox"]
    return [{**entry, "bbox": [left + 5, top + 3, width, height]}]


@pytest.fixture
def taught(write_config: Callable[..., Path], squares: Path, tmp_path: Path) -> Write:
    """Return a function that writes a config whose teacher says the labels of the training split, spoiled."""

    def write(spoil: Spoil) -> Path:
        truth = load_split(load_descriptor(squares), "train")
        entries = [
            spoiled
            for image in truth.images
            for box, label in zip(image.boxes_xywh.tolist(), image.labels.tolist(), strict=True)
            for spoiled in spoil(
                {"image_id": image.image_id, "category_id": truth.category_ids[label], "bbox": box, "score": 0.9}
            )
        ]
        results = tmp_path / "results.json"
        results.write_text(json.dumps(entries))
        path = write_config(teacher=False)
        teacher = f"teacher: {{family: predictions, weights: {results}}}\ndistill: [{{loss: soft_boxes}}]\n"
        path.write_text(path.read_text() + teacher)
        return path

    return write


def gates(path: Path, overrides: Sequence[str] = ()) -> tuple[int, list[str]]:
    findings = check(load_config(path, overrides))
    return exit_code(findings), [finding.text for finding in findings if finding.state == "gate"]


def test_the_labels_themselves_pass(taught: Write) -> None:
    assert gates(taught(sound)) == (0, [])


def test_shuffled_classes_and_shifted_boxes_are_refused_with_exit_3(
    taught: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(taught(shuffled))]) == 3
    said = capsys.readouterr().out
    assert "AP 0.0 on 'train' is not better than the untrained student's" in said
    assert (
        "classes look permuted: 100 % of its boxes on 'red' are 'blue', 100 % of its boxes on 'blue' are 'red'" in said
    )
    assert "give it the right classes and boxes, or set allow_weak_teacher: true" in said
    code, (gate,) = gates(taught(shifted))
    assert code == 3
    assert "boxes look shifted by +8 px across and +4 px down (medians): " in gate


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(mostly_shuffled, "classes look permuted"), (slightly_shifted, "boxes look shifted by +5 px")],
)
def test_an_ap_above_the_untrained_students_does_not_let_them_pass(
    spoil: Spoil, message: str, taught: Write, tmp_path: Path
) -> None:
    path = taught(spoil)
    code, (gate,) = gates(path)
    assert code == 3
    assert "is not better than" not in gate
    assert message in gate
    with pytest.raises(GateError, match=message.replace("+", r"\+")):
        train(path, tmp_path / "run")
    assert not (tmp_path / "run" / "student.pt").exists()


def test_an_online_teacher_is_compared_with_the_labels_too(write_config: Callable[..., Path]) -> None:
    """A detector that finds every square, and has the order of the classes wrong."""
    config = load_config(write_config(), ["allow_weak_teacher=false"])
    data = RunData(config.data)
    truth, parts = data.split("train"), build_parts(config, data)
    labels = {image.image_id: image for image in truth.images}

    class WrongOrder(FrozenTeacher):
        def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
            images = [labels[image_id] for image_id in batch.image_ids]
            scores = [np.full(len(one.labels), 0.9, np.float32) for one in images]
            return [Detections(one.boxes_xyxy, sure, 1 - one.labels) for one, sure in zip(images, scores, strict=True)]

    ((name, teacher),) = parts.teachers.items()
    assert isinstance(teacher, FrozenTeacher)
    wrong = type(parts)(parts.student, {name: WrongOrder(teacher.source)}, parts.distiller)
    (score,) = measure_teachers(config, wrong, truth, data.training(config)[0])
    with pytest.raises(GateError, match=r"classes look permuted: 100 % of its boxes on 'red' are 'blue'"):
        refuse_weak_teacher(config, score)


def test_a_user_can_force_such_a_teacher_and_is_told(taught: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert gates(taught(shuffled), ["allow_weak_teacher=true"]) == (0, [])
    assert any("teacher: classes look permuted: " in line for line in caplog.messages)


@pytest.mark.stress
@pytest.mark.parametrize("spoil", [shuffled, shifted])
def test_a_forced_one_is_never_shown_to_help(
    spoil: Spoil, taught: Write, awake_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Three seeds of a student that learns something in 60 steps: the verdict is a loss, or no difference."""
    overrides = [
        "allow_weak_teacher=true", "train.epochs=20", "train.batch_size=4", "train.loggers=[]", "train.lr=0.002",
        f"student={{weights: {awake_file('yolov8n')}}}",
    ]  # fmt: skip
    result = benchmark(taught(spoil), [0, 1, 2], tmp_path / "bench", overrides=overrides, with_latency=False)
    assert judge_benchmark(result.data).kind != "gain"
