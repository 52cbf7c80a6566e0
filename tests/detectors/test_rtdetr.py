"""RT-DETR against the family's own inference, losses and matcher, with a network of 89 thousand parameters."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou
from ultralytics import RTDETR, YOLO
from ultralytics.models.utils.loss import RTDETRDetectionLoss

from kd_vision.core.batch import ImageBatch, Letterbox, PseudoLabels, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import UNMATCHED, Detections, PredictOptions
from kd_vision.detectors.boxes import cxcywh_to_xyxy, normalized_cxcywh
from kd_vision.detectors.ultralytics.config import UltralyticsConfig, known_models
from kd_vision.detectors.ultralytics.family import build, rebuild
from kd_vision.detectors.ultralytics.rtdetr import RtdetrDetector
from kd_vision.export import load_exporter
from kd_vision.export.base import export_detector
from kd_vision.export.onnx import OnnxExportConfig
from kd_vision.teachers.frozen import FrozenTeacher
from kd_vision.teachers.onnx import OnnxPredictor

TINY = Path(__file__).parents[1] / "data" / "rtdetr-tiny.yaml"
CLASSES = ("car", "bus", "person")
QUERIES = 50
EVERYTHING = PredictOptions(score_threshold=0.0)
BOXES = frozenset({"detections"})


def lively(classes: tuple[str, ...] = CLASSES, channels: int = 3) -> RtdetrDetector:
    """An untrained detector whose boxes and scores differ: heads lifted off their zeros, BatchNorm settled."""
    torch.manual_seed(0)
    detector = build(UltralyticsConfig(model=str(TINY), input_channels=channels), classes, "student")
    head = detector.head
    for branch in (head.enc_bbox_head, *head.dec_bbox_head):
        torch.nn.init.normal_(branch.layers[-1].weight, std=0.5)
    for branch in (head.enc_score_head, *head.dec_score_head):
        torch.nn.init.normal_(branch.weight, std=0.3)
        torch.nn.init.constant_(branch.bias, -1.0)
    detector.train()
    with torch.no_grad():
        for _ in range(20):
            detector(torch.rand(4, channels, 64, 64))
    return detector


def frozen_norms(detector: RtdetrDetector) -> RtdetrDetector:
    """In training mode, but what it says of an image does not depend on its neighbours."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return detector


def images(count: int = 3, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 64, 64, generator=torch.Generator().manual_seed(1))


def targets() -> Targets:
    boxes = [[4.0, 6.0, 30.0, 40.0], [20.0, 8.0, 60.0, 50.0], [2.0, 2.0, 22.0, 20.0]]
    return Targets(torch.tensor([0, 1, 1]), torch.tensor([0, 2, 1]), torch.tensor(boxes))


def hard(truth: Targets) -> PseudoLabels:
    probs = torch.nn.functional.one_hot(truth.labels, len(CLASSES)).float()
    count = len(truth)
    return PseudoLabels(
        truth.image_index, truth.boxes_xyxy, probs, torch.ones(count), torch.zeros(count, dtype=torch.bool)
    )


def family_batch(truth: Targets, count: int = 3) -> dict[str, torch.Tensor]:
    low, high = truth.boxes_xyxy[:, :2] / 64, truth.boxes_xyxy[:, 2:] / 64
    return {
        "img": images(count),
        "batch_idx": truth.image_index,
        "cls": truth.labels[:, None],
        "bboxes": torch.cat(((low + high) / 2, high - low), dim=1),
    }


