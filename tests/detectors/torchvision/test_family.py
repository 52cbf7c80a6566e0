"""Every kind of model against the package's own forward pass, and the contract that they all share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision

from kd_vision.core.batch import ImageBatch, Letterbox, PseudoLabels, Targets
from kd_vision.core.predictions import PredictOptions
from kd_vision.detectors import FAMILIES, family_of
from kd_vision.detectors.torchvision.common import TorchvisionDetector
from kd_vision.detectors.torchvision.config import STOCK, TorchvisionConfig, known_models, parts_of
from kd_vision.detectors.torchvision.family import build, rebuild
from kd_vision.detectors.torchvision.models import _faster_rcnn, _retinanet

Make = Callable[[str], TorchvisionDetector]

ONE_STAGE = ("retinanet_resnet18_fpn", "fcos_resnet18_fpn", "ssdlite320_mobilenet_v3_large")
MODELS = (*ONE_STAGE, "fasterrcnn_resnet18_fpn")
EVERYTHING = frozenset({"features", "grid", "regions", "detections"})
SIZE = 64


def listed(truth: Targets) -> list[dict[str, torch.Tensor]]:
    """Ground truth in the package's own words."""
    found = []
    for image in range(2):
        own = truth.image_index == image
        found.append({"boxes": truth.boxes_xyxy[own], "labels": truth.labels[own] + 1})
    return found


def table(labels: Any, scores: Any, boxes: Any) -> npt.NDArray[np.float64]:
    """Detections as sorted rows, so that ties do not count."""
    rows = np.concatenate([np.asarray(labels)[:, None], np.asarray(scores)[:, None], np.asarray(boxes)], axis=1)
    ordered: npt.NDArray[np.float64] = rows[np.lexsort(np.round(rows, 3).T[::-1])]
    return ordered


