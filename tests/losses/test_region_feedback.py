from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import RawPredictions, RoIPredictions, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.region_feedback import RegionFeedback, RegionFeedbackConfig

MakeSide = Callable[..., Signals]
FAR = -300.0


@pytest.fixture
def pair(row_spec: DetectorSpec) -> tuple[DetectorSpec, DetectorSpec]:
    spec = replace(row_spec, classes=("car", "bus"), provides=frozenset({"regions"}))
    return spec, spec


def student_of(logits: Tensor, background: Tensor | None = None) -> Signals:
    """Rows of one image with boxes of 8 x 8, one every 8 px."""
    left = 8.0 * torch.arange(logits.shape[1], dtype=torch.float64)
    boxes = torch.stack([left, torch.zeros_like(left), left + 8, torch.full_like(left, 8.0)], dim=-1)[None]
    return Signals(raw_predictions=lambda: RawPredictions(logits, boxes, (boxes[..., :2] + 4).float(), background))


def test_the_boxes_of_the_highest_score_are_proposed_and_refined(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    """Rows 2 and 0 of four score highest; their boxes go to the teacher detached, and only they have a gradient."""
    logits = torch.tensor([[[1.0, FAR], [FAR, -1.0], [FAR, 2.0], [-3.0, FAR]]], dtype=torch.float64).requires_grad_()
    proposed: list[Tensor] = []

    def refine(boxes: Tensor) -> RoIPredictions:
        proposed.append(boxes)
        probs = torch.tensor([[[0.0, 0.8], [0.25, 0.0]]])
        return RoIPredictions(probs, boxes + torch.tensor([4.0, 0, 4.0, 0]))

    config = RegionFeedbackConfig(boxes=2, class_gain=1.0, box_gain=3.0, kind="iou")
    value = RegionFeedback(config, *pair)(student_of(logits), Signals(refine_regions=refine), no_targets)
    assert proposed[0].tolist() == [[[16.0, 0, 24, 8], [0.0, 0, 8, 8]]]
    assert not proposed[0].requires_grad

    def kl(q: float, s: float) -> float:
        p = 1 / (1 + math.exp(-s))
        return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))

    # Sum of best probabilities 1.05; half-shifted boxes have IoU 1/3.
    expected = (kl(0.8, 2.0) + kl(0.25, 1.0) + 3.0 * 1.05 * 2 / 3) / 1.05
    assert float(value.detach()) == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[0, [1, 3]].abs().max() == 0.0
    assert float(gradient[0, 0, 0]) == pytest.approx((1 / (1 + math.exp(-1)) - 0.25) / 1.05, rel=1e-6)


