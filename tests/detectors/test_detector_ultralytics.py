"""The ultralytics adapter against the family's own inference and losses, over generations and heads.

Contract tests run over `MODELS`: one line here tests a new generation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.nn import tasks
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

from kd_vision.core.batch import ImageBatch, Letterbox, PseudoLabels, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import UNMATCHED, Signals
from kd_vision.core.validation import validate
from kd_vision.detectors.base import PredictOptions
from kd_vision.detectors.boxes import cxcywh_to_xyxy
from kd_vision.detectors.ultralytics.config import UltralyticsConfig, known_models
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.detectors.ultralytics.family import build
from kd_vision.losses.soft_boxes import SoftBoxes, SoftBoxesConfig

MODELS = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolov8n-p2", "yolo26n-p2")
CLASSES = ("car", "bus", "person")
ALL = frozenset({"features", "grid"})


def make(name: str, **settings: object) -> UltralyticsDetector:
    torch.manual_seed(0)
    return build(UltralyticsConfig(model=name, **settings), CLASSES, "student")  # type: ignore[arg-type]


def images(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


def targets() -> Targets:
    boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 8.0, 60.0, 50.0]])
    return Targets(torch.tensor([0, 1]), torch.tensor([0, 2]), boxes)


@pytest.mark.parametrize("name", MODELS)
def test_spec_and_channels_agree(name: str) -> None:
    detector = make(name).eval()
    with torch.no_grad():
        output = detector(images(), signals=ALL)
    spec = detector.spec
    assert {k: v.shape[1] for k, v in output.features.items()} == dict(spec.level_channels)
    assert {k: 64 // v.shape[2] for k, v in output.features.items()} == dict(spec.level_strides)
    grid = output.grids["one_to_many"]
    points = sum((64 // stride) ** 2 for stride in spec.level_strides.values())
    assert grid.logits.shape == (2, points, 3)
    assert grid.boxes_xyxy.shape == (2, points, 4)
    assert set(output.grids) == ({"one_to_many", "one_to_one"} if spec.end_to_end else {"one_to_many"})
    assert (grid.box_bins is None) == (spec.box_bins is None)
    assert grid.points_xy[0].tolist() == [next(iter(spec.level_strides.values())) / 2] * 2
    assert not output.task_losses


@pytest.mark.parametrize("name", MODELS)
def test_the_grid_is_what_the_family_itself_decodes(name: str) -> None:
    detector = make(name).eval()
    detector.spec.end_to_end and setattr(detector.head, "_end2end", False)
    with torch.no_grad():
        grid = detector(images(), signals=ALL).grids["one_to_many"]
        detector.head.training = False
        raw, _ = detector.net(images())
    torch.testing.assert_close(cxcywh_to_xyxy(raw[:, :4].permute(0, 2, 1)), grid.boxes_xyxy, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(raw[:, 4:].permute(0, 2, 1), grid.logits.sigmoid())


@pytest.mark.parametrize("name", MODELS)
def test_task_losses_are_the_familys_own_per_image(name: str) -> None:
    detector = make(name).train()
    twin = copy.deepcopy(detector.net)
    output = detector(images(), targets())
    twin.train()
    size = 64.0
    boxes = targets().boxes_xyxy
    batch = {
        "img": images(),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / size,
    }
    expected, _ = twin(batch)
    assert list(output.task_losses)[:2] == ["box", "cls"]
    torch.testing.assert_close(torch.stack(list(output.task_losses.values())), expected / 2)


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_prediction_is_in_pixels_of_the_original_image(name: str) -> None:
    detector = make(name).eval()
    letterboxes = (Letterbox(32, 64, 1.0, 1.0, 0, 16), Letterbox(128, 128, 0.5, 0.5, 0, 0))
    none = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    batch = ImageBatch(images(), none, torch.ones(2, dtype=torch.bool), (1, 2), letterboxes)
    found = detector.predict(batch, PredictOptions(score_threshold=0.0, max_detections=20))
    assert [len(f) for f in found] == [20, 20]
    for detections, box in zip(found, letterboxes):
        limit = [box.original_width, box.original_height] * 2
        assert (detections.boxes_xyxy >= 0).all()
        assert (detections.boxes_xyxy <= np.array(limit)).all()
        assert (np.diff(detections.scores) <= 0).all()
    assert found[1].boxes_xyxy.max() > 64  # the second original is twice the input


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n", "yolo11n"])
def test_saved_students_open_in_the_family_and_come_back_equal(name: str, tmp_path: Path) -> None:
    from ultralytics import YOLO

    detector = make(name).eval()
    detector.save(tmp_path / "s.pt", {"run": "x"})
    again = build(UltralyticsConfig(weights=tmp_path / "s.pt"), None, "model").eval()
    assert again.spec.classes == CLASSES
    assert all(torch.equal(a, b) for a, b in zip(detector.state_dict().values(), again.state_dict().values()))
    opened = YOLO(tmp_path / "s.pt")
    assert opened.names == dict(enumerate(CLASSES))
    picture = np.full((64, 64, 3), 90, np.uint8)
    assert len(opened.predict(picture, imgsz=64, conf=0.9, verbose=False)) == 1


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_the_channel_of_detections_is_prediction_in_input_pixels(name: str) -> None:
    detector = make(name).eval()
    for branch in (detector.head.cv3, getattr(detector.head, "one2one_cv3", None) or ()):
        for level in branch:
            level[-1].bias.data.fill_(0.0)  # an untrained head is silent by design
    none = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    same = (Letterbox(64, 64, 1.0, 1.0, 0, 0),) * 2
    batch = ImageBatch(images(), none, torch.ones(2, dtype=torch.bool), (1, 2), same)
    said = detector(batch.images, signals=frozenset({"detections"})).postprocess(PredictOptions()).per_image()
    for one, other in zip(said, detector.predict(batch)):
        assert len(one) > 0
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_allclose(np.clip(one.boxes_xyxy, 0, 64), other.boxes_xyxy, atol=1e-4)


def crowd() -> PseudoLabels:
    """Boxes of one sure class each, of images out of order, two of them on one spot; none on the second image."""
    boxes = [[20.0, 8.0, 60.0, 50.0], [4.0, 6.0, 30.0, 40.0], [2.0, 2.0, 5.0, 5.0], [20.0, 8.0, 60.0, 50.0]]
    boxes += [[-6.0, 30.0, 20.0, 70.0], [16.0, 16.0, 48.0, 48.0]]
    index, labels = torch.tensor([2, 0, 2, 0, 0, 2]), torch.tensor([2, 0, 1, 1, 2, 0])
    probs = torch.nn.functional.one_hot(labels, len(CLASSES)).float()
    return PseudoLabels(index, torch.tensor(boxes), probs, torch.ones(6), torch.zeros(6, dtype=torch.bool))


def family_assignments(detector: UltralyticsDetector, shown: torch.Tensor, pseudo_labels: PseudoLabels) -> list[tuple]:
    """What the assigners of the family's own loss say of hard truth: (scores, foreground, slot) by branch."""
    criterion = (E2ELoss if detector.spec.end_to_end else v8DetectionLoss)(detector.net)
    losses = [criterion.one2many, criterion.one2one] if detector.spec.end_to_end else [criterion]
    said: list[tuple] = []
    for loss in losses:
        real = loss.assigner
        loss.assigner = lambda *given, real=real: said.append(real(*given)) or said[-1]
    order = pseudo_labels.image_index.argsort(stable=True)
    low, high = pseudo_labels.boxes_xyxy[order, :2] / 64, pseudo_labels.boxes_xyxy[order, 2:] / 64
    batch = {
        "batch_idx": pseudo_labels.image_index[order].float(),
        "cls": pseudo_labels.labels[order].float()[:, None],
        "bboxes": torch.cat(((low + high) / 2, high - low), dim=1),
    }
    criterion(detector.net(shown), batch)
    return [each[2:] for each in said]


