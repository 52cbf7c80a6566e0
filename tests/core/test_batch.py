"""Letterbox arithmetic and the frames of a batch."""

from __future__ import annotations

import numpy as np
import torch

from kd_vision.core.batch import ImageBatch, Letterbox, Targets


def test_letterbox_inverse_is_exact_where_the_resize_was_rounded() -> None:
    # 640 x 427 on 256: the scale is 0.4, the height 170.8 is rounded to 171, so scale_y is 171/427.
    box = Letterbox(427, 640, 256 / 640, 171 / 427, 0, 42)
    original = np.array([[10.0, 20.0, 630.0, 420.0]])
    placed = box.apply(original)
    np.testing.assert_allclose(placed, [[4.0, 20 * 171 / 427 + 42, 252.0, 420 * 171 / 427 + 42]], rtol=1e-6)
    np.testing.assert_allclose(box.invert(placed), original, atol=1e-4)


def test_letterbox_inverse_clips_to_the_image() -> None:
    box = Letterbox(100, 200, 0.5, 0.5, 0, 25)
    np.testing.assert_array_equal(box.invert(np.array([[-5.0, 0.0, 300.0, 200.0]])), [[0.0, 0.0, 200.0, 100.0]])


def test_images_become_unit_range_once() -> None:
    targets = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    batch = ImageBatch(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), targets, torch.tensor([True]))
    once = batch.as_float()
    assert once.images.dtype == torch.float32
    assert float(once.images.max()) == 1.0
    assert once.as_float().images is once.images
