"""Mistakes are counted as documented, the images are chosen by them, and drawings show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.report.examples import (
    FALSE_COLOUR,
    MISSED_COLOUR,
    RIGHT_COLOUR,
    TRUTH_COLOUR,
    Pick,
    Truth,
    draw_panel,
    judge,
    pick_examples,
    write_examples,
)


def truth(boxes: Any, labels: Any, crowd: Any = None) -> Truth:
    flags = np.zeros(len(labels), np.bool_) if crowd is None else np.asarray(crowd, np.bool_)
    return Truth(np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.int64), flags)


def found(boxes: Any, scores: Any, labels: Any) -> Detections:
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray(labels, np.int64),
    )


BOX = [10, 10, 50, 50]


def test_the_stronger_of_two_detections_takes_the_box() -> None:
    judgement = judge(truth([BOX], [0]), found([BOX, [12, 10, 52, 50]], [0.4, 0.9], [0, 0]))
    assert judgement.tp.tolist() == [False, True]
    assert judgement.fp.tolist() == [True, False]
    assert judgement.fn.tolist() == [False]
    assert str(judgement) == "1 right, 1 false, 0 missed"
    assert judgement.mistakes == 1


def test_wrong_class_and_low_overlap_are_false_and_the_box_is_missed() -> None:
    # Shifted by half its width: IoU = 20 * 40 / (2 * 1600 - 800) = 1/3.
    judgement = judge(truth([BOX], [0]), found([BOX, [30, 10, 70, 50]], [0.9, 0.8], [1, 0]))
    assert judgement.fp.tolist() == [True, True]
    assert judgement.fn.tolist() == [True]
    assert judgement.mistakes == 3


def test_overlap_of_exactly_one_half_is_right() -> None:
    # 40 x 40 inside 40 x 80: IoU = 1/2.
    assert judge(truth([[0, 0, 40, 80]], [0]), found([[0, 0, 40, 40]], [0.9], [0])).tp.all()


def test_weak_detections_do_not_exist() -> None:
    judgement = judge(truth([BOX], [0]), found([BOX, [60, 60, 90, 90]], [0.2, 0.24], [0, 0]))
    assert not judgement.tp.any()
    assert not judgement.fp.any()
    assert judgement.fn.tolist() == [True]


def test_detections_in_a_crowd_region_count_for_nothing() -> None:
    scene = truth([[0, 0, 200, 200], BOX], [0, 0], crowd=[True, False])
    judgement = judge(scene, found([BOX, [100, 100, 140, 140]], [0.9, 0.8], [0, 0]))
    assert str(judgement) == "1 right, 0 false, 0 missed"


def test_without_boxes_nothing_is_wrong() -> None:
    assert judge(truth([], []), Detections.empty()).mistakes == 0


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


def answers(data: DetectionData, right: dict[int, int]) -> dict[int, Detections]:
    """The first `right[image]` boxes of each image, found exactly."""
    return {
        image.image_id: found(
            image.boxes_xyxy[: right[image.image_id]],
            [0.9] * right[image.image_id],
            [0] * right[image.image_id],
        )
        for image in data.images
        if image.image_id in right
    }


def test_images_that_differ_most_come_first_also_where_after_is_worse(data: DetectionData) -> None:
    before = answers(data, {1: 1, 2: 2, 3: 1, 4: 1})
    after = answers(data, {1: 2, 3: 1, 4: 2})  # image 2: nothing found any more
    assert pick_examples(data, before, after, 10) == [Pick(2, -2), Pick(1, 1), Pick(4, 1)]
    assert pick_examples(data, before, after, 2) == [Pick(2, -2), Pick(1, 1)]
    assert pick_examples(data, before, before, 10) == []


def test_examples_are_stored_with_boxes_in_the_frame_of_the_stored_image(data: DetectionData, tmp_path: Path) -> None:
    arms = {"plain": answers(data, {1: 1}), "distilled": answers(data, {1: 2})}
    weak = found([[0, 0, 9, 9]], [0.1], [0])
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


def colours(panel: np.ndarray) -> set[str]:
    """Which of the four meanings are drawn."""
    pixels = {tuple(pixel) for pixel in panel.reshape(-1, 3).tolist()}
    named = {"right": RIGHT_COLOUR, "false": FALSE_COLOUR, "missed": MISSED_COLOUR, "truth": TRUTH_COLOUR}
    return {
        name
        for name, colour in named.items()
        if tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5)) in pixels
    }


def test_a_panel_shows_right_false_and_missed_in_their_colours() -> None:
    image = np.full((200, 200, 3), 128, np.uint8)
    scene = truth([BOX, [100, 100, 150, 150]], [0, 0])
    everything = draw_panel(image, scene, found([BOX, [60, 150, 95, 190]], [0.9, 0.8], [0, 0]), ("car",))
    assert colours(everything) == {"right", "false", "missed"}
    assert colours(draw_panel(image, scene, None, ("car",))) == {"truth"}
    perfect = found(scene.boxes_xyxy, [0.9, 0.9], [0, 0])
    assert colours(draw_panel(image, scene, perfect, ("car",))) == {"right"}
    assert (image == 128).all(), "the given image is not drawn on"


def test_a_large_image_is_drawn_small_with_its_boxes_in_place() -> None:
    image = np.full((1000, 2000, 3), 128, np.uint8)
    panel = draw_panel(image, truth([[500, 500, 700, 700]], [0]), None, ("car",))
    assert panel.shape == (320, 640, 3)
    rows, columns = np.nonzero((panel != 128).any(axis=2))
    # 500..700 x 0.32 = 160..224; the label stands above, lines are 2 wide.
    assert rows.max() == pytest.approx(224, abs=2)
    assert (columns.min(), columns.max()) == (pytest.approx(160, abs=2), pytest.approx(224, abs=2))
