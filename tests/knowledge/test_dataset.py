from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.label_map import build_label_map
from kd_vision.core.predictions import Detections
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.records import DetectionData
from kd_vision.knowledge.dataset import PseudoLabelThresholds, write_dataset
from kd_vision.knowledge.store import Store

Make = Callable[[int], DetectionData]
OURS = ("person", "vehicle")


@pytest.fixture
def told(kit: Any, tmp_path: Path, images: Make) -> tuple[Store, DetectionData]:
    """Two images; boxes of the first: car .75, bus .625 (ignored), person .5, van .375, car .125."""
    boxes = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 15], [30, 0, 40, 10], [0, 20, 8, 30]], np.float32)
    said = Detections(boxes, np.array([0.75, 0.625, 0.5, 0.375, 0.125], np.float32), np.array([0, 2, 3, 1, 0]))
    data = images(2)
    store = kit.finish(kit.begin(tmp_path / "store", data), [said, Detections.empty()])
    return store, replace(data, classes=OURS, category_ids=(7, 9))


def written(
    told: tuple[Store, DetectionData],
    out: Path,
    sureness: PseudoLabelThresholds,
    others: tuple[DetectionData, ...] = (),
) -> Any:
    store, data = told
    given = {"car": "vehicle", "van": "vehicle", "bus": "ignore", "dog": "drop"}
    labels = build_label_map(store.classes, OURS, given, "labels")
    return write_dataset(store, data, labels, others, out, sureness)


def test_sure_boxes_become_labels_of_the_datas_classes(told: tuple[Store, DetectionData], tmp_path: Path) -> None:
    made = written(told, tmp_path / "set", PseudoLabelThresholds(0.5))
    assert (made.images, made.labels, made.ignored) == (2, 2, 1)
    train = load_split(load_descriptor(made.descriptor), "train")
    assert (train.classes, train.category_ids) == (OURS, (7, 9))
    assert [image.path for image in train.images] == [image.path for image in told[1].images]
    image = train.images[0]
    kept = ~image.crowd
    assert image.labels[kept].tolist() == [1, 0]
    np.testing.assert_allclose(image.boxes_xyxy[kept], [[0, 0, 10, 10], [20, 0, 30, 15]], atol=0.01)
    np.testing.assert_allclose(image.areas[kept], [100, 150], atol=0.2)
    np.testing.assert_allclose(image.boxes_xyxy[image.crowd], [[10, 0, 20, 10]], atol=0.01)
    assert len(train.images[1].labels) == 0
    assert not (tmp_path / "set" / "images").exists()


def test_doubtful_and_ignored_boxes_become_crowds_where_they_are_kept(
    told: tuple[Store, DetectionData], tmp_path: Path
) -> None:
    made = written(told, tmp_path / "set", PseudoLabelThresholds(0.5, 0.2, keep_ignored=True))
    assert (made.labels, made.ignored) == (2, 2)
    image = load_split(load_descriptor(made.descriptor), "train").images[0]
    found = sorted(zip(image.boxes_xyxy[:, 0].round().tolist(), image.crowd.tolist(), strict=True))
    assert found == [(0, False), (10, True), (20, False), (30, True)]


def test_splits_with_truth_go_along_but_for_the_one_replaced(told: tuple[Store, DetectionData], tmp_path: Path) -> None:
    truth = replace(
        told[1].images[1],
        boxes_xyxy=np.array([[1, 2, 4, 6]], np.float32), labels=np.array([1]), crowd=np.array([False]),
        areas=np.array([12.0]), labelled=True,
    )  # fmt: skip
    val = replace(told[1], name="val", images=(truth,))
    made = written(told, tmp_path / "set", PseudoLabelThresholds(), (replace(val, name="train"), val))
    descriptor = load_descriptor(made.descriptor)
    assert set(descriptor.splits) == {"train", "val"}
    assert load_split(descriptor, "val").images[0].boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    assert len(load_split(descriptor, "train")) == 2


def test_wrong_requests_leave_nothing(told: tuple[Store, DetectionData], tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        written(told, tmp_path / "set", PseudoLabelThresholds(0.01, 0.5, keep_ignored=True))
    assert caught.value.problems == (
        "--min-score: 0.01 does not fit the store, whose scores are 0.05 to 1",
        "--ignore-score: 0.5 must be at least 0.05, the lowest score of the store, and less than --min-score 0.01",
    )
    assert not (tmp_path / "set").exists()
    with pytest.raises(RequestError, match="store: exists and is not an empty folder; give another --as-dataset"):
        written(told, tmp_path / "store", PseudoLabelThresholds())


def test_a_split_without_images_is_refused(told: tuple[Store, DetectionData], tmp_path: Path) -> None:
    empty = replace(told[1], name="val", images=())
    with pytest.raises(RequestError) as caught:
        written(told, tmp_path / "set", PseudoLabelThresholds(), (empty,))
    assert str(caught.value) == "split 'val' has no images; a data set needs some in every split"
    assert not (tmp_path / "set").exists()
