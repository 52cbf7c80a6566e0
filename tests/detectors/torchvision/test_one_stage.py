"""What RetinaNet, FCOS and SSD say of their grids, and how they pair rows with boxes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from kd_vision.core.batch import PseudoLabels
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import IGNORED, ONE_TO_MANY, UNMATCHED
from kd_vision.detectors.torchvision.common import TorchvisionDetector
from kd_vision.detectors.torchvision.config import TorchvisionConfig
from kd_vision.detectors.torchvision.family import build
from kd_vision.detectors.torchvision.one_stage import (
    OneStageDetector,
    geometric_mean_logit,
    one_against_rest,
    sample_centres,
)

Make = Callable[[str], TorchvisionDetector]
ONE_STAGE = ("retinanet_resnet18_fpn", "fcos_resnet18_fpn", "ssdlite320_mobilenet_v3_large")
RETINANET, FCOS, SSDLITE = ONE_STAGE


def anchors_of(detector: TorchvisionDetector, images: torch.Tensor) -> torch.Tensor:
    """The package's own anchors."""
    with torch.no_grad():
        maps = list(detector.net.backbone(images).values())
        found: torch.Tensor = detector.net.anchor_generator(ImageList(images, [(64, 64)] * 2), maps)[0]
    return found


def boxes_for(image: int, *boxes: list[float]) -> PseudoLabels:
    count = len(boxes)
    probs = torch.tensor([[0.9, 0.1, 0.0]]).repeat(count, 1)
    return PseudoLabels(
        torch.full((count,), image), torch.tensor(boxes), probs, torch.ones(count), torch.zeros(count).bool()
    )


@pytest.mark.parametrize("name", ONE_STAGE)
def test_the_sigmoid_of_the_grid_is_the_score(name: str, make: Make, images: torch.Tensor) -> None:
    detector = make(name).eval()
    assert isinstance(detector, OneStageDetector)
    with torch.no_grad():
        grid = detector(images, signals=frozenset({"grid"})).grids[ONE_TO_MANY]
        boxes, scores = detector.dense(images)
    torch.testing.assert_close(grid.logits.sigmoid(), scores)
    torch.testing.assert_close(grid.boxes_xyxy.clamp(0, 64), boxes)
    anchors = anchors_of(detector, images)
    torch.testing.assert_close(grid.points_xy, (anchors[:, :2] + anchors[:, 2:]) / 2)


def test_geometric_mean_logit_against_its_formula_and_at_its_ends() -> None:
    first = torch.linspace(-9, 9, 7, dtype=torch.float64)[:, None]
    second = torch.linspace(-8, 7, 5, dtype=torch.float64)
    score = (first.sigmoid() * second.sigmoid()).sqrt()
    torch.testing.assert_close(geometric_mean_logit(first, second), (score / (1 - score)).log())
    ends = torch.tensor([-300.0, -30.0, 30.0, 300.0], requires_grad=True)
    value = geometric_mean_logit(ends, ends)
    value.sum().backward()  # type: ignore[no-untyped-call]
    # Where both are sure, 1 - sqrt(s s) is e^-z, so the logit is z itself.
    torch.testing.assert_close(value[:3].detach(), torch.tensor([-300.0, -30.0, 30.0]))
    assert ends.grad is not None
    assert bool(ends.grad.isfinite().all())


def test_one_against_rest_against_its_formula_and_at_its_ends() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    probs = logits.softmax(dim=-1)
    torch.testing.assert_close(one_against_rest(logits), (probs / (1 - probs)).log())
    sure = torch.tensor([[80.0, 0.0, -5.0], [0.0, 0.0, -90.0]], requires_grad=True)
    value = one_against_rest(sure)
    torch.testing.assert_close(value[0, 0].detach(), torch.tensor(80.0) - torch.tensor([0.0, -5.0]).logsumexp(0))
    torch.testing.assert_close(value[1, :2].detach(), torch.zeros(2))
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert sure.grad is not None
    assert bool(sure.grad.isfinite().all())