@pytest.mark.parametrize("name", MODELS)
def test_task_losses_are_the_packages_own(
    name: str, make: Make, own_model: Any, images: torch.Tensor, truth: Targets
) -> None:
    detector = make(name)
    net = own_model(detector).train()
    torch.manual_seed(1)
    theirs = net(list(images), listed(truth))
    torch.manual_seed(1)
    for _ in images:
        torch.empty(1).uniform_()  # the package draws a size for each image, even from one
    ours = detector(images, truth).task_losses
    assert len(ours) == len(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key.removeprefix("loss_")], value)


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_the_packages_own(name: str, make: Make, own_model: Any, images: torch.Tensor) -> None:
    detector = make(name)
    with torch.no_grad():
        detector(images)  # statistics of the norms are no longer those of a fresh model
    detector.eval()
    net = own_model(detector).eval()
    if detector.arch.proposals is not None:
        net.rpn._post_nms_top_n["testing"] = detector.arch.proposals
    for part in (net, getattr(net, "roi_heads", net)):
        part.score_thresh, part.nms_thresh, part.detections_per_img = 0.005, 0.5, 100_000
        part.topk_candidates = 100_000
    with torch.no_grad():
        theirs = net(list(images))
    ours = detector.detect(images, PredictOptions(0.005, 0.5, 100_000))
    for found, wanted in zip(ours, theirs, strict=True):
        real = wanted["labels"] > 0  # sigmoid heads rank their unused column as well
        reference = table(wanted["labels"][real] - 1, wanted["scores"][real], wanted["boxes"][real])
        assert len(reference) > 20
        np.testing.assert_allclose(table(found.labels, found.scores, found.boxes_xyxy), reference, atol=1e-4)
        assert found.class_probs is not None
        np.testing.assert_allclose(found.class_probs[np.arange(len(found)), found.labels], found.scores)


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_reduce_the_loss(name: str, make: Make, images: torch.Tensor, truth: Targets) -> None:
    detector = make(name)
    optimiser = torch.optim.SGD(detector.parameters(), lr=0.003)
    values = []
    for _ in range(3):
        torch.manual_seed(0)
        loss = torch.stack(list(detector(images, truth).task_losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[2] < values[1] < values[0]
    assert all(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_an_unlabelled_image_takes_no_part(name: str, make: Make, images: torch.Tensor, truth: Targets) -> None:
    detector = make(name).eval()
    second = truth.image_index == 1
    alone = Targets(torch.zeros(2, dtype=torch.int64), truth.labels[second], truth.boxes_xyxy[second])
    with torch.no_grad():
        torch.manual_seed(1)
        reference = detector(images[1:], alone).task_losses
        torch.manual_seed(1)
        masked = detector(images, truth, torch.tensor([False, True])).task_losses
        assert detector(images, truth, torch.tensor([False, False])).task_losses == {}
    torch.testing.assert_close(dict(masked), dict(reference))


@pytest.mark.parametrize("name", MODELS)
def test_images_without_boxes_teach_silence_and_nothing_infinite(name: str, make: Make, images: torch.Tensor) -> None:
    detector = make(name)
    flat = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[5.0, 5.0, 5.0, 9.0]]))
    none = Targets(flat.image_index[:0], flat.labels[:0], flat.boxes_xyxy[:0])
    for each in (flat, none):
        torch.manual_seed(0)
        losses = detector(images, each).task_losses
        total = torch.stack(list(losses.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        assert bool(total.isfinite())
        assert all(bool(p.grad.isfinite().all()) for p in detector.parameters() if p.grad is not None)
        assert all(float(value) == 0.0 for key, value in losses.items() if "box" in key)


@pytest.mark.parametrize("name", MODELS)
def test_handed_boxes_may_be_none(name: str, make: Make, images: torch.Tensor) -> None:
    detector = make(name)
    index, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)
    pseudo_labels = PseudoLabels(index, torch.zeros(0, 4), none, torch.zeros(0), torch.zeros(0).bool())
    output = detector(images, signals=EVERYTHING)
    assert output.assign is not None
    assert output.refine_regions is not None
    for stage in output.assign(pseudo_labels):
        assert not bool((stage.matched_idx >= 0).any())
    assert output.refine_regions(torch.zeros(2, 0, 4)).class_probs.shape == (2, 0, 3)


@pytest.mark.parametrize("name", MODELS)
def test_a_teacher_in_half_precision_speaks_finite_words(
    name: str, make: Make, images: torch.Tensor, truth: Targets, pseudo_labels: PseudoLabels
) -> None:
    detector = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(images, truth, signals=EVERYTHING)
        assert output.postprocess is not None
        assert output.assign is not None
        assert output.refine_regions is not None
        stages = output.assign(pseudo_labels)
        graded = output.refine_regions(truth.boxes_xyxy[:2][:, None])
        found = output.postprocess(PredictOptions()).per_image()
    assert all(bool(value.isfinite()) for value in output.task_losses.values())
    assert all(bool(stage.raw_predictions.boxes_xyxy.isfinite().all()) for stage in stages)
    assert bool(graded.boxes_xyxy.isfinite().all())
    assert all(np.isfinite(one.boxes_xyxy).all() for one in found)


@pytest.mark.parametrize("name", [*MODELS, "fasterrcnn_mobilenet_v3_small_fpn", "fcos_mobilenet_v2_fpn"])
def test_spec_says_what_the_channels_hold(name: str, make: Make) -> None:
    detector = make(name).eval()
    size = 256
    with torch.no_grad():
        output = detector(torch.rand(1, 3, size, size), signals=EVERYTHING)
    spec = detector.spec
    assert {level: each.shape[1] for level, each in output.features.items()} == dict(spec.level_channels)
    assert {level: size / each.shape[2] for level, each in output.features.items()} == {
        level: min(stride, size) for level, stride in spec.level_strides.items()
    }
    assert ("grid" in spec.provides) == bool(output.grids)
    for grid in output.grids.values():
        rows = [f.shape[2] * f.shape[3] * spec.level_anchors[level] for level, f in output.features.items()]
        assert grid.logits.shape == (1, sum(rows), 3)
        assert grid.strides.unique_consecutive(return_counts=True)[1].tolist() == rows
    assert output.raw_predictions is not None
    assert output.raw_predictions().logits.shape[2] == 3


@pytest.mark.parametrize("name", MODELS)
def test_eval_moves_nothing_and_a_copy_is_the_same(name: str, make: Make, images: torch.Tensor) -> None:
    detector = make(name)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    letterboxes = (Letterbox(128, 128, 0.5, 0.5, 0, 0),) * 2
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    batch = ImageBatch((images * 255).round().byte(), nothing, torch.zeros(2).bool(), (1, 2), letterboxes)
    found = detector.predict(batch)
    twin = copy.deepcopy(detector).predict(batch)
    assert detector.training
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert np.array_equal(found[0].boxes_xyxy, twin[0].boxes_xyxy)
    assert found[0].boxes_xyxy.max() > 64.0  # pixels of the original image, twice the size
    assert found[0].boxes_xyxy.max() <= 128.0


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_read_back_whole(name: str, make: Make, images: torch.Tensor, tmp_path: Path) -> None:
    detector = make(name)
    with torch.no_grad():
        detector(images)
    path = tmp_path / "student.pt"
    detector.save(path, {"run": "test"})
    content = torch.load(path, weights_only=True)
    assert content["kd_vision"]["run"] == "test"
    assert family_of(path) == "torchvision"
    again = build(TorchvisionConfig(weights=path), None, "teacher")
    remade = rebuild(detector.architecture())
    remade.load_state_dict(detector.state_dict())
    wanted = detector.detect(images)[0]
    assert len(wanted) > 0
    for other in (again, remade):
        assert other.spec == detector.spec
        assert np.array_equal(other.detect(images)[0].scores, wanted.scores)
        assert np.array_equal(other.detect(images)[0].boxes_xyxy, wanted.boxes_xyxy)


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_the_packages_builder_loads_what_we_save(name: str, make: Make, tmp_path: Path) -> None:
    make(name).save(tmp_path / "student.pt", {})
    net = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    state = torch.load(tmp_path / "student.pt", weights_only=True)["state_dict"]
    assert not any(net.load_state_dict(state, strict=True))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("retinanet_resnet50_fpn", _retinanet),
        ("retinanet_resnet50_fpn_v2", _retinanet),
        ("fasterrcnn_resnet50_fpn", _faster_rcnn),
        ("fasterrcnn_resnet50_fpn_v2", _faster_rcnn),
        ("fasterrcnn_mobilenet_v3_large_fpn", _faster_rcnn),
    ],
)
def test_other_backbones_get_the_pattern_of_the_packages_models(name: str, ours: Callable[..., Any]) -> None:
    with torch.device("meta"):
        stock = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
        same = ours(parts_of(name), 4)
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (stock, same)]
    assert shapes[0] == shapes[1]
    generators = [getattr(net, "rpn", net).anchor_generator for net in (stock, same)]
    assert generators[0].sizes == generators[1].sizes
    assert repr(stock.backbone.fpn) == repr(same.backbone.fpn)


def test_every_name_stands_for_a_backbone_of_the_package() -> None:
    names = known_models()
    assert set(STOCK) <= set(names)
    assert {"retinanet_resnet18_fpn", "fcos_resnet34_fpn", "fasterrcnn_mobilenet_v2_fpn"} <= set(names)
    backbones = set(torchvision.models.list_models(torchvision.models))
    assert {parts_of(name).backbone for name in names} <= backbones
    assert "torchvision" in FAMILIES