def throng(seed: int) -> PseudoLabels:
    """So many boxes that most points lie in several, from slivers to the whole of three images of 64 x 64."""
    random = torch.Generator().manual_seed(seed)
    index, labels = torch.randint(3, (40,), generator=random), torch.randint(len(CLASSES), (40,), generator=random)
    corner, sides = torch.rand(40, 2, generator=random) * 60, torch.rand(40, 2, generator=random) ** 2 * 64 + 1
    probs = torch.nn.functional.one_hot(labels, len(CLASSES)).float()
    boxes = torch.cat((corner, (corner + sides).clamp(max=64.0)), dim=1)
    return PseudoLabels(index, boxes, probs, torch.ones(40), torch.zeros(40, dtype=torch.bool))


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
@pytest.mark.parametrize("seed", range(3))
def test_a_throng_is_paired_as_the_familys_assigner_pairs_it(name: str, seed: int) -> None:
    detector = make(name).eval()
    shown = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    pseudo_labels = throng(seed)
    with torch.no_grad():
        stages = detector(shown, signals=frozenset({"detections"})).assign(pseudo_labels)
        expected = family_assignments(detector, shown, pseudo_labels)
    own = [(pseudo_labels.image_index == image).nonzero()[:, 0] for image in range(3)]
    for stage, (scores, foreground, slot) in zip(stages, expected, strict=True):
        wanted = torch.stack([boxes[place.long()] for boxes, place in zip(own, slot, strict=True)])
        assert torch.equal(stage.matched_idx >= 0, foreground)
        counts = stage.quality > 0  # the family gives points that meet none of their boxes to any, for nothing
        assert counts.sum() > 20
        assert torch.equal(stage.matched_idx[counts], wanted[counts])
        torch.testing.assert_close(stage.quality, scores.amax(dim=-1).to(stage.quality.dtype))


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n", "yolov10n", "yolov8n-p2"])
def test_answers_for_hard_truth_are_the_targets_of_the_familys_own_loss(name: str) -> None:
    detector = make(name).eval()
    detector.set_progress(0.4)
    shown = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pseudo_labels = crowd()
    with torch.no_grad():
        stages = detector(shown, signals=frozenset({"detections"})).assign(pseudo_labels)
        expected = family_assignments(detector, shown, pseudo_labels)
    both = detector.spec.end_to_end
    assert [stage.stage for stage in stages] == (["one_to_many", "one_to_one"] if both else ["one_to_many"])
    assert sum(stage.weight for stage in stages) == pytest.approx(1.0)
    assert stages[0].weight == pytest.approx(0.52 if both else 1.0)
    of_image = [[1, 3, 4], [], [0, 2, 5]]
    for stage, (scores, foreground, slot) in zip(stages, expected, strict=True):
        wanted = torch.full_like(stage.matched_idx, UNMATCHED)
        for image, point in foreground.nonzero().tolist():
            wanted[image, point] = of_image[image][int(slot[image, point])]
        assert torch.equal(stage.matched_idx, wanted)
        assert set(wanted.unique().tolist()) >= {UNMATCHED, 0, 1, 2, 4, 5}
        target = stage.quality[..., None] * pseudo_labels.class_probs[stage.matched_idx.clamp(min=0)]
        torch.testing.assert_close(target, scores.to(target.dtype))
        assert float(stage.quality.max()) > 0


