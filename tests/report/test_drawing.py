"""Boxes are drawn where they are, in the colour of their meaning, and on a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_vision.core.boxes import box_area
from kd_vision.core.predictions import IGNORED, UNMATCHED, Detections
from kd_vision.data.records import ImageRecord
from kd_vision.evaluation.matches import ImageMatches
from kd_vision.report.drawing import (
    FN_COLOUR,
    FP_COLOUR,
    GROUND_TRUTH_COLOUR,
    TP_COLOUR,
    draw_detections,
    draw_ground_truth,
    draw_matches,
)

BOX = Detections(np.array([[40, 60, 90, 110]], np.float32), np.array([0.5], np.float32), np.array([0]))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_draws_the_outline_and_leaves_the_rest(channels: int) -> None:
    pixels = np.full((128, 128, channels), 100, np.uint8)
    drawn = draw_detections(pixels, BOX, ("car",))
    assert drawn.shape == (128, 128, 3)
    changed = (drawn != 100).any(axis=2)
    assert changed[60:111, 40].all()
    assert changed[60:111, 90].all()
    assert changed[110, 40:91].all()
    assert not changed[65:105, 45:85].any()
    assert not changed[120:].any()
    assert (pixels == 100).all()


def test_no_box_no_change() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    drawn = draw_detections(pixels, Detections.empty(), ("car",))
    np.testing.assert_array_equal(drawn, pixels)
    drawn[:] = 0
    assert pixels.any(), "the result is a copy"


def test_colours_of_the_picture_stay() -> None:
    pixels = np.zeros((64, 200, 3), np.uint8)
    pixels[..., 0] = 200
    drawn = draw_detections(pixels, Detections(BOX.boxes_xyxy / 4, BOX.scores, BOX.labels), ("car",))
    assert drawn[60, 190].tolist() == [200, 0, 0]


def record(boxes: Any, crowd: Any = None) -> ImageRecord:
    """Ground truth of one class."""
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    flags = np.zeros(len(corners), np.bool_) if crowd is None else np.asarray(crowd, np.bool_)
    labels = np.zeros(len(corners), np.int64)
    return ImageRecord(1, Path("1.jpg"), 200, 200, corners, labels, flags, box_area(corners))


def detections(*boxes: tuple[float, float, float, float]) -> Detections:
    """Detections of one class with the score 0.9."""
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Detections(corners, np.full(len(corners), 0.9, np.float32), np.zeros(len(corners), np.int64))


def colours(panel: np.ndarray) -> set[str]:
    """Which of the four meanings are drawn."""
    pixels = {tuple(pixel) for pixel in panel.reshape(-1, 3).tolist()}
    named = {"TP": TP_COLOUR, "FP": FP_COLOUR, "FN": FN_COLOUR, "ground truth": GROUND_TRUTH_COLOUR}
    return {
        name
        for name, colour in named.items()
        if tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5)) in pixels
    }


LEFT, RIGHT, LOW = (10, 10, 50, 50), (100, 100, 150, 150), (60, 150, 95, 190)


@pytest.mark.parametrize(
    ("boxes", "matched_idx", "expected"),
    [
        ([LEFT, LOW], [0, UNMATCHED], {"TP", "FP", "FN"}),
        ([LEFT, RIGHT], [0, 1], {"TP"}),
        ([LEFT, RIGHT, LOW], [0, 1, IGNORED], {"TP"}),
        ([LOW], [UNMATCHED], {"FP", "FN"}),
        ([], [], {"FN"}),
    ],
)
def test_true_and_false_positives_and_missed_boxes_have_their_colours(
    boxes: Any, matched_idx: list[int], expected: set[str]
) -> None:
    image = np.full((200, 200, 3), 128, np.uint8)
    scene = record([LEFT, RIGHT])
    matches = ImageMatches(np.array(matched_idx, np.int64), scene.crowd)
    assert colours(draw_matches(image, scene, detections(*boxes), matches, ("car",))) == expected
    assert (image == 128).all(), "the given image is not drawn on"


def test_ground_truth_is_drawn_without_crowd_regions() -> None:
    image = np.full((200, 200, 3), 128, np.uint8)
    drawn = draw_ground_truth(image, record([LEFT, RIGHT], crowd=[False, True]), ("car",))
    assert colours(drawn) == {"ground truth"}
    assert (drawn[95:, 95:] == 128).all()
    assert (image == 128).all(), "the given image is not drawn on"


def test_a_large_image_is_drawn_small_with_its_boxes_in_place() -> None:
    image = np.full((1000, 2000, 3), 128, np.uint8)
    panel = draw_ground_truth(image, record([[500, 500, 700, 700]]), ("car",))
    assert panel.shape == (320, 640, 3)
    rows, columns = np.nonzero((panel != 128).any(axis=2))
    # 500..700 x 0.32 = 160..224; the label is above, lines are 2 wide.
    assert rows.max() == pytest.approx(224, abs=2)
    assert (columns.min(), columns.max()) == (pytest.approx(160, abs=2), pytest.approx(224, abs=2))


def test_many_true_positives_have_no_captions_but_false_ones_do() -> None:
    image = np.full((400, 400, 3), 128, np.uint8)
    boxes = [(5 + 30 * i, 200, 25 + 30 * i, 220) for i in range(12)]
    scene = record(boxes)
    only_tp = ImageMatches(np.arange(12), scene.crowd)
    with_fp = ImageMatches(np.array([*range(12), UNMATCHED]), scene.crowd)
    twelve = draw_matches(image, scene, detections(*boxes), only_tp, ("car",))
    thirteen = draw_matches(image, scene, detections(*boxes, (150, 20, 250, 60)), with_fp, ("car",))
    assert (twelve[180:195] != 128).any(), "captions above the boxes"
    assert (thirteen[180:195] == 128).all()
    filled = (thirteen == [213, 94, 0]).all(axis=2)
    assert filled.sum() > 2 * 3 * (100 + 40), "the caption is a filled area beside the outline"
