"""Faster R-CNN: proposals in fixed steps, what it samples, what it makes of boxes handed to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, box_iou, nms

from kd_vision.core.batch import ImageBatch, PseudoLabels, Targets
from kd_vision.core.predictions import IGNORED, UNMATCHED
from kd_vision.detectors.torchvision.common import TorchvisionDetector
from kd_vision.detectors.torchvision.proposals import ProposalRule, keep_best, pool_levels, propose
from kd_vision.detectors.torchvision.two_stage import FasterRcnnDetector
from kd_vision.teachers.frozen import FrozenTeacher

Make = Callable[[str], TorchvisionDetector]
NAME = "fasterrcnn_resnet18_fpn"


def crowd(count: int, seed: int) -> torch.Tensor:
    """Boxes in clusters, so that chains of overlaps are long."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(8, 2, generator=generator) * 80
    centres = torch.cat((low, low + 15 + torch.rand(8, 2, generator=generator) * 40), dim=1)
    picked = torch.randint(8, (count,), generator=generator)
    return centres[picked] + torch.randn(count, 4, generator=generator) * 3


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_rounds_over_a_matrix_are_greedy_nms(iou: float, fixed: bool) -> None:
    boxes = torch.stack([crowd(300, seed) for seed in range(4)])
    kept = keep_best(boxes, torch.ones(4, 300, dtype=torch.bool), iou, fixed)
    order = torch.linspace(1, 0, 300)
    for found, own in zip(kept, boxes, strict=True):
        assert sorted(nms(own, order, iou).tolist()) == found.nonzero()[:, 0].tolist()


def test_a_chain_of_boxes_that_drop_each_other() -> None:
    # Each overlaps only the next: the first drops the second, which thus spares the third, and so on.
    low = torch.arange(20.0)[:, None] * 4
    chain = torch.cat((low, torch.zeros(20, 1), low + 10, torch.full((20, 1), 10.0)), dim=1)[None]
    kept = keep_best(chain, torch.ones(1, 20, dtype=torch.bool), 0.4)
    assert kept[0].tolist() == [number % 2 == 0 for number in range(20)]
    allowed = torch.ones(1, 20, dtype=torch.bool)
    allowed[0, 0] = False  # what may not be kept drops nothing
    assert keep_best(chain, allowed, 0.4)[0].tolist() == [number % 2 == 1 for number in range(20)]


def test_proposals_by_hand() -> None:
    # Two levels. Level 1: the best box drops its shadow; a sliver and an unlikely box are none. Level 2: the shadow
    # of a box of another level stays.
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 20, 30], [40, 40, 50, 50], [60, 60, 70, 70], [0, 0, 10, 9.5]]
    )
    scores = torch.tensor([[3.0, 2.0, 5.0, -9.0, 0.5, 1.0]])
    rule = ProposalRule(candidates=4, kept=4, nms_iou=0.7, least_score=0.05, least_side=1e-3)
    found, real = propose(scores, boxes[None], (5, 1), rule)
    assert real[0].tolist() == [True, True, True, False]
    assert found[0, :3].tolist() == boxes[[0, 5, 4]].tolist()
    assert torch.equal(found, propose(scores, boxes[None], (5, 1), rule, fixed=True)[0])


def test_pooling_from_every_level_is_the_packages_pooling() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 512 // stride, 512 // stride, generator=generator) for stride in (4, 8, 16, 32)]
    low = torch.rand(2, 30, 2, generator=generator) * 300
    size = torch.rand(2, 30, 1, generator=generator).pow(2) * 500 + 4
    boxes = torch.cat((low, (low + size).clamp(max=512)), dim=-1)
    package = MultiScaleRoIAlign([str(level) for level in range(4)], 7, 2)
    wanted = package({str(level): each for level, each in enumerate(maps)}, list(boxes), [(512, 512)] * 2)
    torch.testing.assert_close(pool_levels(maps, boxes, (4, 8, 16, 32), 7, 2), wanted)


def test_the_steps_that_export_find_what_inference_finds(make: Make, images: torch.Tensor) -> None:
    detector = cast(FasterRcnnDetector, make(NAME).eval())
    with torch.no_grad():
        state = detector._run(images)
        boxes, scores = detector._final(state)
        fixed_boxes, fixed_scores = detector.dense(images)
    assert int((scores > 0.001).sum()) > 100
    torch.testing.assert_close(fixed_scores, scores)
    torch.testing.assert_close(fixed_boxes, boxes)