@pytest.mark.parametrize("name", ONE_STAGE)
def test_the_grid_carries_gradients_to_all_of_the_head(name: str, make: Make, images: torch.Tensor) -> None:
    detector = make(name)
    grid = detector(images, signals=frozenset({"grid"})).grids[ONE_TO_MANY]
    (grid.logits.square().sum() + grid.boxes_xyxy.square().sum()).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in detector.net.head.parameters())


def test_retinanet_pairs_by_overlap(make: Make, images: torch.Tensor) -> None:
    detector = make(RETINANET)
    anchors = anchors_of(detector, images)
    inside = ((anchors[:, :2] >= 0) & (anchors[:, 2:] <= 64)).all(dim=1).nonzero()[:, 0]
    chosen = int(inside[0])
    pseudo_labels = boxes_for(1, anchors[chosen].tolist(), [44.0, 44.0, 62.0, 62.0])
    output = detector(images, signals=frozenset({"detections"}))
    (stage,) = output.assign(pseudo_labels)
    overlap = box_iou(pseudo_labels.boxes_xyxy, anchors)
    index = stage.matched_idx[1]
    assert index[chosen] == 0
    best, whose = overlap.max(dim=0)
    tops = (overlap == overlap.amax(dim=1, keepdim=True)).any(dim=0)
    expected = torch.where(best >= 0.5, whose, torch.where(best >= 0.4, IGNORED, UNMATCHED))
    expected = torch.where(tops, whose, expected)
    assert torch.equal(index, expected)
    # The small box reaches 0.5 with no anchor; those that fit it best have it all the same.
    assert overlap[1].max() < 0.5
    assert bool((index == 1).any())
    assert bool((stage.matched_idx[0] == UNMATCHED).all())
    assert bool((stage.quality == 1).all())
    assert stage.raw_predictions.background is None
    assert stage.weight == 1.0


def naive_centres(points: list[list[float]], strides: list[float], boxes: list[list[float]]) -> list[int]:
    """FCOS' rule, point by point."""
    found = []
    for (x, y), stride in zip(points, strides, strict=True):
        own, smallest = UNMATCHED, float("inf")
        for number, (left, top, right, bottom) in enumerate(boxes):
            sides = (x - left, y - top, right - x, bottom - y)
            least = 0 if stride == 8 else 4 * stride
            most = float("inf") if stride == 128 else 8 * stride
            near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < 1.5 * stride
            area = (right - left) * (bottom - top)
            if min(sides) > 0 and near and least < max(sides) < most and area < smallest:
                own, smallest = number, area
        found.append(own)
    return found


