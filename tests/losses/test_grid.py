"""Points, boxes and the pairing of grids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.class_bce import ClassBCE, ClassBCEConfig
from kd_vision.losses.grid import class_weights, full_precision, images_with_targets, points_in_boxes, smallest_box


def test_smallest_box_agrees_with_trying_all() -> None:
    torch.manual_seed(0)
    points = 64 * torch.rand(50, 2)
    near = 50 * torch.rand(12, 2)
    targets = Targets(torch.randint(0, 3, (12,)), torch.zeros(12), torch.cat([near, near + 30 * torch.rand(12, 2)], 1))
    owner = smallest_box(points, targets, images=3)
    for image in range(3):
        for index, (x, y) in enumerate(points.tolist()):
            holding = [
                ((x2 - x1) * (y2 - y1), box)
                for box, (x1, y1, x2, y2) in enumerate(targets.boxes_xyxy.tolist())
                if targets.image_index[box] == image and x1 < x < x2 and y1 < y < y2
            ]
            assert int(owner[image, index]) == (min(holding)[1] if holding else -1)
    assert (owner >= 0).any()
    assert (owner < 0).any()


def test_boxes_of_one_size_give_the_first(no_targets: Targets) -> None:
    same = Targets(torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([[0.0, 0, 8, 8]] * 2))
    assert smallest_box(torch.tensor([[4.0, 4.0], [9.0, 4.0]]), same, 1).tolist() == [[0, -1]]
    assert smallest_box(torch.tensor([[4.0, 4.0]]), no_targets, 2).tolist() == [[-1], [-1]]


def test_a_point_on_the_edge_is_outside() -> None:
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    assert points_in_boxes(torch.tensor([[0.0, 4.0], [7.9, 4.0], [4.0, 8.0]]), box).tolist() == [[False, True, False]]


def test_images_with_targets(targets: Targets, no_targets: Targets) -> None:
    assert images_with_targets(targets, 3).tolist() == [True, True, False]
    assert images_with_targets(no_targets, 2).tolist() == [False, False]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_only_half_precision_is_raised(given: torch.dtype, kept: torch.dtype) -> None:
    assert full_precision(torch.ones(1, dtype=given)).dtype == kept


def test_one_normaliser_for_all_levels(
    row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    """Four points at q = .75 and sixty at q = 0 count 3 objects, not 3 per something."""
    logits = torch.full((64, 3), -300.0, dtype=torch.float64)
    logits[:4, 1] = torch.tensor(3.0, dtype=torch.float64).log()
    side = rows_side(logits)
    pair = ClassBCE(ClassBCEConfig(), row_spec, row_spec).pair(side, side, no_targets)
    assert float(pair.normaliser) == pytest.approx(3.0, abs=1e-12)
    assert float(pair.confidence[0, 0]) == pytest.approx(0.75, abs=1e-12)


def test_balance_lifts_the_rare_class_and_leaves_the_total_mass() -> None:
    logits = torch.full((1, 12, 2), -20.0, dtype=torch.float64)
    logits[0, :9, 0] = 20.0  # nine of the common class
    logits[0, 9:10, 1] = 20.0  # one of the rare
    weights = class_weights(logits, 1.0)
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 2], dtype=torch.float64))
    half = class_weights(logits, 0.5)
    assert float(half[1] / half[0]) == pytest.approx(3.0)
    assert float(half[0] * 9 + half[1] * 1) == pytest.approx(10.0)
    assert class_weights(logits, 0.0).tolist() == [1.0, 1.0]


def test_a_class_that_is_not_there_is_not_blown_up() -> None:
    logits = torch.full((1, 8, 2), -20.0)
    logits[0, :4, 0] = 20.0
    weights = class_weights(logits, 1.0)
    assert float(weights[1] / weights[0]) == pytest.approx(4.0, rel=1e-4)  # its mass counts as 1
