"""From scores to final boxes, against NMS written out in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from kd_vision.core.predictions import PredictOptions
from kd_vision.detectors.postprocess import nms, top_k

OPTIONS = PredictOptions(score_threshold=0.3, nms_iou=0.5, max_detections=8)
Row = tuple[float, int, int]


def candidates(seed: int, images: int = 3, rows: int = 40, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes that overlap, and scores that all differ."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(images, rows, 2, generator=generator) * 40
    size = torch.rand(images, rows, 2, generator=generator) * 30 + 5
    count = images * rows * classes
    scores = torch.randperm(count, generator=generator).reshape(images, rows, classes) / count
    return torch.cat((low, low + size), dim=-1), scores


def greedy(boxes: torch.Tensor, scores: torch.Tensor, options: PredictOptions) -> list[Row]:
    """Score, row and class of what greedy NMS keeps of one image; (A, K, 4) and (A, K)."""
    pairs = [(float(scores[row, label]), row, label) for row in range(len(scores)) for label in range(scores.shape[1])]
    kept: list[Row] = []
    for score, row, label in sorted((pair for pair in pairs if pair[0] > options.score_threshold), reverse=True):
        box = boxes[row, label][None]
        same = [boxes[other, label] for _, other, of_class in kept if of_class == label]
        if not same or float(box_iou(box, torch.stack(same)).max()) <= options.nms_iou:
            kept.append((score, row, label))
    return kept[: options.max_detections]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("box_per_class", [False, True])
def test_nms_keeps_the_best_box_of_each_object_of_each_image(seed: int, box_per_class: bool) -> None:
    boxes, scores = candidates(seed)
    scores[1] = 0.0  # an image without a box among two with
    table = boxes[:, :, None].expand(-1, -1, 3, -1)
    if box_per_class:
        table = table + torch.tensor([0.0, 3.0, 9.0])[:, None]
        boxes = table
    batch = nms(boxes, scores, OPTIONS)
    assert batch.images == 3
    assert batch.image_index.tolist() == sorted(batch.image_index.tolist())
    for image, detections in enumerate(batch.per_image()):
        expected = greedy(table[image], scores[image], OPTIONS)
        assert len(expected) == (0 if image == 1 else 8)
        np.testing.assert_array_equal(detections.scores, np.array([score for score, _, _ in expected], np.float32))
        assert detections.labels.tolist() == [label for _, _, label in expected]
        rows = [row for _, row, _ in expected]
        np.testing.assert_array_equal(
            detections.boxes_xyxy, [table[image, r, k].numpy() for _, r, k in expected] or np.zeros((0, 4))
        )
        np.testing.assert_array_equal(detections.class_probs, scores[image, rows].numpy())


def test_an_image_gets_the_same_boxes_alone_as_in_a_batch() -> None:
    boxes, scores = candidates(7)
    together = nms(boxes, scores, OPTIONS).per_image()
    for image, detections in enumerate(together):
        (alone,) = nms(boxes[image : image + 1], scores[image : image + 1], OPTIONS).per_image()
        np.testing.assert_array_equal(alone.boxes_xyxy, detections.boxes_xyxy)
        np.testing.assert_array_equal(alone.scores, detections.scores)


def test_the_best_candidates_enter_nms() -> None:
    boxes, scores = candidates(1, images=1)
    limited = nms(boxes, scores, OPTIONS, max_candidates=5)
    fifth = scores.flatten().topk(5).values[-1]
    reference = nms(boxes, scores.where(scores >= fifth, 0.0), OPTIONS)
    assert torch.equal(limited.boxes_xyxy, reference.boxes_xyxy)
    assert 0 < len(limited.scores) <= 5


def test_top_k_is_a_sort_of_all_pairs() -> None:
    boxes, scores = candidates(2)
    scores[2] *= 0.1  # below the threshold
    for limit, most in ((None, 8), (3, 3)):
        for image, detections in enumerate(top_k(boxes, scores, OPTIONS, limit).per_image()):
            order = scores[image].flatten().argsort(descending=True)[:most].tolist() if image < 2 else []
            assert detections.labels.tolist() == [pair % 3 for pair in order]
            rows = [pair // 3 for pair in order]
            np.testing.assert_array_equal(detections.boxes_xyxy, boxes[image, rows].numpy())
            np.testing.assert_array_equal(detections.scores, scores[image].flatten()[order].numpy())


def test_fewer_rows_than_detections_and_none_at_all() -> None:
    boxes, scores = candidates(3, images=2, rows=1)
    assert [len(one) for one in top_k(boxes, scores, PredictOptions(0.0)).per_image()] == (scores > 0).sum(
        (1, 2)
    ).tolist()
    empty = nms(boxes, torch.zeros_like(scores), OPTIONS)
    assert [len(one) for one in empty.per_image()] == [0, 0]
    assert empty.boxes_xyxy.shape == (0, 4)
