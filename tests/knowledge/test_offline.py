from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.label_map import build_label_map
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData
from kd_vision.knowledge.config import KnowledgeConfig
from kd_vision.knowledge.store import read_json_knowledge
from kd_vision.teachers.offline import OwnLabels, attach

Make = Callable[[int], DetectionData]


def word(boxes: list[list[float]], probs: list[list[float]]) -> Detections:
    rows = np.array(probs, np.float32)
    return Detections(np.array(boxes, np.float32), rows.max(axis=1), rows.argmax(axis=1), rows)


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
    (record,) = attach(replace(data, classes=ours, category_ids=(1, 2, 3)), store, labels).images
    found = record.knowledge
    assert found is not None
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


def test_other_classes_without_a_map_are_refused(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(1)
    store = kit.finish(kit.begin(tmp_path / "store", data), [kit.said(0, 1, 40, 30)])
    other = replace(data, classes=("cat",), category_ids=(1,))
    message = (
        r"^split 'unlabelled' has the classes cat, the knowledge car, van, bus, person, dog; map them with labels:$"
    )
    with pytest.raises(RequestError, match=message):
        attach(other, store)


def test_all_images_without_a_word_are_named(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(30)
    store = kit.finish(kit.begin(tmp_path / "store", images(4)), [kit.said(0, 1, 40, 30)] * 4)
    with pytest.raises(RequestError) as caught:
        attach(data, store)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[0].startswith(f"{data.images[4].path}: is not in the knowledge store")
    assert caught.value.problems[-1] == "and 6 more"


def test_a_results_file_speaks_of_its_own_split_only(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(3)
    entries = [{"image_id": 2, "category_id": 4, "bbox": [1, 2, 10, 20], "score": 0.5}]
    path = tmp_path / "said.json"
    path.write_text(json.dumps(entries))
    knowledge = read_json_knowledge(path, data)
    told = attach(data, knowledge)
    found = [image.knowledge for image in told.images]
    assert [0 if one is None else len(one) for one in found] == [0, 1, 0]
    assert found[1] is not None
    assert found[1].boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert found[1].labels.tolist() == [3]
    # The same id in another folder is another image.
    stranger = kit.record(tmp_path / "other.png", 2, 40, 30)
    with pytest.raises(RequestError, match=r"other.png: is not among the images of 'unlabelled', of which .*said.json"):
        attach(replace(data, images=(stranger,)), knowledge)


def test_a_bare_path_is_a_store() -> None:
    assert KnowledgeConfig.model_validate("a/b") == KnowledgeConfig(store=Path("a/b"))
    given = KnowledgeConfig.model_validate({"store": "a", "labels": {"x": "y"}, "verify": "size"})
    assert (given.store, given.labels, given.verify) == (Path("a"), {"x": "y"}, "size")
    numbered = KnowledgeConfig.model_validate({"store": "a", "labels": {1: "drop", False: "x"}})
    assert numbered.labels == {"1": "drop", "False": "x"}


@pytest.mark.parametrize("mapped", [False, True])
def test_a_row_with_two_opinions_is_told_once(mapped: bool, kit: Any, tmp_path: Path, images: Make) -> None:
    """One row is a car (.5) and a van (.375); with the car dropped it is a van."""
    data = images(1)
    rows = np.array([[0.5, 0.375, 0, 0, 0]] * 2, np.float32)
    said = Detections(np.array([[0, 0, 20, 20]] * 2, np.float32), rows[0, :2].copy(), np.array([0, 1]), rows)
    store = kit.finish(kit.begin(tmp_path / "store", data), [said])
    labels = build_label_map(kit.CLASSES, kit.CLASSES, {"car": "drop"}, "knowledge.labels") if mapped else None
    (record,) = attach(data, store, labels).images
    assert record.knowledge is not None
    assert record.knowledge.labels.tolist() == [1 if mapped else 0]
    assert record.knowledge.scores.tolist() == [0.375 if mapped else 0.5]


def test_a_results_file_knows_all_its_classes(tmp_path: Path, images: Make) -> None:
    path = tmp_path / "said.json"
    path.write_text("[]")
    assert read_json_knowledge(path, images(1)).missing_classes == ()


def test_labels_are_said_with_certainty_and_crowds_are_not(images: Make) -> None:
    data = images(1)
    boxes = np.array([[0, 0, 10, 10], [5, 5, 40, 30]], np.float32)
    crowd = np.array([False, True])
    image = replace(data.images[0], boxes_xyxy=boxes, labels=np.array([2, 0]), crowd=crowd, labelled=True)
    (record,) = attach(replace(data, images=(image,)), OwnLabels(data.classes)).images
    assert record.knowledge is not None
    assert record.knowledge.boxes_xyxy.tolist() == [[0, 0, 10, 10]]
    assert record.knowledge.scores.tolist() == [1]
    assert record.knowledge.labels.tolist() == [2]
    with pytest.raises(RequestError, match=r"\.png: has no labels that could teach$"):
        attach(replace(data, images=(replace(image, labelled=False),)), OwnLabels(data.classes))
