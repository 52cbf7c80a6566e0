from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.box_iou import BoxIoU, BoxIoUConfig, Kind, fix_degenerate_boxes, iou_distance

KINDS: tuple[Kind, ...] = get_args(Kind)


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("iou", 1 - 1 / 7),
        ("giou", 1 - (1 / 7 - 2 / 9)),  # hull 9, union 7
        ("ciou", 1 - (1 / 7 - 2 / 18)),  # centres 2 apart squared, diagonal 18, equal shapes
    ],
)
def test_by_hand(kind: Kind, expected: float) -> None:
    value = iou_distance(boxes([0, 0, 2, 2]), boxes([1, 1, 3, 3]), kind)
    assert value.tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [("iou", 1.0), ("giou", 1 + 4 / 12), ("ciou", 1 + 16 / 40)])
def test_apart(kind: Kind, expected: float) -> None:
    """IoU is 1 however far; the others grow: hull 12 of which 4 empty, centres 4 apart, diagonal sqrt 40."""
    value = iou_distance(boxes([0, 0, 2, 2]), boxes([4, 0, 6, 2]), kind)
    assert value.tolist() == pytest.approx([expected], abs=1e-6)


def test_distance_at_equality() -> None:
    """IoU is exact; GIoU and CIoU keep 1e-7 / area, 3.6e-9 on 4 x 7 and 2.5e-4 on .02 x .02."""
    large, tiny = boxes([0, 0, 4, 7]), boxes([0, 0, 0.02, 0.02])
    assert float(iou_distance(large, large, "iou")) == 0.0
    for kind in ("giou", "ciou"):
        assert float(iou_distance(large, large, kind)) == pytest.approx(3.6e-9, abs=1e-10)
        assert float(iou_distance(tiny, tiny, kind)) == pytest.approx(2.5e-4, abs=1e-6)


@pytest.mark.parametrize("kind", ["iou", "giou"])
def test_smooth_where_boxes_overlap(kind: Kind) -> None:
    """Not for CIoU: its aspect weight alpha is published as a constant."""
    student_boxes = boxes([0, 0, 5, 6], [1, 2, 9, 4]).requires_grad_()
    teacher_boxes = boxes([1, 1, 7, 5], [0, 1, 8, 6])
    assert torch.autograd.gradcheck(lambda x: iou_distance(x, teacher_boxes, kind), (student_boxes,))


@pytest.mark.parametrize("kind", KINDS)
def test_crossed_and_flat_boxes_are_finite(kind: Kind) -> None:
    student_boxes = boxes([5, 5, 3, 9], [2, 2, 2, 2], [0, 0, 1e-9, 4]).requires_grad_()
    distance = iou_distance(student_boxes, boxes([2, 2, 8, 8], [2, 2, 2, 2], [0, 0, 4, 4]), kind)
    (gradient,) = torch.autograd.grad(distance.sum(), student_boxes)
    assert bool(torch.isfinite(distance).all())
    assert bool(torch.isfinite(gradient).all())


def test_a_crossed_side_is_pulled_open() -> None:
    """x2 = 3 lies left of x1 = 5; the teacher's box is 2..8, so x2 must go right."""
    student_boxes = boxes([5, 2, 3, 8]).requires_grad_()
    (gradient,) = torch.autograd.grad(iou_distance(student_boxes, boxes([2, 2, 8, 8]), "giou").sum(), student_boxes)
    assert float(gradient[0, 2]) < 0
    assert fix_degenerate_boxes(student_boxes)[0].tolist() == pytest.approx([5, 2, 5.001, 8])
    fine = boxes([0, 0, 4, 7])
    assert torch.equal(fix_degenerate_boxes(fine), fine)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_by_the_teachers_score(
    kind: Kind, row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    """Scores .9, .6 and .04: the last is below min_score, takes no part, but counts in N_q."""
    scores = torch.tensor([0.9, 0.6, 0.04], dtype=torch.float64)
    logits = torch.full((3, 3), -300.0, dtype=torch.float64)
    logits[:, 1] = torch.logit(scores)
    teacher_boxes = boxes([0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8])
    student_boxes = boxes([0, 0, 8, 4], [8, 0, 16, 8], [0, 0, 1, 1]).requires_grad_()
    loss = BoxIoU(BoxIoUConfig(kind=kind), row_spec, row_spec)
    value = loss(rows_side(logits, student_boxes), rows_side(logits, teacher_boxes), no_targets)
    distance = iou_distance(student_boxes.detach(), teacher_boxes, kind)
    expected = (0.9 * distance[0] + 0.6 * distance[1]) / 1.54
    assert float(value.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    (gradient,) = torch.autograd.grad(value, student_boxes)
    assert float(gradient[2].abs().max()) == 0.0


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'iou', 'giou' or 'ciou'"):
        BoxIoUConfig.model_validate({"kind": "diou"})


def test_zero_where_all_scores_are_below_the_threshold(
    row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    """Zero is legitimate here, so the loss declares it and a run does not stop."""
    loss = BoxIoU(BoxIoUConfig(), row_spec, row_spec)
    side = rows_side(torch.full((3, 3), -5.0, dtype=torch.float64))
    assert float(loss(side, side, no_targets)) == 0.0
    assert loss.can_be_zero