def test_centre_sampling_against_the_rule_point_by_point() -> None:
    points, strides, counts = [], [], []
    for stride in (8.0, 16.0, 32.0, 64.0, 128.0):
        steps = [number * stride for number in range(int(256 // stride))]
        points += [[x, y] for y in steps for x in steps]
        strides += [stride] * len(steps) ** 2
        counts.append(len(steps) ** 2)
    half = torch.tensor(strides)[:, None] / 2
    anchors = torch.cat((torch.tensor(points) - half, torch.tensor(points) + half), dim=1)
    low = torch.rand(12, 2, generator=torch.Generator().manual_seed(1)) * 150
    size = torch.rand(12, 2, generator=torch.Generator().manual_seed(2)) * 190 + 6
    boxes = torch.cat((low, (low + size).clamp(max=256)), dim=1)
    found = sample_centres(anchors, counts, boxes, 1.5)
    assert found.tolist() == naive_centres(points, strides, boxes.tolist())
    assert len(found.unique()) > 8


def test_fcos_quality_is_the_root_of_the_centre_ness(make: Make, images: torch.Tensor) -> None:
    # Points of the finest level are multiples of 8: (24, 24) is the centre, (16, 24) is off by half the reach.
    output = make(FCOS)(images, signals=frozenset({"detections"}))
    (stage,) = output.assign(boxes_for(0, [8.0, 8.0, 40.0, 40.0]))
    centre, left = 3 * 8 + 3, 3 * 8 + 2
    assert stage.raw_predictions.centres_xy[0, [centre, left]].tolist() == [[24.0, 24.0], [16.0, 24.0]]
    assert stage.matched_idx[0, [centre, left]].tolist() == [0, 0]
    assert stage.quality[0, centre] == 1.0
    torch.testing.assert_close(stage.quality[0, left], torch.tensor((8 / 24) ** 0.25))
    assert bool((stage.quality[stage.matched_idx < 0] == 0).all())


def test_ssd_looks_at_three_hard_negatives_for_each_row_with_a_box(make: Make, images: torch.Tensor) -> None:
    detector = make(SSDLITE)
    pseudo_labels = boxes_for(1, [4.0, 6.0, 36.0, 40.0], [2.0, 30.0, 22.0, 62.0])
    (stage,) = detector(images, signals=frozenset({"detections"})).assign(pseudo_labels)
    index = stage.matched_idx[1]
    overlap = box_iou(pseudo_labels.boxes_xyxy, anchors_of(detector, images))
    positive = index >= 0
    assert bool((index[overlap.argmax(dim=1)] == torch.arange(2)).all())
    assert int(positive.sum()) >= int((overlap.amax(dim=0) >= 0.5).sum()) > 2
    assert int((index == UNMATCHED).sum()) == 3 * int(positive.sum())
    assert stage.raw_predictions.background is not None
    logits = torch.cat((stage.raw_predictions.background[1][:, None], stage.raw_predictions.logits[1]), dim=1)
    silence = -logits.log_softmax(dim=1)[:, 0]
    assert silence[index == UNMATCHED].min() >= silence[index == IGNORED].max()
    # An image without boxes has no rows with a box, so the family looks at nothing there.
    assert bool((stage.matched_idx[0] == IGNORED).all())


@pytest.mark.parametrize("name", [RETINANET, SSDLITE])
def test_grading_an_anchor_by_a_head_that_moves_nothing(name: str, make: Make, images: torch.Tensor) -> None:
    detector = make(name).eval()
    for module in detector.net.head.regression_head.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels % 4 == 0 and module.groups == 1:
            torch.nn.init.zeros_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    anchors = anchors_of(detector, images)
    with torch.no_grad():
        output = detector(images, signals=frozenset({"grid", "regions"}))
    far = torch.tensor([2000.0, 2000.0, 2010.0, 2010.0])
    graded = output.refine_regions(torch.stack((anchors[5], anchors[40], far)).expand(2, 3, 4))
    grid = output.grids[ONE_TO_MANY]
    for place, row in enumerate((5, 40)):
        same = (anchors == anchors[row]).all(dim=1)
        torch.testing.assert_close(graded.boxes_xyxy[:, place], anchors[row].expand(2, 4))
        assert float(graded.class_probs[0, place].max()) == pytest.approx(
            float(grid.logits[0, same].sigmoid().max()), abs=1e-6
        )
    assert float(graded.class_probs[:, 2].max()) == 0.0


@pytest.fixture(scope="module")
def ssd300() -> TorchvisionDetector:
    return build(TorchvisionConfig(model="ssd300_vgg16"), ("car", "bus"), "student").eval()


def test_ssd300_has_six_levels_of_uneven_size_and_says_when_an_image_is_too_small(ssd300: TorchvisionDetector) -> None:
    with torch.no_grad():
        output = ssd300(torch.rand(1, 3, 300, 300), signals=frozenset({"features", "grid"}))
        smallest = ssd300(torch.rand(1, 3, 268, 268), signals=frozenset({"features"}))
        with pytest.raises(RequestError) as caught:
            ssd300(torch.rand(1, 3, 264, 264))
    assert [each.shape[-1] for each in output.features.values()] == [38, 19, 10, 5, 3, 1]
    assert [each.shape[-1] for each in smallest.features.values()][-1] == 1
    assert output.grids[ONE_TO_MANY].logits.shape == (1, 8732, 2)
    assert dict(ssd300.spec.level_anchors) == {"P3": 4, "P4": 6, "P5": 6, "P6": 6, "P7": 4, "P8": 4}
    assert {k: v.shape[1] for k, v in output.features.items()} == dict(ssd300.spec.level_channels)
    assert caught.value.problems == (
        "ssd300_vgg16: images of 264x264 pixels are too small for its last level; use an image_size of 268 or more "
        "(it is designed for 300)",
    )
