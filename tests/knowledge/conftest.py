"""Images on disk, and a teacher whose every word is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.knowledge.manifest import Option, TeacherNote
from kd_vision.knowledge.store import Store, read_store
from kd_vision.knowledge.writer import StoreWriter

TEACHER = TeacherNote(fingerprint="f" * 64, description="yolov8s teacher.pt")
OPTIONS: dict[str, Option] = {"score_threshold": 0.05, "top_k": 3}
CLASSES = ("car", "van", "bus", "person", "dog")


def said(seed: int, count: int, width: int, height: int, classes: int = 5) -> Detections:
    """Random boxes within an image, best first, with probabilities of every class."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 0.8, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.02, 0.2, (count, 2))], axis=1)
    probs = rng.dirichlet(np.full(classes, 0.3), count).astype(np.float32)
    scores = np.sort(probs.max(axis=1))[::-1].copy()
    return Detections((boxes * [width, height, width, height]).astype(np.float32), scores, probs.argmax(axis=1), probs)


def record(path: Path, number: int, width: int, height: int, name: str = "") -> ImageRecord:
    return ImageRecord(
        image_id=number,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        areas=np.zeros(0),
        labelled=False,
        file_name=name or path.name,
    )


@pytest.fixture
def images(tmp_path: Path) -> Callable[[int], DetectionData]:
    """Make noise images of 40 x 30 pixels, 000.png and so on."""

    def make(count: int) -> DetectionData:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        records = []
        for number in range(count):
            path = folder / f"{number:03}.png"
            pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(path)
            records.append(record(path, number + 1, 40, 30))
        return DetectionData("unlabelled", CLASSES, (1, 2, 3, 4, 5), tuple(records))

    return make


def begin(folder: Path, data: DetectionData, shard_size: int = 4, **changes: object) -> StoreWriter:
    settings: dict[str, object] = {"teacher": TEACHER, "classes": CLASSES, "options": OPTIONS, **changes}
    return StoreWriter(folder, images=data.images, shard_size=shard_size, **settings)  # type: ignore[arg-type]


def finish(writer: StoreWriter, words: Sequence[Detections]) -> Store:
    """Write all that is missing: the word on each image is its own."""
    for shard in writer.missing:
        span = writer.manifest.span(shard)
        writer.write(shard, words[span.start : span.stop])
    return read_store(writer.folder)


class Kit:
    """Functions and values that the tests of this folder share."""

    CLASSES, OPTIONS, TEACHER = CLASSES, OPTIONS, TEACHER
    said, record = staticmethod(said), staticmethod(record)
    begin, finish = staticmethod(begin), staticmethod(finish)


@pytest.fixture
def kit() -> type[Kit]:
    """See `Kit`."""
    return Kit
