from __future__ import annotations

import numpy as np
import pytest

from kd_vision.core.predictions import Detections
from kd_vision.report.drawing import draw_detections

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
    np.testing.assert_array_equal(draw_detections(pixels, Detections.empty(), ("car",)), pixels)


def test_colours_of_the_picture_stay() -> None:
    pixels = np.zeros((64, 200, 3), np.uint8)
    pixels[..., 0] = 200
    drawn = draw_detections(pixels, Detections(BOX.boxes_xyxy / 4, BOX.scores, BOX.labels), ("car",))
    assert drawn[60, 190].tolist() == [200, 0, 0]
