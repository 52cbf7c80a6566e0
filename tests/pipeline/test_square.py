"""Any teacher teaches any student: two epochs on 32 real images, every term goes down, it evaluates and exports.

The whole square runs in `make stress`, its diagonal and one black box per student in `make test`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import kd_vision
from kd_vision.config.load import load_config
from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_json
from kd_vision.core.run_directory import RunDirectory
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.detectors import family_config, family_module
from kd_vision.detectors.base import Detector
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.export.parity import ParityInputs, ParityLimits
from kd_vision.pipeline import export as export_module
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.evaluate import evaluate
from kd_vision.pipeline.export import run_export

SIZE = 96
CLASSES = ("RBC", "WBC", "Platelets")
TINY_RTDETR = Path(__file__).parents[1] / "data" / "rtdetr-tiny.yaml"
STUDENTS = {
    "dense": {"family": "ultralytics", "model": "yolov8n"},
    "end_to_end": {"family": "ultralytics", "model": "yolo26n"},
    "rtdetr": {"family": "ultralytics", "model": str(TINY_RTDETR)},
    "one_stage": {"family": "torchvision", "model": "fcos_resnet18_fpn"},
    "two_stage": {"family": "torchvision", "model": "fasterrcnn_mobilenet_v3_large_320_fpn"},
}
TEACHERS = (*STUDENTS, "onnx", "json")
ONE_BLACK_BOX = {"dense": "json", "end_to_end": "onnx", "rtdetr": "json", "one_stage": "onnx", "two_stage": "json"}
# Terms by channel. Each is trained alone: what an untrained teacher says on one channel contradicts the others.
TERMS: dict[str, list[dict[str, Any]]] = {
    "detections": [
        {"loss": "soft_boxes", "score_threshold": 0.1, "ignore_threshold": 0.05}
    ],  # untrained teachers are not sure
    "features": [{"loss": "feature_pkd"}],
    "grid": [{"loss": "class_bce"}, {"loss": "box_iou"}],
    # An untrained teacher mends a mended box again, so that overlap never comes to rest; see SCHOOLED.
    "regions": [{"loss": "region_feedback", "box_gain": 0.0}],
}
SCHOOLED = "schooled"
"""A teacher that knows the cells; its terms have the settings that users get."""
AWAKE = ("cls_logits.bias", "enc_score_head.bias", "dec_score_head")
# Where all boxes are about as sure, many tie at the threshold of NMS, and the file may keep another one.
HARDLY_TRAINED = ParityLimits(confident_matched_share=0.99, pixels_p99=1.0)

WITHOUT_GRID = {"rtdetr", "two_stage"}
EXACT_FIT = ("features", "rtdetr", "two_stage")
"""Maps of nine pixels: the adapter's first fit is exact, so that the term starts at 0 and cannot fall."""


def pairs() -> list[Any]:
    """Every pair and channel that can be trained; what `make test` leaves out is marked."""
    cases = []
    for channel in TERMS:
        for teacher in (*TEACHERS, SCHOOLED):
            for student in STUDENTS:
                if channel != "detections" and teacher in ("onnx", "json"):
                    continue
                if (channel, teacher, student) == EXACT_FIT or refused(channel, teacher, student):
                    continue
                boxes = channel == "detections" and teacher in (student, ONE_BLACK_BOX[student])
                always = boxes or teacher == student == "dense"
                marks = [] if always else [pytest.mark.stress]
                cases.append(pytest.param(channel, teacher, student, marks=marks))
    return cases


def refused(channel: str, teacher: str, student: str) -> bool:
    """True where a head has no grid to compare."""
    return channel == "grid" and bool(WITHOUT_GRID & {teacher, student})


def refused_pairs() -> list[Any]:
    """Every pair that is refused; of those that `make test` leaves out the reasons are the same."""
    return [
        pytest.param(teacher, student, marks=[] if teacher == student else [pytest.mark.stress])
        for teacher in STUDENTS
        for student in STUDENTS
        if refused("grid", teacher, student)
    ]


