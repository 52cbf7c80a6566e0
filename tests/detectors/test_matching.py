"""Hungarian matching against every possible matching, and its costs and overlaps against independent formulas."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torchvision.ops import box_convert, box_iou, generalized_box_iou
from ultralytics.models.utils.ops import HungarianMatcher
from ultralytics.utils.metrics import bbox_iou

from kd_vision.core.batch import PseudoLabels
from kd_vision.core.predictions import UNMATCHED
from kd_vision.detectors.boxes import cxcywh_to_xyxy, iou_and_giou, normalized_cxcywh, xyxy_to_cxcywh
from kd_vision.detectors.matching import MatchWeights, hungarian_match, pad_by_image


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """Centre boxes as shares of the input."""
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * 0.4 + 0.2


def labels_of(image_index: list[int], boxes_xyxy: torch.Tensor, probs: torch.Tensor) -> PseudoLabels:
    count = len(image_index)
    return PseudoLabels(torch.tensor(image_index), boxes_xyxy, probs, torch.ones(count), torch.zeros(count).bool())


def test_the_match_has_the_least_cost_of_all() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 2, 4, 3, generator=generator)
    boxes = torch.rand(1, 2, 4, 4, generator=generator) * 0.4 + 0.2
    targets = random_boxes(5, 5)
    pixels = cxcywh_to_xyxy(targets) * torch.tensor([96.0, 64.0, 96.0, 64.0])
    pseudo_labels = labels_of([1, 0, 1, 0, 1], pixels, torch.rand(5, 3, generator=generator))  # images out of order
    index, _ = hungarian_match(logits, boxes, pseudo_labels, (64, 96))

    def cost(image: int, query: int, box: int) -> float:
        s, p = logits[0, image, query].sigmoid(), pseudo_labels.class_probs[box]
        saved = p @ (0.25 * (1 - s) ** 2 * -s.log() - 0.75 * s**2 * -(1 - s).log())
        giou = generalized_box_iou(
            *(box_convert(b[None], "cxcywh", "xyxy") for b in (boxes[0, image, query], targets[box]))
        )
        return float(2 * saved + 5 * (boxes[0, image, query] - targets[box]).abs().sum() + 2 * (1 - giou))

    for image, of_image in enumerate(([1, 3], [0, 2, 4])):
        costs = {
            queries: sum(cost(image, query, box) for query, box in zip(queries, of_image, strict=True))
            for queries in permutations(range(4), len(of_image))
        }
        expected = [UNMATCHED] * 4
        for query, box in zip(min(costs, key=costs.__getitem__), of_image, strict=True):
            expected[query] = box
        assert index[0, image].tolist() == expected


@pytest.mark.parametrize("weights", [MatchWeights(), MatchWeights(1.0, 3.0, 4.0, alpha=0.4, gamma=1.5)])
def test_one_hot_labels_are_matched_as_by_ultralytics(weights: MatchWeights) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, boxes = torch.randn(1, 1, 30, 4, generator=generator), random_boxes(30, 2)[None, None]
    targets, classes = random_boxes(12, 3), torch.randint(4, (12,), generator=generator)
    gain = {"class": weights.classes, "bbox": weights.l1, "giou": weights.giou}
    matcher = HungarianMatcher(gain, alpha=weights.alpha, gamma=weights.gamma)
    ((queries, positions),) = matcher(boxes[0], logits[0], targets, classes, [12])
    one_hot = torch.nn.functional.one_hot(classes, 4).float()
    pseudo_labels = labels_of([0] * 12, cxcywh_to_xyxy(targets) * 64, one_hot)
    index, quality = hungarian_match(logits, boxes, pseudo_labels, (64, 64), weights)
    expected = torch.full((30,), UNMATCHED)
    expected[queries] = positions
    assert torch.equal(index[0, 0], expected)
    iou = box_iou(cxcywh_to_xyxy(boxes[0, 0, queries]), cxcywh_to_xyxy(targets[positions])).diagonal()
    torch.testing.assert_close(quality[0, 0, queries], iou)
    assert float(quality.sum()) == pytest.approx(float(iou.sum()))  # 0 for all other queries


def test_class_probabilities_decide_between_boxes_at_one_place() -> None:
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 1, 2, 4)
    logits = torch.tensor([[[[3.0, -3.0], [-3.0, 3.0]]]])
    place = torch.tensor([[40.0, 40.0, 60.0, 60.0]]).repeat(2, 1)
    for probs, expected in (([[0.7, 0.3], [0.2, 0.8]], [0, 1]), ([[0.2, 0.8], [0.7, 0.3]], [1, 0])):
        index, quality = hungarian_match(logits, boxes, labels_of([0, 0], place, torch.tensor(probs)), (100, 100))
        assert index[0, 0].tolist() == expected
        assert quality[0, 0].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_values_that_are_not_finite_do_not_stop_the_matching() -> None:
    """The guard of the training step names the term that is not finite; an exception here would hide it."""
    logits, boxes = torch.full((1, 3, 50, 3), float("nan")), torch.full((1, 3, 50, 4), float("nan"))
    pixels = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 8.0, 60.0, 50.0], [2.0, 2.0, 22.0, 20.0]])
    index, _ = hungarian_match(logits, boxes, labels_of([0, 1, 1], pixels, torch.eye(3)), (64, 64))
    assert sorted(index[index >= 0].tolist()) == [0, 1, 2]


def test_overlaps_are_those_of_torchvision_and_bit_for_bit_of_ultralytics() -> None:
    first, second = random_boxes(40, 6), random_boxes(40, 7)
    first[:2, 2:] = second[:2, 2:] = 0.0  # flat boxes share nothing with each other
    iou, giou = iou_and_giou(first, second)
    corners = cxcywh_to_xyxy(first), cxcywh_to_xyxy(second)
    torch.testing.assert_close(iou[2:], box_iou(*corners).diagonal()[2:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(giou[2:], generalized_box_iou(*corners).diagonal()[2:], rtol=1e-4, atol=1e-5)
    assert iou[:2].tolist() == [0.0, 0.0]
    assert torch.equal(iou, bbox_iou(first, second, xywh=True)[:, 0])
    assert torch.equal(giou, bbox_iou(first, second, xywh=True, GIoU=True)[:, 0])


def test_conversions_are_those_of_torchvision() -> None:
    boxes = random_boxes(20, 8)
    corners = cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(corners, box_convert(boxes, "cxcywh", "xyxy"))
    torch.testing.assert_close(xyxy_to_cxcywh(corners), boxes)
    pixels = torch.tensor([[24.0, 16.0, 72.0, 48.0]])
    assert normalized_cxcywh(pixels, (64, 96)).tolist() == [[0.5, 0.5, 0.5, 0.5]]


def test_a_flat_list_becomes_a_table_of_images() -> None:
    position, mask = pad_by_image(torch.tensor([2, 0, 2, 0, 2]), 4)
    assert mask.tolist() == [[True, True, False], [False] * 3, [True, True, True], [False] * 3]
    assert position[mask].tolist() == [1, 3, 0, 2, 4]
    position, mask = pad_by_image(torch.zeros(0, dtype=torch.int64), 2)
    assert position.shape == mask.shape == (2, 0)
