"""The contract of a family, for each entry of the table: a new one is tested as soon as it has a line in `SMALL`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import BatchDetections, DetectorOutput, PredictOptions, Signal
from kd_vision.core.validation import StrictModel
from kd_vision.detectors import (
    FAMILIES,
    HeadKind,
    family_config,
    family_module,
    family_of,
    head_kind,
    open_detector,
)
from kd_vision.detectors.base import Detector

SMALL: dict[str, dict[HeadKind, str]] = {
    "ultralytics": {
        "dense_bins": "yolo11n",
        "dense": "yolo26n",
        "queries": str(Path(__file__).parents[1] / "data" / "rtdetr-tiny.yaml"),
    },
    "torchvision": {
        "dense": "fcos_resnet18_fpn",
        "anchors": "ssdlite320_mobilenet_v3_large",
        "two_stage": "fasterrcnn_mobilenet_v3_small_fpn",
    },
}
"""Small models of each family, one for each kind of head that it has."""
KINDS = [(family, kind) for family in FAMILIES for kind in SMALL.get(family, {"no model in SMALL": ""})]
CLASSES = ("car", "bus", "person")
SIZE = 128
EVERYTHING: frozenset[Signal] = frozenset({"features", "grid", "regions", "detections"})
KEEP_ALL = PredictOptions(score_threshold=0.0, max_detections=20)


def config_of(family: str, kind: HeadKind) -> StrictModel:
    return family_config(family, "student").model_validate({"family": family, "model": SMALL[family][kind]})


@pytest.fixture(scope="module", params=KINDS, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> tuple[str, HeadKind, Detector]:
    family, kind = request.param
    torch.manual_seed(0)
    detector: Detector = family_module(family, "student").build(config_of(family, kind), CLASSES, "student").train()
    with torch.no_grad():
        detector(images())  # moves the statistics of the norms off those of a fresh model
    return family, kind, detector


def images() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def truth() -> Targets:
    boxes = torch.tensor([[8.0, 12.0, 60.0, 80.0], [40.0, 16.0, 120.0, 100.0]])
    return Targets(torch.tensor([0, 1]), torch.tensor([0, 2]), boxes)


def pseudo_labels() -> PseudoLabels:
    targets, count = truth(), len(truth())
    probs = torch.nn.functional.one_hot(targets.labels, len(CLASSES)) * 0.9
    return PseudoLabels(
        targets.image_index, targets.boxes_xyxy, probs, torch.full((count,), 0.9), torch.zeros(count).bool()
    )


def test_the_detector_is_what_the_table_says(case: tuple[str, HeadKind, Detector]) -> None:
    family, kind, detector = case
    assert isinstance(detector, Detector)
    assert detector.spec.family == family
    assert detector.spec.classes == CLASSES
    assert head_kind(family, config_of(family, kind)) == kind
    assert {"teacher", "student"} >= FAMILIES[family].roles
    if kind in ("dense_bins", "dense", "anchors"):
        assert (detector.spec.box_bins is not None) == (kind == "dense_bins")
        assert bool(detector.spec.level_anchors) == (family == "torchvision")
    assert ("grid" in detector.spec.provides) == (kind in ("dense_bins", "dense", "anchors"))


def test_each_signal_is_given_where_provided_and_asked_for(case: tuple[str, HeadKind, Detector]) -> None:
    _, _, detector = case
    given = signals_in(detector(images(), signals=EVERYTHING))
    assert given == detector.spec.provides
    for signal in detector.spec.provides:
        assert signals_in(detector(images(), signals=frozenset({signal}))) == {signal}
    assert signals_in(detector(images())) == set()


def signals_in(output: DetectorOutput) -> set[str]:
    """The signals that an output holds; those of two functions are given together or not at all."""
    assert (output.postprocess is None) == (output.assign is None)
    assert (output.raw_predictions is None) == (output.refine_regions is None)
    parts = {
        "features": bool(output.features),
        "grid": bool(output.grids),
        "detections": output.postprocess is not None,
        "regions": output.raw_predictions is not None,
    }
    return {signal for signal, is_given in parts.items() if is_given}


def test_shapes_of_the_signals(case: tuple[str, HeadKind, Detector]) -> None:
    _, _, detector = case
    output = detector(images(), signals=EVERYTHING)
    assert {name: each.shape[1] for name, each in output.features.items()} == dict(detector.spec.level_channels)
    for grid in output.grids.values():
        rows = len(grid.points_xy)
        assert grid.logits.shape == (2, rows, 3)
        assert grid.boxes_xyxy.shape == (2, rows, 4)
        assert grid.strides.shape == (rows,)
    assert output.raw_predictions is not None
    assert output.refine_regions is not None
    assert output.assign is not None
    raw = output.raw_predictions()
    assert raw.logits.shape == (*raw.boxes_xyxy.shape[:2], 3)
    refined = output.refine_regions(truth().boxes_xyxy[:, None])
    assert refined.class_probs.shape == (2, 1, 3)
    assert refined.boxes_xyxy.shape == (2, 1, 4)
    stages = output.assign(pseudo_labels())
    assert sum(stage.weight for stage in stages) == pytest.approx(1.0)
    for stage in stages:
        assert stage.matched_idx.shape == stage.quality.shape == stage.raw_predictions.logits.shape[:2]
        assert set(stage.matched_idx.unique().tolist()) <= {-2, -1, 0, 1}
        assert int(stage.matched_idx.max()) >= 0


def test_final_boxes_stay_on_the_device_until_they_are_split_by_image(case: tuple[str, HeadKind, Detector]) -> None:
    _, _, detector = case
    detector.eval()
    postprocess = detector(images(), signals=frozenset({"detections"})).postprocess
    assert postprocess is not None
    batch = postprocess(KEEP_ALL)
    assert isinstance(batch, BatchDetections)
    assert batch.images == 2
    assert not batch.boxes_xyxy.requires_grad
    assert not batch.scores.requires_grad
    for parts in (batch.boxes_xyxy, batch.scores, batch.class_probs):
        assert parts is not None
        assert parts.dtype == torch.float32
    for one, other in zip(batch.per_image(), detector.detect(images(), KEEP_ALL), strict=True):
        assert 0 < len(one) <= 20
        np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
        assert (np.diff(one.scores) <= 0).all()
    detector.train()


def test_task_losses_train_the_network(case: tuple[str, HeadKind, Detector]) -> None:
    _, _, detector = case
    detector.zero_grad()
    total = torch.stack(list(detector(images(), truth()).task_losses.values())).sum()
    assert total.isfinite()
    total.backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    detector.zero_grad()


def test_a_file_and_an_architecture_give_the_same_detector_again(
    case: tuple[str, HeadKind, Detector], tmp_path: Path
) -> None:
    family, kind, detector = case
    path = tmp_path / f"student{min(FAMILIES[family].weights)}"
    detector.save(path, {"image_size": str(SIZE)})
    from_file = open_detector(path, trust=False, where="model")
    remade = family_module(family, "model").rebuild(detector.architecture())
    remade.load_state_dict(detector.state_dict())
    expected = detector.detect(images(), KEEP_ALL)
    for again in (from_file, remade):
        assert again.spec == detector.spec
        for one, other in zip(again.detect(images(), KEEP_ALL), expected, strict=True):
            np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
            np.testing.assert_array_equal(one.scores, other.scores)
    assert from_file.trained_size == SIZE
    assert family_of(path) == family
    assert head_kind(family, family_config(family, "model").model_validate({"weights": path})) == kind


def test_layout_of_the_exported_module(case: tuple[str, HeadKind, Detector]) -> None:
    _, _, detector = case
    with torch.no_grad():
        rows = detector.export_module()(images())
    if detector.spec.end_to_end:
        assert rows.shape[::2] == (2, 6)
        labels = rows[..., 5]
        assert torch.equal(labels, labels.round())
        assert 0 <= float(labels.min()) <= float(labels.max()) <= 2
        scores = rows[..., 4]
    else:
        assert rows.shape[:2] == (2, 4 + len(CLASSES))
        assert float(rows[:, 2:4].min()) >= 0  # width and height
        scores = rows[:, 4:]
    assert 0 <= float(scores.min()) <= float(scores.max()) <= 1


def test_each_family_has_small_models() -> None:
    assert set(SMALL) == set(FAMILIES)


def test_an_unknown_family_is_named_with_the_nearest() -> None:
    for call in (family_module, family_config):
        with pytest.raises(RequestError) as caught:
            call("ultralitics", "student")
        assert caught.value.problems == ("student.family: unknown family 'ultralitics'; did you mean 'ultralytics'?",)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_reading_a_config_imports_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from kd_vision.detectors import FAMILIES, family_config, family_of, head_kind
for family, model in {{"ultralytics": "yolo26n", "torchvision": "fcos_resnet18_fpn"}}.items():
    print(head_kind(family, family_config(family, "student")(model=model)))
print(family_of({str(tmp_path / "none.pt")!r}))
print([name for name in ("torch", "torchvision", "ultralytics", "numpy") if name in sys.modules])
"""
    assert run(code).splitlines() == ["dense", "dense", "ultralytics", "[]"]


def test_torchvision_works_and_ultralytics_is_asked_for_where_it_is_not_installed() -> None:
    code = """
import sys
sys.modules["ultralytics"] = None
import torch
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import PredictOptions
from kd_vision.detectors import family_config, family_module
config = family_config("torchvision", "student")(model="ssdlite320_mobilenet_v3_large")
detector = family_module("torchvision", "student").build(config, ("a", "b"), "student").eval()
output = detector(torch.rand(1, 3, 96, 96), signals=frozenset({"detections", "grid"}))
print(len(output.postprocess(PredictOptions(0.0, 0.7, 5)).per_image()[0]))
family_config("ultralytics", "student")(model="yolo11n")
try:
    family_module("ultralytics", "student")
except RequestError as error:
    print(error.exit_code, error)
"""
    assert run(code).splitlines() == [
        "5",
        "2 student.family: 'ultralytics' needs the package ultralytics, which is not installed; "
        "pip install kd-vision[ultralytics]",
    ]