def test_features_are_what_the_decoder_takes() -> None:
    detector = lively().eval()
    with torch.no_grad():
        output = detector(images(), signals=frozenset({"features", "detections"}))
        again = detector.head(list(output.features.values()))[0]
        whole = detector.net(images())[0]
    assert {k: v.shape[1] for k, v in output.features.items()} == {"P3": 16, "P4": 24, "P5": 32}
    assert {k: 64 // v.shape[2] for k, v in output.features.items()} == {"P3": 8, "P4": 16, "P5": 32}
    torch.testing.assert_close(again, whole)
    assert dict(detector.spec.level_channels) == {"P3": 16, "P4": 24, "P5": 32}
    assert dict(detector.spec.level_strides) == {"P3": 8, "P4": 16, "P5": 32}
    assert detector.spec.provides == {"features", "regions", "detections"}
    assert detector.spec.end_to_end
    assert detector.spec.size_multiple == 32


def test_nothing_is_given_that_was_not_asked_for() -> None:
    output = lively().eval()(images())
    assert (output.postprocess, output.assign, output.raw_predictions, output.refine_regions) == (
        None,
        None,
        None,
        None,
    )
    assert not output.features
    assert not output.grids
    assert not output.task_losses


def test_final_boxes_are_those_of_the_family() -> None:
    detector = lively().eval()
    shown = images().repeat(1, 1, 1, 2)[..., :96]
    with torch.no_grad():
        rows = detector.net(shown)[0]
        found = detector(shown, signals=BOXES).postprocess(EVERYTHING).per_image()
    sides = torch.tensor([96.0, 64.0, 96.0, 64.0])
    for one, expected in zip(found, rows):
        assert len(one) == QUERIES
        torch.testing.assert_close(torch.from_numpy(one.boxes_xyxy), cxcywh_to_xyxy(expected[:, :4]) * sides)
        torch.testing.assert_close(torch.from_numpy(one.scores), expected[:, 4])
        assert one.labels.tolist() == expected[:, 5].tolist()
        np.testing.assert_array_equal(one.class_probs[np.arange(QUERIES), one.labels], one.scores)
    some = detector(shown, signals=BOXES).postprocess(PredictOptions(score_threshold=0.5, max_detections=7)).per_image()
    assert [len(one) for one in some] == [min(7, int((rows[i, :, 4] > 0.5).sum())) for i in range(3)]


@pytest.mark.parametrize("training", [True, False])
def test_task_losses_are_the_familys_own(training: bool) -> None:
    detector = lively().train(training)
    twin = copy.deepcopy(detector.net)
    twin.nc = len(CLASSES)  # the family's trainer sets it
    torch.manual_seed(7)  # the noise of the denoising queries
    losses = detector(images(), targets()).task_losses
    torch.manual_seed(7)
    total, shown = twin.loss(family_batch(targets()))
    torch.testing.assert_close(torch.stack(list(losses.values())).sum(), total)
    assert list(losses) == ["class", "l1", "giou", "earlier", "denoising"]
    torch.testing.assert_close([losses["giou"], losses["class"], losses["l1"]], list(shown.values()))
    assert (losses["denoising"].item() > 0) == training


def test_the_order_of_boxes_does_not_matter() -> None:
    detector = frozen_norms(lively())
    truth, order = targets(), torch.tensor([2, 0, 1])
    mixed = Targets(truth.image_index[order], truth.labels[order], truth.boxes_xyxy[order])
    detector.head.num_denoising = 0  # whose noise depends on the order within an image
    first, second = detector(images(), truth).task_losses, detector(images(), mixed).task_losses
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])


def test_unlabelled_images_take_no_part_in_the_task_losses() -> None:
    detector = frozen_norms(lively())
    truth = targets()
    torch.manual_seed(3)
    both = detector(images(), truth, torch.tensor([False, True, False])).task_losses
    alone = Targets(torch.tensor([0, 0]), truth.labels[1:], truth.boxes_xyxy[1:])
    torch.manual_seed(3)
    one = detector(images()[1:2], alone).task_losses
    for name, value in one.items():
        torch.testing.assert_close(both[name], value)
    assert float(both["denoising"].detach()) > 0
    everyone = detector(images(), truth).task_losses
    assert float(everyone["class"].detach()) != pytest.approx(float(both["class"].detach()))
    assert not detector(images(), truth, torch.zeros(3, dtype=torch.bool)).task_losses


def test_a_batch_without_boxes_has_finite_losses_and_gradients() -> None:
    detector = lively().train()
    none = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    losses = detector(images(), none).task_losses
    assert {name: float(losses[name].detach()) for name in ("l1", "giou", "denoising")} == {
        "l1": 0,
        "giou": 0,
        "denoising": 0,
    }
    assert float(losses["class"].detach()) > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


def test_denoising_draws_from_the_global_generator_alone() -> None:
    detector = frozen_norms(lively())

    def noise(seed: int) -> float:
        torch.manual_seed(seed)
        return float(detector(images(), targets()).task_losses["denoising"].detach())

    assert noise(1) == noise(1) != noise(2)


