"""Small data sets made on the spot, and the folder of real ones where it is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_vision.data.descriptor import DataDescriptor, load_descriptor
from kd_vision.data.records import DetectionData, ImageRecord

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
DATASETS = Path(__file__).parents[2] / "datasets"


def noise(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DataDescriptor]:
    """Open a descriptor of `datasets/` on the real files."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED}")
    monkeypatch.setenv("KDV_DATA", str(SHARED.resolve()))
    return lambda name: load_descriptor(DATASETS / f"{name}.yaml")


class CocoSet:
    """A COCO set on disk whose parts a test may spoil before it is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.descriptor: dict[str, Any] = {"format": "coco", "root": ".", "splits": {}}
        self.files: dict[str, dict[str, Any]] = {}

    def add(self, split: str, names: list[str], boxes: list[dict[str, Any]], first_seed: int) -> None:
        folder = self.root / split
        folder.mkdir(parents=True)
        for number, name in enumerate(names):
            Image.fromarray(noise(first_seed + number)).save(folder / name)
        images = [
            {"id": number, "file_name": name, "width": 64, "height": 48} for number, name in enumerate(names, start=1)
        ]
        self.files[split] = {
            "info": {},
            "images": images,
            "annotations": boxes,
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        }
        self.descriptor["splits"][split] = {"images": split, "annotations": f"{split}.json"}

    def write(self) -> DataDescriptor:
        for split, content in self.files.items():
            (self.root / f"{split}.json").write_text(json.dumps(content, indent=1))
        path = self.root / "data.yaml"
        path.write_text(json.dumps(self.descriptor))
        return load_descriptor(path)


@pytest.fixture
def coco_set(tmp_path: Path) -> CocoSet:
    """train (2 images) and val (1 image), classes cat (3) and dog (7), one crowd."""
    made = CocoSet(tmp_path / "set")
    made.add(
        "train",
        ["a.png", "b.png"],
        [
            {
                "id": 11,
                "image_id": 1,
                "category_id": 7,
                "bbox": [1.25, 2.5, 10.1, 20.2],
                "area": 99.5,
                "iscrowd": 0,
            },
            {"id": 12, "image_id": 1, "category_id": 3, "bbox": [30, 4, 20, 8], "area": 160, "iscrowd": 0},
            {"id": 13, "image_id": 2, "category_id": 3, "bbox": [0, 0, 64, 48], "area": 3072, "iscrowd": 1},
            {"id": 14, "image_id": 2, "category_id": 7, "bbox": [8, 8, 16, 12], "area": 192, "iscrowd": 0},
        ],
        first_seed=0,
    )
    made.add(
        "val",
        ["c.png"],
        [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0}],
        first_seed=10,
    )
    return made


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[[list[tuple[int, int]]], DetectionData]:
    """Make noise images of the sizes (width, height); image i (from 1) has one box, label i % 2."""
    return lambda sizes: _data_of(tmp_path / f"images{len(sizes)}", sizes)


def _data_of(folder: Path, sizes: list[tuple[int, int]]) -> DetectionData:
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (width, height) in enumerate(sizes, start=1):
        path = folder / f"{number:03}.png"
        Image.fromarray(noise(number, width, height)).save(path)
        boxes = np.array([[width * 0.25, height * 0.25, width * 0.75, height * 0.75]], np.float32)
        records.append(
            ImageRecord(
                image_id=number,
                path=path,
                width=width,
                height=height,
                boxes_xyxy=boxes,
                labels=np.array([number % 2]),
                crowd=np.array([False]),
                areas=np.array([width * height / 4.0]),
                file_name=path.name,
            )
        )
    return DetectionData("train", ("even", "odd"), (1, 2), tuple(records))
