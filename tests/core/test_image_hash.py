from __future__ import annotations

import numpy as np

from kd_vision.core.image_hash import difference_hash, hamming_distances


def test_bits_are_where_brightness_grows_to_the_right() -> None:
    row = np.array([10, 20, 20, 5, 6], np.uint8)
    gray = np.stack([row, row[::-1], row, row])[:, :, None]
    # The image has the size of the gray copy already, so nothing is averaged.
    rising, falling = [True, False, False, True], [False, True, False, False]
    assert difference_hash(gray, 4).tolist() == rising + falling + rising + rising


def test_colour_is_hashed_as_its_brightness() -> None:
    gray = np.random.default_rng(0).integers(0, 255, (60, 80, 1), np.uint8)
    np.testing.assert_array_equal(difference_hash(gray.repeat(3, axis=2), 16), difference_hash(gray, 16))
    # Green is brighter than blue of the same value, and the hash sees that.
    green_on_the_right = np.zeros((8, 8, 3), np.uint8)
    green_on_the_right[:, :4, 2] = green_on_the_right[:, 4:, 1] = 200
    assert difference_hash(green_on_the_right, 1).all()
    assert not difference_hash(green_on_the_right[:, ::-1], 1).any()


def test_distances_count_different_bits() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.random((5, 256)) < 0.3, rng.random((7, 256)) < 0.6
    counted = (left[:, None] != right[None]).sum(axis=2)
    np.testing.assert_array_equal(hamming_distances(left, right), counted)
    assert hamming_distances(left[:0], right).shape == (0, 7)