def test_each_stage_answers_for_hard_truth_as_the_familys_matcher() -> None:
    detector = frozen_norms(lively())
    truth = targets()
    output = detector(images(), truth, signals=BOXES)
    stages = output.assign(hard(truth))
    assert [stage.stage for stage in stages] == ["encoder", "layer 0", "layer 1", "layer 2"]
    assert [stage.weight for stage in stages] == [0.25] * 4
    matcher = RTDETRDetectionLoss(nc=len(CLASSES)).matcher
    batch = family_batch(truth)
    for stage in stages:
        assert stage.raw_predictions.logits.shape == (3, QUERIES, 3)  # the denoising queries are not among them
        boxes = normalized_cxcywh(stage.raw_predictions.boxes_xyxy.detach(), (64, 64))
        pairs = matcher(boxes, stage.raw_predictions.logits, batch["bboxes"], truth.labels, [1, 2, 0])
        expected = torch.full((3, QUERIES), UNMATCHED)
        for image, (query, position) in enumerate(pairs):
            expected[image, query] = position
        assert torch.equal(stage.matched_idx, expected)
        for image, query in (stage.matched_idx != UNMATCHED).nonzero().tolist():
            given = truth.boxes_xyxy[stage.matched_idx[image, query]][None]
            overlap = box_iou(stage.raw_predictions.boxes_xyxy[image, query][None].detach(), given)
            assert float(stage.quality[image, query].detach()) == pytest.approx(float(overlap), abs=1e-5)
        assert float(stage.quality[stage.matched_idx == UNMATCHED].abs().sum()) == 0


def test_nothing_handed_in_is_background_everywhere() -> None:
    detector = lively().train()
    none = hard(Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)))
    for stage in detector(images(), signals=BOXES).assign(none):
        assert (stage.matched_idx == UNMATCHED).all()
        assert float(stage.quality.sum()) == 0


def test_more_boxes_than_queries_leave_some_without_one() -> None:
    detector = lively().train()
    low = torch.rand(70, 2, generator=torch.Generator().manual_seed(0)) * 40
    crowd = Targets(torch.ones(70, dtype=torch.int64), torch.arange(70) % 3, torch.cat((low, low + 20), dim=1))
    for stage in detector(images(), signals=BOXES).assign(hard(crowd)):
        assert stage.matched_idx[1].unique().numel() == QUERIES
        assert (stage.matched_idx[[0, 2]] == UNMATCHED).all()
        assert stage.matched_idx.max() < 70


def test_in_evaluation_the_last_layer_answers_beside_the_encoder() -> None:
    output = lively().eval()(images(), signals=frozenset({"detections", "regions"}))
    stages = output.assign(hard(targets()))
    assert [(stage.stage, stage.weight) for stage in stages] == [("encoder", 0.5), ("layer 2", 0.5)]
    torch.testing.assert_close(stages[1].raw_predictions.boxes_xyxy, output.raw_predictions().boxes_xyxy)


def test_every_stage_teaches_the_neck() -> None:
    detector = lively().train()
    output = detector(images(), signals=frozenset({"features", "detections"}))
    for stage in output.assign(hard(targets())):
        paired = stage.matched_idx >= 0
        value = stage.raw_predictions.logits[paired].sum() + stage.raw_predictions.boxes_xyxy[paired].sum()
        gradients = torch.autograd.grad(value, list(output.features.values()), retain_graph=True)
        assert sum(float(g.abs().sum()) for g in gradients) > 0


def test_rows_are_the_last_layer_and_sit_where_their_boxes_are() -> None:
    detector = lively().train()
    output = detector(images(), targets(), signals=frozenset({"detections", "regions"}))
    last = output.assign(hard(targets()))[-1].raw_predictions
    assert torch.equal(output.raw_predictions().logits, last.logits)
    boxes = output.raw_predictions().boxes_xyxy.detach()
    torch.testing.assert_close(output.raw_predictions().centres_xy, (boxes[..., :2] + boxes[..., 2:]) / 2)
    assert not output.raw_predictions().centres_xy.requires_grad


