"""A tiny data set and tiny runs that many tests share. Everything is made here; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings

from kd_vision.core.strict_yaml import parse_scalar
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.detectors.ultralytics.family import build

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
torch.set_num_threads(1)  # tiny networks: threads cost more than they give, and tests run side by side

SHARED = Path(__file__).resolve().parents[2] / "shared"
SIZE = 64
COLOURS = ((220, 40, 40), (40, 40, 220))
SQUARES = {"train": 12, "val": 6, "free": 8}
"""Images by folder."""


def make_split(folder: Path, name: str, count: int, seed: int) -> None:
    """Write `count` images with one or two coloured squares each, and their COCO file."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for index in range(count):
        image = rng.integers(90, 130, (SIZE, SIZE, 3), dtype=np.uint8)
        for _ in range(int(rng.integers(1, 3))):
            label = int(rng.integers(0, 2))
            side = int(rng.integers(14, 26))
            left, top = (int(v) for v in rng.integers(0, SIZE - side, 2))
            image[top : top + side, left : left + side] = COLOURS[label]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label + 1,
                 "bbox": [left, top, side, side], "area": side * side, "iscrowd": 0}
            )  # fmt: skip
        cv2.imwrite(str(folder / name / f"{index}.png"), image[..., ::-1])
        images.append({"id": index + 1, "file_name": f"{index}.png", "width": SIZE, "height": SIZE})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))


def make_squares(folder: Path) -> Path:
    """Write the images of `SQUARES` and return their descriptor."""
    for seed, (name, count) in enumerate(SQUARES.items()):
        make_split(folder, name, count, seed)
    descriptor = folder / "squares.yaml"
    descriptor.write_text(
        "format: coco\nroot: .\nsplits:\n"
        "  train: {images: train, annotations: annotations/train.json}\n"
        "  val: {images: val, annotations: annotations/val.json}\n"
        "unlabelled: free\nclasses: [red, blue]\n"
    )
    return descriptor


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Descriptor of a data set of coloured squares: train 12, val 6, unlabelled 8 images of 64 px."""
    return make_squares(tmp_path_factory.mktemp("squares"))


def awake(name: str, classes: tuple[str, ...], seed: int) -> UltralyticsDetector:
    """An untrained detector that is not silent: statistics set by one pass, class biases lifted."""
    torch.manual_seed(seed)
    detector = build(UltralyticsConfig(model=name), classes, "model").train()
    for norm in detector.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None
    for branch in (detector.head.cv3, getattr(detector.head, "one2one_cv3", None) or ()):
        for level in branch:
            level[-1].bias.data.fill_(-1.0)
    with torch.no_grad():
        detector(torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)))
    for norm in detector.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 0.03
    return detector.eval()


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has much to say and knows nothing: what it teaches is beside the point here."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    awake("yolov8n", ("red", "blue"), seed=1).save(path, {})
    return path


@pytest.fixture(scope="session")
def awake_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves an awake detector of a given architecture, for the squares by default."""

    def save(name: str, classes: tuple[str, ...] = ("red", "blue")) -> Path:
        path = tmp_path_factory.mktemp("awake") / f"{name}.pt"
        awake(name, classes, seed=2).save(path, {})
        return path

    return save


@pytest.fixture
def write_config(tmp_path: Path, squares: Path, teacher_file: Path) -> Callable[..., Path]:
    """Return a function that writes a small distillation config; keyword `text` adds lines."""

    def write(teacher: bool = True, distill: str = "[{loss: class_qfl}, {loss: box_iou}]", train: str = "") -> Path:
        lines = [f"data: {squares}", "image_size: 64", "student: {model: yolov8n}"]
        if teacher:
            lines += [f"teacher: {{weights: {teacher_file}}}", f"distill: {distill}"]
            lines += ["allow_weak_teacher: true"]
        settings = {
            "epochs": 2,
            "batch_size": 4,
            "workers": 0,
            "validate_every": 0,
            "keep": "last",
            "log_every": 1,
        }
        settings |= parse_scalar(f"{{{train}}}")
        lines += [f"train: {json.dumps(settings)}", "augment: {close_mosaic: 0}"]
        path = tmp_path / "config.yaml"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the repository; skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared, which is not part of the product")
    return SHARED
