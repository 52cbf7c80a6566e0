"""Geometry and pixels of the letterbox."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_vision.runtime.letterbox import PAD_VALUE, letterbox_image, resize

SIDES = st.integers(1, 700)


@given(SIDES, SIDES, st.integers(16, 320), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_come_back(height: int, width: int, size: int, fractions: list[float]) -> None:
    square, placement = letterbox_image(np.zeros((height, width, 1), np.uint8), size)
    x, y = np.sort(fractions[:2]) * width, np.sort(fractions[2:]) * height
    box = np.array([[x[0], y[0], x[1], y[1]]])
    placed = placement.apply(box)
    assert square.shape == (size, size, 1)
    assert (placed >= -1e-3).all()
    assert (placed <= size + 1e-3).all()
    np.testing.assert_allclose(placement.invert(placed), box, rtol=0, atol=1e-3)


@given(SIDES, SIDES, st.integers(16, 320))
def test_aspect_ratio_is_kept_within_a_pixel_and_the_long_side_fills_the_square(
    height: int, width: int, size: int
) -> None:
    square, placement = letterbox_image(np.full((height, width, 1), 255, np.uint8), size)
    is_image = square[..., 0] == 255
    rows, columns = is_image.any(axis=1).sum(), is_image.any(axis=0).sum()
    assert max(rows, columns) == size
    assert is_image.sum() == rows * columns
    ratio = size / max(height, width)
    assert abs(rows - height * ratio) <= 1
    assert abs(columns - width * ratio) <= 1
    assert (placement.scale_y * height, placement.scale_x * width) == pytest.approx((rows, columns))
    assert abs((size - rows) - 2 * placement.pad_top) <= 1
    assert abs((size - columns) - 2 * placement.pad_left) <= 1


def test_pixels_and_padding_by_hand() -> None:
    """2 x 4 in a square of 4: one row of padding above and below, the pixels untouched."""
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    square, placement = letterbox_image(image, 4)
    np.testing.assert_array_equal(square[1:3], image)
    assert (square[[0, 3]] == PAD_VALUE).all()
    assert (placement.pad_left, placement.pad_top, placement.scale_x, placement.scale_y) == (0, 1, 1.0, 1.0)
    assert (letterbox_image(image, 4, pad_value=7)[0][[0, 3]] == 7).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shrunk_images_are_averaged_enlarged_ones_bilinear_and_the_channel_axis_stays(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, channels), dtype=np.uint8)
    mean = image.reshape(4, 2, 6, 2, channels).mean(axis=(1, 3))
    assert np.abs(resize(image, 6, 4) - mean).max() <= 0.5
    larger = cv2.resize(image, (18, 16), interpolation=cv2.INTER_LINEAR).reshape(16, 18, channels)
    np.testing.assert_array_equal(resize(image, 18, 16), larger)
    bilinear = cv2.resize(image, (5, 3), interpolation=cv2.INTER_LINEAR).reshape(3, 5, channels)
    np.testing.assert_array_equal(resize(image, 5, 3, "bilinear"), bilinear)
    assert resize(image, 12, 8) is image