def test_a_box_is_graded_by_the_query_that_fits_it_best() -> None:
    detector = lively().eval()
    with torch.no_grad():
        output = detector(images(), signals=frozenset({"regions"}))
        mine, scores = output.raw_predictions().boxes_xyxy, output.raw_predictions().logits.sigmoid()
        asked = torch.stack((mine[:, 3] + 1.0, mine[:, 17] - 1.5, torch.full((3, 4), 500.0) + torch.arange(4)), dim=1)
        found = output.refine_regions(asked)
    for image in range(3):
        for number in range(2):
            fit = box_iou(asked[image, number][None], mine[image])[0] ** 6 * scores[image].amax(-1).sqrt()
            best = int(fit.argmax())
            torch.testing.assert_close(found.class_probs[image, number], scores[image, best])
            torch.testing.assert_close(found.boxes_xyxy[image, number], mine[image, best])
        assert found.class_probs[image, 2].tolist() == [0, 0, 0]
        assert torch.equal(found.boxes_xyxy[image, 2], asked[image, 2])


def test_as_a_teacher_it_answers_in_the_frame_of_the_student() -> None:
    detector = lively()
    teacher = FrozenTeacher(detector, image_size=64, options=EVERYTHING)
    none = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    batch = ImageBatch(torch.zeros(3, 3, 128, 128), none, torch.zeros(3).bool(), teacher_images=images())
    soft = teacher.signals(batch, BOXES).pseudo_labels
    wanted = detector.detect(images(), EVERYTHING)
    assert soft.image_index.tolist() == [0] * 50 + [1] * 50 + [2] * 50
    np.testing.assert_allclose(soft.boxes_xyxy[:50].numpy(), wanted[0].boxes_xyxy * 2, rtol=1e-5)
    assert not any(p.requires_grad for p in detector.parameters())


def test_half_precision_leaves_nothing_behind() -> None:
    detector = lively().eval()
    shown = images().repeat(1, 1, 1, 2)  # of a size whose anchors are not yet made
    wanted = copy.deepcopy(detector).detect(shown, EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = detector(shown, signals=frozenset({"regions"}))
    assert output.raw_predictions().logits.dtype == output.raw_predictions().boxes_xyxy.dtype == torch.float32
    for one, other in zip(detector.detect(shown, EVERYTHING), wanted):
        np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)


def by_score(one: Detections) -> Detections:
    return one.take(np.lexsort((one.labels, one.boxes_xyxy[:, 0].round(2), -one.scores.round(4))))


@pytest.mark.parametrize("opener", [YOLO, RTDETR])
def test_saved_students_open_in_the_family_and_find_the_same(opener: type, tmp_path: Path) -> None:
    detector = lively().eval()
    detector.save(tmp_path / "s.pt", {"run": "x"})
    opened = opener(tmp_path / "s.pt")
    assert opened.names == dict(enumerate(CLASSES))
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    result = opened.predict(picture[..., ::-1], imgsz=64, conf=0.3, max_det=300, verbose=False, device="cpu")[0].boxes
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    wanted = detector.detect(pixels, PredictOptions(score_threshold=0.3))[0]
    assert len(wanted) > 3
    np.testing.assert_allclose(result.conf.numpy(), wanted.scores, atol=1e-5)
    assert result.cls.tolist() == wanted.labels.tolist()
    np.testing.assert_allclose(result.xyxy.numpy(), wanted.boxes_xyxy, atol=1e-2)


def test_saved_students_come_back_equal(tmp_path: Path) -> None:
    detector = lively().eval()
    detector.detect(images())
    detector.save(tmp_path / "s.pt", {})
    again = build(UltralyticsConfig(weights=tmp_path / "s.pt"), None, "teacher").eval()
    fresh = rebuild(detector.architecture()).eval()
    fresh.load_state_dict(detector.state_dict())
    assert type(again) is type(fresh) is RtdetrDetector
    assert again.spec == detector.spec == fresh.spec
    wanted = detector.detect(images(), EVERYTHING)[0].boxes_xyxy
    np.testing.assert_array_equal(again.detect(images(), EVERYTHING)[0].boxes_xyxy, wanted)
    np.testing.assert_array_equal(fresh.detect(images(), EVERYTHING)[0].boxes_xyxy, wanted)


def test_a_copy_lives_on_its_own() -> None:
    detector = lively().train()
    detector(images(), targets())
    twin = copy.deepcopy(detector).eval()
    before = twin.detect(images(), EVERYTHING)[0].boxes_xyxy
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(twin.detect(images(), EVERYTHING)[0].boxes_xyxy, before)
    assert detector.training
    assert set(detector.state_dict()) == {f"net.{name}" for name in detector.net.state_dict()}


