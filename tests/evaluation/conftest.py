"""A small data set with crowd boxes, gaps in category ids and all sizes, and detections made from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_vision.core.predictions import Detections
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.records import DetectionData, ImageRecord

REAL_DATA = Path(os.environ.get("KDV_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


def record(image_id: int, boxes: Any, labels: Any, crowd: Any = None, labelled: bool = True) -> ImageRecord:
    """One image of 400 x 300 with boxes given as corners."""
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    sides = (corners[:, 2:] - corners[:, :2]).astype(np.float64)
    return ImageRecord(
        image_id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=400,
        height=300,
        boxes_xyxy=corners,
        labels=np.asarray(labels, np.int64),
        crowd=np.zeros(len(corners), np.bool_) if crowd is None else np.asarray(crowd, np.bool_),
        areas=sides[:, 0] * sides[:, 1],
        labelled=labelled,
        file_name=f"{image_id}.jpg",
    )


def detections(boxes: Any, scores: Any, labels: Any) -> Detections:
    """Detections from lists."""
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray(labels, np.int64),
    )


@pytest.fixture
def make_record() -> Callable[..., ImageRecord]:
    """Gives `record`."""
    return record


@pytest.fixture
def make_detections() -> Callable[..., Detections]:
    """Gives `detections`."""
    return detections


@pytest.fixture
def disturb() -> Callable[..., dict[int, Detections]]:
    """Gives `disturbed`."""
    return disturbed


@pytest.fixture
def scene() -> DetectionData:
    """Three images, two classes with the category ids 3 and 17, one crowd region."""
    return DetectionData(
        "val",
        ("car", "bus"),
        (3, 17),
        (
            record(10, [[10, 10, 60, 60], [100, 100, 300, 220]], [0, 1]),
            record(11, [[5, 5, 25, 25], [50, 50, 250, 250]], [0, 0], crowd=[False, True]),
            record(12, [], []),
        ),
    )


@pytest.fixture(scope="session")
def coco_tiny() -> DetectionData:
    """All 38 real images of COCO with their crowd boxes (ground truth only, no pixels are read)."""
    folder = REAL_DATA / "coco_tiny" / "annotations"
    if not folder.is_dir():
        pytest.skip(f"the real data {folder} is not there")
    images: list[ImageRecord] = []
    category_ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        category_ids = tuple(entry["id"] for entry in content["categories"])
        names = tuple(entry["name"] for entry in content["categories"])
        images += [_real(entry, content["annotations"], category_ids) for entry in content["images"]]
    return DetectionData("coco_tiny", names, category_ids, tuple(images))


@pytest.fixture
def bccd_test(monkeypatch: pytest.MonkeyPatch) -> DetectionData:
    """The 72 test images of bccd."""
    if not (REAL_DATA / "bccd").is_dir():
        pytest.skip(f"the real data {REAL_DATA / 'bccd'} is not there")
    monkeypatch.setenv("KDV_DATA", str(REAL_DATA))
    return load_split(load_descriptor(Path(__file__).parents[2] / "datasets" / "bccd.yaml"), "test")


def _real(image: dict[str, Any], annotations: list[dict[str, Any]], ids: tuple[int, ...]) -> ImageRecord:
    own = [entry for entry in annotations if entry["image_id"] == image["id"]]
    xywh = np.array([entry["bbox"] for entry in own], np.float64).reshape(-1, 4)
    return ImageRecord(
        image_id=image["id"],
        path=Path(image["file_name"]),
        width=image["width"],
        height=image["height"],
        boxes_xyxy=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1).astype(np.float32),
        labels=np.array([ids.index(entry["category_id"]) for entry in own], np.int64),
        crowd=np.array([entry["iscrowd"] for entry in own], np.bool_),
        areas=np.array([entry["area"] for entry in own], np.float64),
        source_xywh=xywh,
    )


def disturbed(data: DetectionData, seed: int = 0) -> dict[int, Detections]:
    """Boxes near the truth with noise, wrong labels, doubles and boxes in crowds; the last image has none."""
    rng = np.random.default_rng(seed)
    found = {}
    for image in data.images[: len(data.images) - 1]:
        boxes = np.repeat(image.boxes_xyxy, 2, axis=0)
        boxes = boxes + rng.normal(0, 4, boxes.shape).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.repeat(image.labels, 2)
        wrong = rng.random(len(labels)) < 0.2
        labels = np.where(wrong, rng.integers(0, len(data.classes), len(labels)), labels)
        found[image.image_id] = detections(boxes, rng.random(len(boxes)), labels)
    return found