def test_the_score_of_a_false_positive_goes_down(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Where the teacher predicts background there is no box term; the normaliser is at least 1."""
    logits = torch.tensor([[[3.0, FAR]]], dtype=torch.float64).requires_grad_()
    nothing = Signals(refine_regions=lambda boxes: RoIPredictions(torch.zeros(1, 1, 2), boxes + 100))
    value = RegionFeedback(RegionFeedbackConfig(class_gain=1.0), *pair)(student_of(logits), nothing, no_targets)
    assert float(value.detach()) == pytest.approx(math.log1p(math.exp(3.0)), rel=1e-9)
    (gradient,) = torch.autograd.grad(value, logits)
    assert float(gradient[0, 0, 0]) > 0.9


def test_softmax_head_proposes_by_probability_and_learns_the_distribution(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    """Row 0 has the larger logit and more background; row 1 is proposed and predicts (1/4, 1/2, 1/4) already."""
    logits = torch.tensor([[[2.0, 0.0], [math.log(2.0), 0.0]]], dtype=torch.float64)
    background = torch.tensor([[5.0, 0.0]], dtype=torch.float64)
    proposed: list[Tensor] = []

    def refine(boxes: Tensor) -> RoIPredictions:
        proposed.append(boxes)
        return RoIPredictions(torch.tensor([[[0.5, 0.25]]]), boxes)

    config = RegionFeedbackConfig(boxes=1)
    value = RegionFeedback(config, *pair)(student_of(logits, background), Signals(refine_regions=refine), no_targets)
    assert proposed[0].tolist() == [[[8.0, 0.0, 16.0, 8.0]]]
    assert float(value) == pytest.approx(0.0, abs=1e-7)


def test_a_softmax_head_of_mostly_background_is_divided_by_a_quarter_of_its_rows(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    """Eight uniform rows, log 3 each, where the teacher predicts background: 8 log 3 / (8 / 4)."""
    student = student_of(torch.zeros(1, 8, 2, dtype=torch.float64), torch.zeros(1, 8, dtype=torch.float64))
    nothing = Signals(refine_regions=lambda boxes: RoIPredictions(torch.zeros(1, 8, 2), boxes))
    value = RegionFeedback(RegionFeedbackConfig(class_gain=1.0), *pair)(student, nothing, no_targets)
    assert float(value) == pytest.approx(4 * math.log(3.0), rel=1e-6)


def test_a_share_of_the_boxes_is_drawn_at_random(
    specs: tuple[DetectorSpec, DetectorSpec], make_side: MakeSide, no_targets: Targets
) -> None:
    """Of 80 rows 10 are proposed: always the 5 of the highest score, and 5 others that change with the seed."""
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    assert student.raw_predictions is not None
    assert teacher.refine_regions is not None
    proposed: list[Tensor] = []

    def refine(boxes: Tensor) -> RoIPredictions:
        proposed.append(boxes)
        assert teacher.refine_regions is not None
        return teacher.refine_regions(boxes)

    loss = RegionFeedback(RegionFeedbackConfig(boxes=10, random_share=0.5), *specs)
    for seed in range(3):
        torch.manual_seed(seed)
        loss(student, replace(teacher, refine_regions=refine), no_targets)
    rows = student.raw_predictions()
    top = rows.boxes_xyxy[0, rows.logits.amax(dim=-1)[0].topk(5).indices]
    drawn = set()
    for boxes in proposed:
        assert torch.equal(boxes[0, :5], top)
        assert len({tuple(box) for box in boxes[0].tolist()}) == 10
        drawn.add(tuple(map(tuple, boxes[0, 5:].tolist())))
    assert len(drawn) == 3


def test_a_box_refined_to_no_extent_is_no_target(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Both boxes of row 0 are a thousandth of a pixel wide, where the slope of overlap is a thousandfold."""
    student = student_of(torch.zeros(1, 2, 2, dtype=torch.float64))
    assert student.raw_predictions is not None
    rows = student.raw_predictions()
    boxes = rows.boxes_xyxy.clone()
    boxes[0, 0, 2] = boxes[0, 0, 0] + 1e-3
    boxes.requires_grad_()
    student = Signals(raw_predictions=lambda: replace(rows, boxes_xyxy=boxes))
    moved = Signals(
        refine_regions=lambda proposed: RoIPredictions(
            torch.full((1, 2, 2), 0.9), proposed + torch.tensor([5e-4, 0, 5e-4, 0])
        )
    )
    value = RegionFeedback(RegionFeedbackConfig(), *pair)(student, moved, no_targets)
    (gradient,) = torch.autograd.grad(value, boxes)
    assert float(gradient[0, 0].abs().max()) == 0.0
    assert 0.0 < float(gradient[0, 1].abs().max()) < 10.0


def test_fewer_rows_than_boxes(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    logits = torch.zeros(1, 3, 2, dtype=torch.float64)
    half = Signals(refine_regions=lambda boxes: RoIPredictions(torch.full((1, 3, 2), 0.5), boxes))
    value = RegionFeedback(RegionFeedbackConfig(boxes=64), *pair)(student_of(logits), half, no_targets)
    assert float(value) == pytest.approx(0.0, abs=1e-6)


def test_mistakes_are_named(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    with pytest.raises(RequestError, match="the signal 'regions' of the student was not computed"):
        RegionFeedback(RegionFeedbackConfig(), *pair)(Signals(), Signals(), no_targets)
    with pytest.raises(ValueError, match="are both 0: nothing would be taught"):
        RegionFeedbackConfig(class_gain=0.0, box_gain=0.0)