def test_weights_of_other_classes_start_all_but_the_class_layers(tmp_path: Path) -> None:
    source = lively()
    source.save(tmp_path / "s.pt", {})
    student = build(UltralyticsConfig(weights=tmp_path / "s.pt"), ("one",), "student")
    own, given = student.state_dict(), source.state_dict()
    fresh = {name for name, value in own.items() if value.shape != given[name].shape}
    assert {name.split(".")[3] for name in fresh} == {"denoising_class_embed", "enc_score_head", "dec_score_head"}
    assert all(torch.equal(value, given[name]) for name, value in own.items() if name not in fresh)
    assert student.spec.classes == ("one",)
    with pytest.raises(RequestError, match=r"teacher\.weights: only \d+ of \d+ tensors of .* fit the model"):
        build(UltralyticsConfig(weights=tmp_path / "s.pt", model="rtdetr-l"), None, "teacher")


def test_gray_images() -> None:
    detector = lively(channels=1).eval()
    assert detector.spec.input_channels == 1
    assert len(detector.detect(images(2, 1), EVERYTHING)) == 2


@pytest.mark.parametrize("batch", [1, "dynamic"])
def test_the_exported_file_finds_the_same_boxes(batch: int | str, tmp_path: Path) -> None:
    detector = lively().eval()
    config = OnnxExportConfig(image_size=96, batch=batch)
    made = export_detector(load_exporter("onnx"), detector, tmp_path / "s.onnx", config, {})
    assert made.parity.passed
    assert made.parity.matched_share == 1.0
    assert made.parity.reference_boxes > 100
    assert made.output_format == "end_to_end"
    count = 1 if batch == 1 else 3
    shown = torch.rand(count, 3, 96, 96, generator=torch.Generator().manual_seed(9))
    none = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    boxes = (Letterbox(96, 96, 1.0, 1.0, 0, 0),) * count
    asked = ImageBatch(shown, none, torch.ones(count, dtype=torch.bool), tuple(range(count)), boxes)
    for ours, theirs in zip(detector.predict(asked), OnnxPredictor(made.path).predict(asked), strict=True):
        np.testing.assert_allclose(by_score(theirs).boxes_xyxy, by_score(ours).boxes_xyxy, atol=0.05)
        np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-4)


def test_twenty_steps_on_one_batch_of_squares_lower_the_loss() -> None:
    torch.manual_seed(0)
    detector = build(UltralyticsConfig(model=str(TINY)), ("red", "blue"), "student").train()
    shown = torch.full((4, 3, 64, 64), 0.4)
    corners = torch.tensor([[8.0, 8, 28, 28], [30, 20, 50, 40], [12, 34, 32, 54], [36, 6, 58, 28]])
    for image, (x1, y1, x2, y2) in enumerate(corners.int().tolist()):
        shown[image, 0 if image % 2 else 2, y1:y2, x1:x2] = 0.9
    truth = Targets(torch.arange(4), torch.tensor([1, 0, 1, 0]), corners)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    totals = []
    for _ in range(20):
        total = torch.stack(list(detector(shown, truth).task_losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
        optimizer.step()
        totals.append(total.item())
    assert all(np.isfinite(totals))
    assert np.mean(totals[-3:]) < 0.7 * np.mean(totals[:3])


def test_its_names_are_known() -> None:
    assert {"rtdetr-l", "rtdetr-x", "rtdetr-resnet50", "rtdetr-resnet101", "yolov8-rtdetr"} <= set(known_models())
    for name in ("rtdetr-l", "rtdetr-x", "rtdetr-resnet50", "rtdetr-resnet101", "yolov8n-rtdetr"):
        assert UltralyticsConfig(model=name).model == name
    with pytest.raises(ValueError, match="unknown model 'rtdetr-m'; did you mean 'rtdetr-"):
        UltralyticsConfig(model="rtdetr-m")


def test_a_published_layout_gets_the_same_adapter() -> None:
    detector = build(UltralyticsConfig(model="yolov8n-rtdetr"), CLASSES, "student").eval()
    assert isinstance(detector, RtdetrDetector)
    assert dict(detector.spec.level_channels) == {"P3": 64, "P4": 128, "P5": 256}
    assert len(detector.detect(images(1), PredictOptions(score_threshold=0.0))[0]) == 84 * 3
