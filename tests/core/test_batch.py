"""Letterbox arithmetic and the frames of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_vision.core.batch import ImageBatch, Letterbox, PseudoLabels, Targets, to_channels
from kd_vision.core.errors import RequestError


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


def test_gray_is_repeated_for_a_colour_model_and_colour_becomes_luma_for_a_gray_one() -> None:
    gray = torch.rand(2, 1, 4, 4)
    assert torch.equal(to_channels(gray, 3), gray.expand(2, 3, 4, 4))
    colour = torch.tensor([1.0, 0.5, 0.25]).reshape(1, 3, 1, 1)
    assert float(to_channels(colour, 1)) == pytest.approx(0.299 + 0.587 / 2 + 0.114 / 4)
    assert to_channels(colour, 3) is colour


def test_a_fourth_channel_is_left_out_and_cannot_be_made_up() -> None:
    four = torch.rand(1, 4, 2, 2)
    assert torch.equal(to_channels(four, 3), four[:, :3])
    assert torch.equal(to_channels(four, 1), to_channels(four[:, :3], 1))
    for have in (1, 3):
        with pytest.raises(RequestError, match=f"4 input channels needs images with 4; these have {have}"):
            to_channels(torch.rand(1, have, 2, 2), 4)


def pseudo_labels() -> PseudoLabels:
    return PseudoLabels(
        torch.tensor([0, 1]),
        torch.tensor([[0.0, 0.0, 4.0, 8.0], [2.0, 2.0, 4.0, 4.0]]),
        torch.tensor([[0.1, 0.9], [0.5, 0.2]]),
        torch.tensor([0.9, 0.5]),
        torch.tensor([False, True]),
    )


def test_pseudo_labels_are_scaled_picked_and_named_by_their_likeliest_class() -> None:
    boxes = pseudo_labels()
    assert boxes.labels.tolist() == [1, 0]
    assert boxes.scaled(0.5).boxes_xyxy.tolist() == [[0, 0, 2, 4], [1, 1, 2, 2]]
    assert boxes.scaled(1.0) is boxes
    second = boxes.take(torch.tensor([False, True]))
    assert (second.image_index.tolist(), second.scores.tolist(), second.ignore.tolist()) == ([1], [0.5], [True])


def test_every_part_of_a_batch_moves_to_the_device() -> None:
    targets = Targets(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.zeros(1, 4))
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    batch = ImageBatch(
        images, targets, torch.tensor([True]), teacher_images=images, pseudo_labels={"a": pseudo_labels()}
    )
    moved = batch.to("meta")
    assert moved.teacher_images is not None
    boxes, truth = moved.pseudo_labels["a"], moved.targets
    parts = [moved.images, moved.labelled, moved.teacher_images, truth.image_index, truth.labels, truth.boxes_xyxy]
    parts += [boxes.image_index, boxes.boxes_xyxy, boxes.class_probs, boxes.scores, boxes.ignore]
    assert {part.device.type for part in parts} == {"meta"}