def test_a_one_to_one_branch_answers_for_a_box_once() -> None:
    detector = make("yolo26n").eval()
    shown = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    many, one = detector(shown, signals=frozenset({"detections"})).assign(crowd())
    assert int((one.matched_idx >= 0).sum()) <= 6 < int((many.matched_idx >= 0).sum())


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_nothing_handed_in_is_background_everywhere(name: str) -> None:
    nobody = crowd().take(torch.zeros(6, dtype=torch.bool))
    for stage in make(name).train()(images(), signals=frozenset({"detections"})).assign(nobody):
        assert (stage.matched_idx == UNMATCHED).all()
        assert float(stage.quality.abs().sum()) == 0


def test_mixed_precision_does_not_round_decoded_boxes() -> None:
    detector = make("yolov8n").eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(images(), signals=frozenset({"grid", "regions"}))
    grid = output.grids["one_to_many"]
    distances = grid.box_bins.softmax(-1) @ torch.arange(16.0) * grid.strides[:, None]
    expected = torch.cat((grid.points_xy - distances[..., :2], grid.points_xy + distances[..., 2:]), dim=-1)
    torch.testing.assert_close(grid.boxes_xyxy, expected)
    torch.testing.assert_close(output.raw_predictions().boxes_xyxy, expected)


def test_a_row_is_decoded_alone_as_among_all() -> None:
    rows = make("yolov8n").train()(images(), signals=frozenset({"regions"})).raw_predictions()
    assert not rows.boxes_xyxy.requires_grad
    image, row = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 70])
    alone = rows.boxes_at(image, row)
    torch.testing.assert_close(alone, rows.boxes_xyxy[image, row])
    assert alone.requires_grad