def test_the_dense_layout_has_a_row_for_each_proposal_and_class(make: Make, images: torch.Tensor) -> None:
    detector = cast(FasterRcnnDetector, make(NAME).eval())
    with torch.no_grad():
        boxes, scores = detector.dense(images)
        dense = detector.export_module()(images)
    assert dense.shape == (2, 7, 60 * 3)
    row, label = 17, 2
    column = dense[1, :, row * 3 + label]
    left, top, right, bottom = boxes[1, row, label].tolist()
    expected = [
        (left + right) / 2,
        (top + bottom) / 2,
        right - left,
        bottom - top,
        0.0,
        0.0,
        float(scores[1, row, label]),
    ]
    assert column.tolist() == pytest.approx(expected, abs=1e-5)


def test_anchors_are_paired_and_sampled_as_the_package_does(
    make: Make, images: torch.Tensor, pseudo_labels: PseudoLabels
) -> None:
    detector = make(NAME)
    torch.manual_seed(3)
    stage, regions = detector(images, signals=frozenset({"detections"})).assign(pseudo_labels)
    assert (stage.stage, stage.class_agnostic, stage.weight, regions.weight) == ("proposals", True, 0.5, 0.5)
    assert stage.raw_predictions.background is None
    assert stage.raw_predictions.logits.shape[2] == 1
    with torch.no_grad():
        maps = list(detector.net.backbone(images).values())
    anchors = detector.net.rpn.anchor_generator(ImageList(images, [(64, 64)] * 2), maps)[0]
    for image in range(2):
        index, own = stage.matched_idx[image], (pseudo_labels.image_index == image).nonzero()[:, 0]
        assert int((index != IGNORED).sum()) == 256
        overlap = box_iou(pseudo_labels.boxes_xyxy[own], anchors)
        tops = (overlap == overlap.amax(dim=1, keepdim=True)).any(dim=0)
        positive = (overlap.amax(dim=0) >= 0.7) | tops
        assert torch.equal(index >= 0, positive)  # fewer than the 128 there is room for
        assert torch.equal(index[positive], own[overlap.argmax(dim=0)][positive])
        assert float(overlap.amax(dim=0)[index == UNMATCHED].max()) < 0.3


def test_regions_are_proposals_and_the_boxes_themselves(
    make: Make, images: torch.Tensor, pseudo_labels: PseudoLabels
) -> None:
    detector = make(NAME).eval()
    with torch.no_grad():
        detector.net.roi_heads.box_predictor.bbox_pred.weight.zero_()
        # The box of a class moves right by a tenth of its width for each class.
        detector.net.roi_heads.box_predictor.bbox_pred.bias.copy_(
            torch.tensor([[c, 0, 0, 0] for c in range(4)]).flatten()
        )
    torch.manual_seed(3)
    output = detector(images, signals=frozenset({"detections"}))
    stage = output.assign(pseudo_labels)[1]
    assert stage.stage == "regions"
    assert stage.raw_predictions.background is not None
    assert not stage.class_agnostic
    for number in range(3):
        image, label = int(pseudo_labels.image_index[number]), int(pseudo_labels.labels[number])
        box = pseudo_labels.boxes_xyxy[number]
        centre = (box[:2] + box[2:]) / 2
        rows = (stage.raw_predictions.centres_xy[image] == centre).all(dim=1).nonzero()[:, 0]
        assert stage.matched_idx[image, rows].tolist() == [number]
        moved = box + torch.tensor([1.0, 0.0, 1.0, 0.0]) * (label + 1) / 10 * (box[2] - box[0])
        torch.testing.assert_close(stage.raw_predictions.boxes_xyxy[image, rows[0]].detach(), moved)
    quiet = stage.matched_idx == UNMATCHED
    assert int(quiet.sum()) > 50
    best = stage.raw_predictions.logits[quiet].argmax(dim=1) + 1
    size = stage.raw_predictions.boxes_xyxy[quiet][:, 2] - stage.raw_predictions.boxes_xyxy[quiet][:, 0]
    middle = (stage.raw_predictions.boxes_xyxy[quiet][:, 0] + stage.raw_predictions.boxes_xyxy[quiet][:, 2]) / 2
    torch.testing.assert_close(middle - stage.raw_predictions.centres_xy[quiet][:, 0], best / 10 * size)
    # Rows that only fill the table up are left out.
    filled = (stage.raw_predictions.boxes_xyxy == 0).all(dim=-1)
    assert bool((stage.matched_idx[filled] == IGNORED).all())


