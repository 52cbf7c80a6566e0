"""Precomputed boxes of images, wherever they come from, in the classes of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.core.label_map import LabelMap, build_label_map
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData
from kd_vision.knowledge.config import StoreConfig
from kd_vision.knowledge.store import open_store
from kd_vision.teachers.ground_truth import GroundTruth, GroundTruthConfig, build
from kd_vision.teachers.offline import OfflineTeacher, PrecomputedBoxes
from kd_vision.teachers.options import TeacherOptions
from kd_vision.teachers.predictions_file import read_predictions

Make = Callable[[int], DetectionData]


def word(boxes: list[list[float]], probs: list[list[float]]) -> Detections:
    rows = np.array(probs, np.float32)
    return Detections(np.array(boxes, np.float32), rows.max(axis=1), rows.argmax(axis=1), rows)


def attached(data: DetectionData, source: PrecomputedBoxes, labels: LabelMap | None = None) -> list[Detections]:
    """The boxes of each image that a teacher of this source brings."""
    table = OfflineTeacher("big", source, labels).attach(data).pseudo_labels["big"]
    return [table.detections(index) for index in range(len(table))]


def test_classes_are_the_students_and_merged_boxes_one(kit: Any, tmp_path: Path, images: Make) -> None:
    """Classes car, van, bus, person, dog: a van is a car, buses teach nothing, dogs go."""
    data = images(1)
    said = word(
        [[0, 0, 20, 20], [1, 0, 20, 20], [20, 0, 30, 20], [30, 0, 40, 20], [0, 20, 9, 30]],
        [[0.75, 0.25, 0, 0, 0], [0.25, 0.5, 0, 0, 0], [0, 0.125, 0.5, 0, 0], [0, 0, 0, 0.5, 0], [0, 0, 0, 0, 0.375]],
    )
    store = kit.finish(kit.begin(tmp_path / "store", data), [said])
    ours = ("person", "car", "truck")
    labels = build_label_map(kit.CLASSES, ours, {"van": "car", "bus": "ignore", "dog": "drop"}, "knowledge.labels")
    (found,) = attached(replace(data, classes=ours, category_ids=(1, 2, 3)), store, labels)
    assert found.labels.tolist()[0] == 1
    np.testing.assert_allclose(found.boxes_xyxy[0], [0, 0, 20, 20], atol=0.01)
    # Of the two boxes on one car the surer stays; the bus stays as a place where nothing is learned.
    assert found.scores.tolist() == [0.75, 0.5, 0.5]
    assert found.ignore is not None
    assert sorted(zip(found.boxes_xyxy[:, 0].round().tolist(), found.ignore.tolist())) == [
        (0, False), (20, True), (30, False),
    ]  # fmt: skip
    assert found.class_probs is not None
    assert found.class_probs[0].tolist() == [0, 0.75, 0]
    spec = OfflineTeacher("big", store, labels).spec
    assert (spec.classes, spec.missing_classes, spec.provides) == (ours, {"truck"}, {"detections"})


def test_probabilities_of_an_image_do_not_depend_on_its_neighbours(kit: Any, tmp_path: Path, images: Make) -> None:
    """Of an image without boxes a store holds no probabilities; those of other images stay."""
    data = images(3)
    said = word([[0, 0, 20, 20]], [[0.5, 0.25, 0, 0, 0]])
    store = kit.finish(kit.begin(tmp_path / "store", data), [Detections.empty(), said, Detections.empty()])
    found = attached(data, store)
    assert [len(one) for one in found] == [0, 1, 0]
    assert found[1].class_probs is not None
    assert found[1].class_probs.tolist() == [[0.5, 0.25, 0, 0, 0]]


def test_other_classes_without_a_map_are_refused(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(1)
    store = kit.finish(kit.begin(tmp_path / "store", data), [kit.said(0, 1, 40, 30)])
    other = replace(data, classes=("cat",), category_ids=(1,))
    message = r"^split 'unlabelled' has the classes cat, 'big' car, van, bus, person, dog; map them with labels:$"
    with pytest.raises(RequestError, match=message):
        attached(other, store)


def test_all_images_without_a_prediction_are_named(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(30)
    store = kit.finish(kit.begin(tmp_path / "store", images(4)), [kit.said(0, 1, 40, 30)] * 4)
    with pytest.raises(RequestError) as caught:
        attached(data, store)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[0].startswith(f"{data.images[4].path}: is not in the knowledge store")
    assert caught.value.problems[-1] == "and 6 more"


def test_images_beyond_those_read_ahead_at_once_come_in_order(
    kit: Any, tmp_path: Path, images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_vision.teachers.offline._AT_ONCE", 2)
    data = images(5)
    words = [kit.said(seed, seed, 40, 30) for seed in range(5)]
    store = kit.finish(kit.begin(tmp_path / "store", data), words)
    assert [len(one) for one in attached(data, store)] == [0, 1, 2, 3, 4]
    late = replace(data, images=(*data.images, kit.record(tmp_path / "late.png", 9, 40, 30)))
    (tmp_path / "late.png").write_bytes(b"new")
    with pytest.raises(RequestError, match=r"^.*late\.png: is not in the knowledge store"):
        attached(late, store)


def test_a_results_file_holds_boxes_of_its_own_split_only(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(3)
    path = tmp_path / "said.json"
    path.write_text('[{"image_id": 2, "category_id": 4, "bbox": [1, 2, 10, 20], "score": 0.5}]')
    file = read_predictions(path, data)
    found = attached(data, file)
    assert [len(one) for one in found] == [0, 1, 0]
    assert found[1].boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert found[1].labels.tolist() == [3]
    # The same id in another folder is another image.
    stranger = kit.record(tmp_path / "other.png", 2, 40, 30)
    with pytest.raises(
        RequestError, match=r"other.png: is not among the images of 'unlabelled', for which .*said.json"
    ):
        attached(replace(data, images=(stranger,)), file)


def test_a_store_is_a_teacher_of_the_config(kit: Any, tmp_path: Path, images: Make) -> None:
    given = StoreConfig.model_validate({"store": "a", "verify": "size"})
    assert (given.store, given.verify, given.same_teacher) == (Path("a"), "size", False)
    numbered = TeacherOptions.model_validate({"labels": {1: "drop", False: "x"}})
    assert numbered.labels == {"1": "drop", "False": "x"}
    data = images(1)
    kit.finish(kit.begin(tmp_path / "store", data), [kit.said(0, 3, 40, 30)])
    store = open_store(StoreConfig(store=tmp_path / "store"), data, "c.yaml: teacher")
    assert store.score_threshold == kit.OPTIONS["score_threshold"]
    assert OfflineTeacher("big", store).score_threshold == kit.OPTIONS["score_threshold"]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_row_of_two_classes_is_one_box(mapped: bool, kit: Any, tmp_path: Path, images: Make) -> None:
    """One row is a car (.5) and a van (.375); with the car dropped it is a van."""
    data = images(1)
    rows = np.array([[0.5, 0.375, 0, 0, 0]] * 2, np.float32)
    said = Detections(np.array([[0, 0, 20, 20]] * 2, np.float32), rows[0, :2].copy(), np.array([0, 1]), rows)
    store = kit.finish(kit.begin(tmp_path / "store", data), [said])
    labels = build_label_map(kit.CLASSES, kit.CLASSES, {"car": "drop"}, "knowledge.labels") if mapped else None
    (found,) = attached(data, store, labels)
    assert found.labels.tolist() == [1 if mapped else 0]
    assert found.scores.tolist() == [0.375 if mapped else 0.5]


def test_labels_have_a_score_of_one_and_crowds_are_left_out(images: Make) -> None:
    data = images(1)
    boxes = np.array([[0, 0, 10, 10], [5, 5, 40, 30]], np.float32)
    crowd = np.array([False, True])
    image = replace(data.images[0], boxes_xyxy=boxes, labels=np.array([2, 0]), crowd=crowd, labelled=True)
    truth = build(GroundTruthConfig(), data, "c.yaml: teacher")
    assert isinstance(truth, GroundTruth)
    (found,) = attached(replace(data, images=(image,)), truth)
    assert found.boxes_xyxy.tolist() == [[0, 0, 10, 10]]
    assert found.scores.tolist() == [1]
    assert found.labels.tolist() == [2]
    with pytest.raises(RequestError) as caught:
        attached(replace(data, images=(replace(image, labelled=False),) * 30), truth)
    assert caught.value.problems == (
        "c.yaml: teacher: 'labels' has no boxes of unlabelled images; set train.unlabelled_ratio to 0, and "
        "train.label_fraction above 0",
    )


def test_boxes_of_a_batch_are_those_that_came_with_it(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(1)
    store = kit.finish(kit.begin(tmp_path / "store", data), [kit.said(0, 1, 40, 30)])
    teacher = OfflineTeacher("big", store)
    assert teacher.to("cpu") is teacher
    assert teacher.image_size is None
    boxes = object()
    batch = replace(ImageBatch.of_images(torch.zeros(1, 3, 8, 8), [1], []), pseudo_labels={"big": boxes, "other": None})
    assert teacher.signals(batch, frozenset({"detections"})).pseudo_labels is boxes
    assert OfflineTeacher("absent", store).signals(batch, frozenset({"detections"})).pseudo_labels is None