def test_the_order_of_boxes_does_not_change_the_task_losses() -> None:
    detector = make("yolov8n").train()
    truth = targets()
    mixed = Targets(truth.image_index.flip(0), truth.labels.flip(0), truth.boxes_xyxy.flip(0))
    first, second = detector(images(), truth).task_losses, detector(images(), mixed).task_losses
    for key, value in first.items():
        torch.testing.assert_close(second[key], value)


def test_balance_of_an_end_to_end_head_follows_training() -> None:
    detector = make("yolo26n")
    assert detector._branch_weights() == pytest.approx({"one_to_many": 0.8, "one_to_one": 0.2})
    detector.set_progress(1.0)
    assert detector._branch_weights() == pytest.approx({"one_to_many": 0.1, "one_to_one": 0.9})
    assert make("yolov8n")._branch_weights() == {"one_to_many": 1.0}


def test_weights_of_another_class_count_start_the_backbone(tmp_path: Path) -> None:
    source = make("yolov8n")
    source.save(tmp_path / "s.pt", {})
    student = build(UltralyticsConfig(weights=tmp_path / "s.pt"), ("one",), "student")
    assert student.spec.classes == ("one",)
    assert torch.equal(student.state_dict()["net.model.0.conv.weight"], source.state_dict()["net.model.0.conv.weight"])
    assert student.state_dict()["net.model.22.cv3.0.2.bias"].shape == (1,)
    assert all(p.requires_grad for n, p in student.named_parameters() if "dfl" not in n)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    make("yolov8n").save(tmp_path / "s.pt", {})
    with pytest.raises(RequestError, match=r"student\.weights: only \d+ of \d+ tensors of .* fit the model"):
        build(UltralyticsConfig(model="yolo12n", weights=tmp_path / "s.pt"), CLASSES, "student")


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_a_pickle_outside_the_allow_list_runs_only_with_consent(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    torch.save({"model": make("yolov8n").net, "extra": Payload(mark)}, tmp_path / "evil.pt")
    with pytest.raises(RequestError, match=r"needs classes outside the allow-list.*set trust: true"):
        build(UltralyticsConfig(weights=tmp_path / "evil.pt"), None, "teacher")
    assert not mark.exists()
    build(UltralyticsConfig(weights=tmp_path / "evil.pt", trust=True), None, "teacher")
    assert mark.exists()


def test_wrong_models_and_files_are_named(tmp_path: Path) -> None:
    cases = {
        "give 'model'": UltralyticsConfig(),
        "is not a plain detection model": UltralyticsConfig(weights=tmp_path / "seg.pt"),
        "does not exist": UltralyticsConfig(weights=tmp_path / "none.pt"),
    }
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save({"model": tasks.SegmentationModel("yolo11n-seg.yaml", verbose=False)}, tmp_path / "seg.pt")
    cases["cannot be read as a .pt file"] = UltralyticsConfig(weights=tmp_path / "text.pt")
    for text, config in cases.items():
        with pytest.raises(RequestError, match=text):
            build(config, CLASSES, "student")


def test_an_unknown_model_is_named_when_the_config_is_read() -> None:
    with pytest.raises(ValueError, match="unknown model 'yolo11q'; did you mean 'yolo11"):
        UltralyticsConfig(model="yolo11q")


def test_known_models_hold_every_generation() -> None:
    assert {"yolov8", "yolo11", "yolo12", "yolo26", "yolov8-p2"} <= set(known_models())


def test_importing_the_adapter_leaves_the_users_settings_alone(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    code = "import kd_vision.detectors.ultralytics.family as m; print(m.SETTINGS['sync'])"
    env = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip().splitlines()[-1] == "False"


def test_real_coco_weights_load_safely(shared: Path) -> None:
    teacher = build(UltralyticsConfig(weights=shared / "weights" / "yolov8s_coco.pt"), None, "teacher")
    assert teacher.spec.classes[:2] == ("person", "bicycle")
    assert len(teacher.spec.classes) == 80
    state = shared / "weights" / "yolo11n_coco_state.pt"
    student = build(UltralyticsConfig(model="yolo11n", weights=state), ("x",), "student")
    given = torch.load(state, weights_only=True)["model.0.conv.weight"].float()
    assert torch.equal(student.state_dict()["net.model.0.conv.weight"], given)


@pytest.mark.parametrize("name", ["yolov3n", "yolov9ts", "yolov9cn", "yolov10nx", "yolov10ns"])
def test_a_scale_of_a_model_that_has_none_is_unknown(name: str) -> None:
    with pytest.raises(RequestError, match=f"unknown model '{name}'; did you mean"):
        validate(UltralyticsConfig, {"model": name}, "student")


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_soft_boxes_teach_background_where_no_row_has_a_box(name: str) -> None:
    """No box that reaches a row: none at all, or one without area."""
    detector = make(name).train()
    output = detector(images(), signals=frozenset({"detections"}))
    flat = PseudoLabels(
        torch.tensor([0]),
        torch.tensor([[9.0, 9, 9, 30]]),
        torch.tensor([[0.9, 0.0, 0.0]]),
        torch.tensor([0.9]),
        torch.tensor([False]),
    )
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    for said in (flat.take(torch.zeros(0, dtype=torch.int64)), flat):
        loss = SoftBoxes(SoftBoxesConfig(), detector.spec, detector.spec)
        value = loss(output.signals(), Signals(pseudo_labels=said), nothing)
        (gradient,) = torch.autograd.grad(value, detector.head.cv3[0][-1].bias, retain_graph=True)
        assert float(gradient.min()) > 0.0  # every class goes down


@pytest.mark.parametrize("key", ["activation", "layer"])
def test_the_yaml_inside_a_file_runs_no_code(tmp_path: Path, key: str) -> None:
    """A head for other classes is built anew from the YAML that the file carries."""
    source = build(UltralyticsConfig(model="yolov8n"), ("a", "b"), "model")
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')"
    if key == "activation":
        source.net.yaml["activation"] = code
    else:
        source.net.yaml["backbone"][0][2] = "torch_safe_load"
    source.save(tmp_path / "model.pt", {})
    with pytest.raises(RequestError, match=r"model YAML: .*only layers of ultralytics and torch are built"):
        build(UltralyticsConfig(weights=tmp_path / "model.pt"), ("c", "d", "e"), "student")
    assert not marker.exists()
