"""Images are chosen by COCOeval's mistakes and stored with boxes and matches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.report.benchmark_data import DetectedBox
from kd_vision.report.examples import (
    Pick,
    example_detections,
    example_matches,
    example_record,
    pick_examples,
    write_examples,
)


def make_detections(boxes: Any, scores: Any, labels: Any) -> Detections:
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray(labels, np.int64),
    )


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    """Four images of 2000 x 1000, each with two boxes of class 0."""
    image = np.full((1000, 2000, 3), 128, np.uint8)
    records = []
    for number in range(1, 5):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), image)
        boxes = np.array([[100, 100, 300, 300], [500, 500, 700, 700]], np.float32)
        records.append(
            ImageRecord(
                number,
                path,
                2000,
                1000,
                boxes,
                np.zeros(2, np.int64),
                np.zeros(2, np.bool_),
                np.full(2, 40000.0),
                file_name=path.name,
            )
        )
    return DetectionData("test", ("car",), (1,), tuple(records))


def first_boxes(data: DetectionData, count: dict[int, int]) -> dict[int, Detections]:
    """Detections equal to the first `count[image]` boxes of each image."""
    return {
        image.image_id: make_detections(
            image.boxes_xyxy[: count[image.image_id]],
            [0.9] * count[image.image_id],
            [0] * count[image.image_id],
        )
        for image in data.images
        if image.image_id in count
    }


def test_images_that_differ_most_come_first_also_where_after_is_worse(data: DetectionData) -> None:
    before = first_boxes(data, {1: 1, 2: 2, 3: 1, 4: 1})
    after = first_boxes(data, {1: 2, 3: 1, 4: 2})  # image 2: nothing found any more
    assert pick_examples(data, before, after, 10) == [Pick(2, -2), Pick(1, 1), Pick(4, 1)]
    assert pick_examples(data, before, after, 2) == [Pick(2, -2), Pick(1, 1)]
    assert pick_examples(data, before, before, 10) == []


def test_examples_are_stored_with_boxes_in_the_frame_of_the_stored_image(data: DetectionData, tmp_path: Path) -> None:
    arms = {"plain": first_boxes(data, {1: 1}), "distilled": first_boxes(data, {1: 2})}
    weak = make_detections([[0, 0, 9, 9]], [0.1], [0])
    out = tmp_path / "bench"
    out.mkdir()
    (example,) = write_examples(out, data, [Pick(1, 1)], {**arms, "teacher": {1: weak}})
    stored = cv2.imread(str(out / example.image))
    assert stored.shape == (640, 1280, 3)
    assert example.image == "examples/1.jpg"
    assert example.ground_truth[1].box_xyxy == (320.0, 320.0, 448.0, 448.0)  # 500 and 700 x 0.64
    assert [len(example.detections[name]) for name in ("plain", "distilled", "teacher")] == [1, 2, 0]
    assert example.detections["plain"][0].box_xyxy == (64.0, 64.0, 192.0, 192.0)
    assert example.detections["plain"][0].score == pytest.approx(0.9)
    assert example.difference == 1
    assert sorted(path.name for path in (out / "examples").iterdir()) == ["1.jpg"]


def test_stored_matches_are_those_of_the_evaluation(data: DetectionData, tmp_path: Path) -> None:
    # 200 x 100 of 200 x 200: IoU 1/2 to the last bit, which rounding of the stored boxes may lose.
    boxes = [[100, 100, 300, 200], [100, 100, 300, 190], [500, 500, 700, 700], [500, 500, 700, 699], [0, 0, 9, 9]]
    detections = {1: make_detections(boxes, [0.8, 0.9, 0.7, 0.9, 0.2], [0] * 5)}
    (example,) = write_examples(tmp_path, data, [Pick(1, 1)], {"plain": detections})
    stored = example.detections["plain"]
    # The two whole boxes compete for the second object: the stronger one matches it.
    assert [box.matched_idx for box in stored] == [0, -1, -1, 1]
    record = example_record(example, 640, 1280)
    matches = example_matches(stored, record, ("car",))
    assert str(matches) == "2 TP, 2 FP, 0 FN"
    np.testing.assert_allclose(example_detections(stored).boxes_xyxy, np.multiply(boxes[:4], 0.64), atol=0.01)


def test_stored_matches_are_not_made_again(data: DetectionData, tmp_path: Path) -> None:
    (example,) = write_examples(tmp_path, data, [Pick(1, 1)], {"plain": first_boxes(data, {1: 2})})
    # A rounded box may fall short of IoU 0.5, so the file decides and not the boxes.
    stored = [box.model_copy(update={"matched_idx": -1}) for box in example.detections["plain"]]
    record = example_record(example, 640, 1280)
    assert str(example_matches(stored, record, ("car",))) == "0 TP, 2 FP, 2 FN"


def test_examples_without_stored_matches_are_matched_from_their_boxes(data: DetectionData, tmp_path: Path) -> None:
    detections = {1: make_detections([[100, 100, 300, 300], [0, 0, 50, 50]], [0.9, 0.8], [0, 0])}
    (example,) = write_examples(tmp_path, data, [Pick(1, 1)], {"plain": detections})
    stored = example.detections["plain"]
    older = tuple(DetectedBox(**box.model_dump(exclude={"matched_idx"})) for box in stored)
    record = example_record(example, 640, 1280)
    assert example_matches(older, record, ("car",)).matched_idx.tolist() == [box.matched_idx for box in stored]
    assert str(example_matches((), record, ("car",))) == "0 TP, 0 FP, 2 FN"


def test_a_crowd_region_costs_nothing(data: DetectionData, tmp_path: Path) -> None:
    crowded = [replace(image, crowd=np.array([True, False])) for image in data.images]
    data = replace(data, images=tuple(crowded))
    inside = make_detections([[110, 110, 150, 150], [500, 500, 700, 700]], [0.9, 0.8], [0, 0])
    nothing = make_detections([], [], [])
    assert pick_examples(data, {1: nothing}, {1: inside}, 9) == [Pick(1, 1)]
    (example,) = write_examples(tmp_path, data, [Pick(1, 1)], {"distilled": {1: inside}})
    assert [box.matched_idx for box in example.detections["distilled"]] == [-2, 1]
    assert [box.crowd for box in example.ground_truth] == [True, False]


def test_no_pick_no_example(data: DetectionData, tmp_path: Path) -> None:
    assert write_examples(tmp_path, data, [], {"plain": first_boxes(data, {1: 1})}) == ()