def test_the_same_generator_gives_the_same_samples(
    make: Make, images: torch.Tensor, pseudo_labels: PseudoLabels
) -> None:
    answer = make(NAME)(images, signals=frozenset({"detections"})).assign
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(answer(pseudo_labels)[0].matched_idx)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_grading_by_a_head_whose_answer_is_known(make: Make, images: torch.Tensor) -> None:
    detector = make(NAME).eval()
    with torch.no_grad():
        predictor = detector.net.roi_heads.box_predictor
        predictor.cls_score.weight.zero_()
        predictor.cls_score.bias.copy_(torch.tensor([1.0, 0.0, 2.0, -1.0]))
        predictor.bbox_pred.weight.zero_()
        offsets = torch.zeros(4, 4)
        offsets[2] = torch.tensor(
            [0.0, 1.0, 0.0, 5.0 * torch.tensor(2.0).log()]
        )  # class 1: down by a tenth, twice as high
        predictor.bbox_pred.bias.copy_(offsets.flatten())
        output = detector(images, signals=frozenset({"regions"}))
    assert output.refine_regions is not None
    graded = output.refine_regions(torch.tensor([[[10.0, 10.0, 30.0, 20.0]], [[-5.0, 20.0, 30.0, 40.0]]]))
    chances = torch.tensor([1.0, 0.0, 2.0, -1.0]).softmax(0)[1:]
    torch.testing.assert_close(graded.class_probs, chances.expand(2, 1, 3))
    # The second box is cut off at the border before it is looked at.
    wanted = torch.tensor([[[10.0, 6.0, 30.0, 26.0]], [[0.0, 12.0, 30.0, 52.0]]])
    torch.testing.assert_close(graded.boxes_xyxy, wanted)


def test_rows_of_the_student_are_its_best_proposals_with_gradient(make: Make, images: torch.Tensor) -> None:
    detector = make(NAME)
    rows = detector(images, signals=frozenset({"regions"})).raw_predictions()
    assert rows is not None
    assert rows.background is not None
    assert rows.logits.shape == (2, 100, 3)
    (rows.logits.sum() + rows.background.sum() + rows.boxes_xyxy.sum()).backward()  # type: ignore[no-untyped-call]
    predictor = detector.net.roi_heads.box_predictor
    assert float(predictor.cls_score.weight.grad.abs().sum()) > 0
    assert float(predictor.bbox_pred.weight.grad.abs().sum()) > 0
    # Proposals are no path for gradients, in the family as here.
    assert detector.net.rpn.head.bbox_pred.weight.grad is None


def test_levels_of_a_mobile_pyramid_have_names_of_their_own(make: Make) -> None:
    spec = make("fasterrcnn_mobilenet_v3_small_fpn").spec
    assert dict(spec.level_strides) == {"P5a": 32, "P5": 32, "P6": 64}
    assert spec.provides == {"features", "regions", "detections"}


def test_a_teacher_of_regions_computes_no_boxes_of_its_own(make: Make, images: torch.Tensor) -> None:
    """They would take proposals, NMS and a second stage, and nothing reads them."""
    detector = make(NAME)
    calls: list[object] = []
    detector.net.roi_heads.box_head.register_forward_hook(lambda *_: calls.append(1))
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    batch = ImageBatch(images, nothing, torch.zeros(len(images)).bool())
    output = FrozenTeacher(detector).signals(batch, frozenset({"regions"}))
    assert (output.raw_predictions, output.postprocess, output.assign, calls) == (None, None, None, [])
    assert output.refine_regions is not None
    output.refine_regions(torch.tensor([[[4.0, 4, 40, 40]]]).expand(len(images), -1, -1))
    assert calls == [1]