@pytest.fixture(scope="module")
def cells(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Descriptor of 32 training and 8 validation images of the real blood cells."""
    folder = tmp_path_factory.mktemp("cells")
    for split, count in (("train", 32), ("val", 8)):
        content = json.loads((shared / "data/bccd/annotations" / f"{split}.json").read_text())
        content["images"] = content["images"][:count]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        write_json(folder / f"{split}.json", content)
    descriptor = folder / "cells.yaml"
    lines = [f"  {s}: {{images: images, annotations: {folder / s}.json}}" for s in ("train", "val")]
    text = f"format: coco\nroot: {shared / 'data/bccd'}\nclasses: [{', '.join(CLASSES)}]\nsplits:\n"
    descriptor.write_text(text + "\n".join(lines) + "\n")
    return descriptor


@pytest.fixture(scope="module")
def teacher_of(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Return a function that gives the config of a teacher of a kind; its file is made once."""
    folder = tmp_path_factory.mktemp("teachers")

    def made(kind: str) -> dict[str, Any]:
        if kind == "onnx":
            path = folder / "teacher.onnx"
            if not path.is_file():
                _awake(STUDENTS["dense"], seed=5).save(folder / "for_onnx.pt", {})  # no two of its boxes tie
                run_export(folder / "for_onnx.pt", path, image_size=SIZE, with_latency=False)
            return {"family": "onnx", "weights": str(path)}
        if kind == "json":
            return {"family": "predictions", "weights": str(_results(cells, folder / "results.json"))}
        if kind == SCHOOLED:
            if not (folder / SCHOOLED).is_dir():
                _school(cells, folder)
            return {"family": "ultralytics", "weights": str(folder / SCHOOLED / "student.pt")}
        path = folder / f"{kind}.pt"
        if not path.is_file():
            _awake(STUDENTS[kind], seed=3).save(path, {})
        return {"family": STUDENTS[kind]["family"], "weights": str(path)}

    return made


def _results(cells: Path, path: Path) -> Path:
    """Write what a person who saw every cell, but was not sure, would have said."""
    truth = load_split(load_descriptor(cells), "train")
    boxes = [
        {"image_id": image.image_id, "category_id": truth.category_ids[label], "bbox": box.tolist(), "score": 0.8}
        for image in truth.images
        for box, label in zip(image.boxes_xywh, image.labels.tolist(), strict=True)
    ]
    write_json(path, boxes)
    return path


def _school(cells: Path, folder: Path) -> None:
    """Train a dense detector on the cells, to about 0.2 AP; half a minute."""
    content = {
        "data": str(cells),
        "image_size": SIZE,
        "student": STUDENTS["dense"],
        "train": {"epochs": 25, "batch_size": 4, "workers": 0, "validate_every": 0, "keep": "last"},
        "augment": {"mosaic": 0.0, "degrade": 0.0},
    }
    write_json(folder / "school.json", content)
    kd_vision.train(folder / "school.json", folder / SCHOOLED)


def _awake(student: dict[str, Any], seed: int, bias: float = -1.0, background: float = 0.0) -> Detector:
    """An untrained detector that is not silent. From silence, an assigner's targets grow before a loss can fall.

    Args:
        student: its config.
        seed: of the weights.
        bias: of every class, where each has a sigmoid.
        background: bias of no object, where it shares a softmax with the classes.
    """
    torch.manual_seed(seed)
    config = family_config(student["family"], "student")(**student)
    detector: Detector = family_module(student["family"], "student").build(config, CLASSES, "student").train()
    if hasattr(getattr(detector, "head", None), "cv3"):
        for branch in (detector.head.cv3, getattr(detector.head, "one2one_cv3", None) or ()):
            for level in branch:
                level[-1].bias.data.fill_(bias)
    for name, parameter in detector.named_parameters():
        if name.endswith("bias") and any(part in name for part in AWAKE):
            parameter.data.fill_(bias)
        if name.endswith("cls_score.bias"):
            parameter.data[0] = background
    with torch.no_grad():
        for _ in range(20):  # the statistics of BatchNorm
            detector(torch.rand(4, 3, SIZE, SIZE))
    return detector.eval()


def _pupil(student: str, folder: Path, background: float = 0.0) -> dict[str, Any]:
    """Save an untrained student and return its config."""
    bias = -3.0 if student == "end_to_end" else -1.0  # without NMS, the boxes of a livelier head tie in a file
    _awake(STUDENTS[student], seed=9, bias=bias, background=background).save(folder / "start.pt", {})
    return {"family": STUDENTS[student]["family"], "weights": str(folder / "start.pt")}


def _config(
    folder: Path, cells: Path, teacher: dict[str, Any], student: dict[str, Any], terms: list[dict[str, Any]]
) -> Path:
    """Without the labels, which untrained teachers contradict, and without augmentation: epochs can be compared."""
    content = {
        "data": str(cells),
        "image_size": SIZE,
        "teacher": teacher,
        "student": student,
        "distill": terms,
        "allow_weak_teacher": True,
        "train": {"label_fraction": 0.0, "epochs": 2, "batch_size": 4, "workers": 0, "lr": 0.0005,
                  "warmup_epochs": 0.5, "log_every": 1,
                  "validate_every": 0, "keep": "last", "ema_ramp": 4},
        "augment": {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "horizontal_flip": 0.0, "degrade": 0.0,
                    "hsv": {"hue": 0.0, "saturation": 0.0, "value": 0.0}},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("channel", "teacher", "student"), pairs())
def test_a_teacher_teaches_a_student(
    channel: str,
    teacher: str,
    student: str,
    cells: Path,
    teacher_of: Callable[[str], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The branches of an end-to-end head would change weight from one epoch to the other.
    monkeypatch.setattr(UltralyticsDetector, "set_progress", lambda self, done: None)
    monkeypatch.setattr(export_module, "ParityInputs", partial(ParityInputs, limits=HARDLY_TRAINED))
    terms = TERMS[channel]
    if teacher == SCHOOLED:
        terms = [{"loss": term["loss"]} for term in terms]
    # Two untrained softmax heads say much the same of a region, so the student starts with another opinion.
    pupil = _pupil(student, tmp_path, background=2.0 if channel == "regions" else 0.0)
    config = _config(tmp_path, cells, teacher_of(teacher), pupil, terms)

    result = kd_vision.train(config, tmp_path / "run")

    losses = _losses(tmp_path / "run", [term["loss"] for term in terms])
    for term, values in losses.items():
        early, late = sum(values[:8]) / 8, sum(values[8:]) / 8
        assert late < early, f"{term}: {early:.4f} in the first epoch, {late:.4f} in the second"
    if channel == "detections":
        _measure_and_export(result.student, cells, tmp_path / "student.onnx")


def _losses(run: Path, terms: list[str]) -> dict[str, list[float]]:
    rows = [row for row in RunDirectory(run).read_log() if row.get("split") == "train"]
    assert len(rows) == 16
    return {term: [row[f"loss/kd/{term}"] for row in rows] for term in terms}


@pytest.mark.stress
def test_a_term_whose_adapter_fits_exactly_starts_at_nothing(
    cells: Path, teacher_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    channel, teacher, student = EXACT_FIT
    config = _config(tmp_path, cells, teacher_of(teacher), _pupil(student, tmp_path), TERMS[channel])
    kd_vision.train(config, tmp_path / "run")
    (values,) = _losses(tmp_path / "run", ["feature_pkd"]).values()
    assert values[0] == pytest.approx(0, abs=1e-4)
    # The student's first steps leave the teacher; from there the term leads it back.
    assert values[-1] < max(values) < 1


@pytest.mark.parametrize(("teacher", "student"), refused_pairs())
def test_heads_without_a_grid_are_refused_where_grids_are_compared(
    teacher: str, student: str, cells: Path, teacher_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    config = load_config(_config(tmp_path, cells, teacher_of(teacher), _pupil(student, tmp_path), TERMS["grid"]))
    with pytest.raises(RequestError) as caught:
        build_parts(config, RunData(config.data))
    *reasons, fitting = caught.value.problems
    sides = {"teacher": teacher, "student": student}
    lacking = [side for side, head in sides.items() if head in WITHOUT_GRID]
    for position, term in enumerate(TERMS["grid"]):
        of_term = [line for line in reasons if f"distill.{position} ({term['loss']}): " in line]
        assert len(of_term) == len(lacking)
        assert all("does not provide" in line for line in of_term)
        assert all(any(f"the {side} " in line for line in of_term) for side in lacking)
    assert "losses that fit" in fitting
    assert "soft_boxes" in fitting


def _measure_and_export(student: Path, cells: Path, out: Path) -> None:
    measured = evaluate(student, cells)
    assert measured.metrics.n_images == 8
    exported = run_export(student, out, cells, image_size=SIZE, with_latency=False)
    again = evaluate(exported.path, cells, image_size=SIZE)
    assert again.metrics.ap == pytest.approx(measured.metrics.ap, abs=0.01)
