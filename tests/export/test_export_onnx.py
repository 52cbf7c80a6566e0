from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import GateError, KDVisionError, RequestError
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.export import load_exporter
from kd_vision.export.base import ExportedModel, export_detector
from kd_vision.export.onnx import OnnxExportConfig
from kd_vision.export.parity import SYNTHETIC_SOURCE, ParityReport, synthetic_inputs
from kd_vision.pipeline.predict import frame_batch
from kd_vision.runtime.media import Frame
from kd_vision.runtime.metadata import KEY_CLASSES, KEY_PARITY, KEY_PREPROCESSING, KEY_TRAINING_RUN
from kd_vision.teachers.onnx import OnnxPredictor

Lively = Callable[..., UltralyticsDetector]
SIZE = 96
CLASSES = ("car", "bus", "truck")


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    options: dict[str, Any]
    output_format: str
    output: list[int | None]


CASES = [
    Case("v8", "yolov8n", {}, "dense_cxcywh", [1, 7, 189]),
    Case("v11-dynamic", "yolo11n", {"batch": "dynamic"}, "dense_cxcywh", [None, 7, 189]),
    Case("v12-opset-11", "yolo12n", {"opset": 11}, "dense_cxcywh", [1, 7, 189]),
    Case("v26-dynamic", "yolo26n", {"batch": "dynamic"}, "end_to_end", [None, 189, 6]),
    Case("v8-nms", "yolov8n", {"nms": True, "max_detections": 50}, "nms", [1, 50, 6]),
    Case("v8-nms-dynamic", "yolov8n", {"nms": True, "batch": "dynamic"}, "nms", [None, 300, 6]),
    Case("v8-batch-3", "yolov8n", {"batch": 3, "opset": 20, "simplify": False}, "dense_cxcywh", [3, 7, 189]),
]


@dataclass(frozen=True)
class Exported:
    case: Case
    detector: UltralyticsDetector
    file: ExportedModel
    config: OnnxExportConfig


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def exported(request: pytest.FixtureRequest, lively: Lively, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    case: Case = request.param
    detector = lively(case.model)
    config = OnnxExportConfig(image_size=SIZE, **case.options)
    out = tmp_path_factory.mktemp("onnx") / f"{case.name}.onnx"
    return Exported(case, detector, export_onnx(detector, out, config, {"run": "bccd-7"}), config)


def export_onnx(
    detector: UltralyticsDetector, out: Path, config: OnnxExportConfig, provenance: dict[str, str] | None = None
) -> ExportedModel:
    return export_detector(load_exporter("onnx"), detector, out, config, provenance or {})


def one_batch() -> ImageBatch:
    """Four of the gate's images in one batch."""
    batches = list(synthetic_inputs(make_spec(), SIZE, images=4).batches)
    return ImageBatch(
        images=torch.cat([batch.images for batch in batches]),
        targets=batches[0].targets,
        labelled=torch.zeros(4, dtype=torch.bool),
        image_ids=(1, 2, 3, 4),
        letterboxes=tuple(batch.letterboxes[0] for batch in batches),
    )


def matched_share(wanted: Detections, given: Detections) -> float:
    """Share of `wanted` with a box of the same class in `given`, within 1e-3 of its score and 0.1 pixels."""
    boxes = np.abs(wanted.boxes_xyxy[:, None] - given.boxes_xyxy[None]).max(axis=-1) < 0.1
    scores = np.abs(wanted.scores[:, None] - given.scores[None]) < 1e-3
    return float((boxes & scores & (wanted.labels[:, None] == given.labels[None])).any(axis=1).mean())


def make_spec() -> DetectorSpec:
    return DetectorSpec("test", "test", CLASSES, {}, {}, frozenset())


def test_file_gives_the_boxes_of_the_model(exported: Exported) -> None:
    options = exported.config.predict_options
    wanted = exported.detector.predict(one_batch(), options)
    given = OnnxPredictor(exported.file.path).predict(one_batch(), options)
    for expected, actual in zip(wanted, given):
        assert len(expected) == len(actual) > 5
        # The order of tied scores is arbitrary, and NMS may keep either box of a tie: 1 of 100 may differ.
        assert matched_share(expected, actual) >= 0.99
        assert matched_share(actual, expected) >= 0.99


def test_graph_is_as_configured(exported: Exported) -> None:
    model = onnx.load(exported.file.path)
    batch = exported.case.options.get("batch", 1)
    sides = model.graph.input[0].type.tensor_type.shape.dim
    assert [sides[0].dim_param] == ["batch"] if batch == "dynamic" else sides[0].dim_value == batch
    assert [side.dim_value for side in sides][1:] == [3, SIZE, SIZE]
    output = model.graph.output[0].type.tensor_type.shape.dim
    assert [side.dim_value or None for side in output] == exported.case.output
    assert not any(side.dim_param for side in output)
    assert model.opset_import[0].version == exported.config.opset
    assert model.ir_version <= 10
    operators = {node.op_type for node in model.graph.node}
    assert ("NonMaxSuppression" in operators) == exported.config.nms
    assert exported.file.output_format == exported.case.output_format


def test_metadata_describes_the_file(exported: Exported) -> None:
    values = {each.key: each.value for each in onnx.load(exported.file.path).metadata_props}
    assert json.loads(values[KEY_CLASSES]) == list(CLASSES)
    assert json.loads(values[KEY_TRAINING_RUN]) == {"run": "bccd-7"}
    assert json.loads(values[KEY_PREPROCESSING]) == {
        "resize": "letterbox",
        "interpolation": "area",
        "pad_value": 114,
        "scale": "1/255",
        "channel_order": "RGB",
        "layout": "NCHW",
        "height": SIZE,
        "width": SIZE,
    }
    assert values["names"] == "{0: 'car', 1: 'bus', 2: 'truck'}"
    assert (values["stride"], values["task"], values["channels"]) == ("32", "detect", "3")
    parity = ParityReport.model_validate_json(values[KEY_PARITY])
    assert parity == exported.file.parity
    assert parity.passed
    assert parity.source == SYNTHETIC_SOURCE
    assert parity.reference_boxes > 100


def test_predictor_reads_the_file(exported: Exported) -> None:
    predictor = OnnxPredictor(exported.file.path)
    assert predictor.output_format == exported.case.output_format
    assert predictor.image_size == SIZE
    assert predictor.spec.classes == CLASSES
    assert predictor.spec.end_to_end == (exported.case.output_format != "dense_cxcywh")


def test_ultralytics_opens_it_and_detects_the_same_boxes(exported: Exported, tmp_path: Path) -> None:
    """On images that are not square, in one call, at a threshold that users choose."""
    from ultralytics import YOLO

    pictures = [pixels[:70] for pixels in one_batch().images.permute(0, 2, 3, 1).numpy()]
    model = YOLO(exported.file.path, task="detect")
    bgr = [np.ascontiguousarray(picture[..., ::-1]) for picture in pictures]
    results = model.predict(bgr, conf=0.3, iou=0.7, verbose=False, project=str(tmp_path))
    assert model.names == dict(enumerate(CLASSES))
    batch = frame_batch([Frame(index, "", picture) for index, picture in enumerate(pictures)], SIZE)
    wanted = OnnxPredictor(exported.file.path).predict(batch, PredictOptions(0.3))
    if exported.case.output_format == "dense_cxcywh":
        wanted = best_class_only(exported.file.path, batch)
    counted = 0
    for result, expected in zip(results, wanted):
        actual = Detections(
            result.boxes.xyxy.numpy(), result.boxes.conf.numpy(), result.boxes.cls.numpy().astype(np.int64)
        )
        assert len(actual) == len(expected)
        assert not len(expected) or matched_share(actual, expected) == matched_share(expected, actual) == 1.0
        counted += len(expected)
    assert counted > 10


def best_class_only(path: Path, batch: ImageBatch) -> list[Detections]:
    """Predict from dense output as ultralytics does: each point gives a box of its best class only."""
    predictions = []
    outputs = OnnxPredictor(path).run(batch.as_float().images.numpy())
    for (output,), letterbox in zip(outputs, batch.letterboxes):
        rows = torch.from_numpy(output)
        score, label = rows[4:].max(dim=0)
        centre, half = rows[:2].T, rows[2:4].T / 2
        boxes = torch.cat((centre - half, centre + half), dim=1)
        above = score > 0.3
        keep = batched_nms(boxes[above], score[above], label[above], 0.7)
        boxes, score, label = (values[above][keep].numpy() for values in (boxes, score, label))
        predictions.append(Detections(letterbox.invert(boxes), score, label))
    return predictions


def test_ultralytics_agrees_between_student_pt_and_onnx(lively: Lively, tmp_path: Path) -> None:
    from ultralytics import YOLO

    detector = lively("yolov8n")
    detector.save(tmp_path / "student.pt", {})
    export_onnx(detector, tmp_path / "student.onnx", OnnxExportConfig(image_size=SIZE))
    picture = np.ascontiguousarray(one_batch().images[1].permute(1, 2, 0).numpy()[:70, :, ::-1])
    boxes = []
    for name in ("student.pt", "student.onnx"):
        result = YOLO(tmp_path / name, task="detect").predict(
            picture, conf=0.1, imgsz=SIZE, rect=False, verbose=False, project=str(tmp_path)
        )[0]
        boxes.append(result.boxes.data.numpy())
    assert len(boxes[0]) > 10
    np.testing.assert_allclose(boxes[0], boxes[1], atol=0.05)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts(channels: int, lively: Lively, tmp_path: Path) -> None:
    detector = lively("yolov8n", channels)
    exported = export_onnx(detector, tmp_path / "a.onnx", OnnxExportConfig(image_size=SIZE))
    assert exported.parity.passed
    assert OnnxPredictor(exported.path).input.channels == channels


def test_all_mistakes_of_a_request_at_once(lively: Lively, tmp_path: Path) -> None:
    config = OnnxExportConfig(image_size=100, batch=0, opset=25, nms=True, precision="int8")
    with pytest.raises(RequestError) as caught:
        export_onnx(lively("yolo26n"), tmp_path / "no" / "a.bin", config)
    assert caught.value.problems == (
        f"--out: {tmp_path}/no/a.bin ends with '.bin'; a file of the format onnx ends with .onnx",
        f"--out: folder {tmp_path}/no does not exist; make it first",
        "--image-size: 100 is not a multiple of 32, which yolo26n needs; use 96",
        "--batch: 0 images make no batch; give 1 or more, or 'dynamic'",
        "--opset: 25 is not supported; possible: 11 to 20, default 18",
        "--nms: yolo26n has an end-to-end head, which needs no NMS; leave --nms out",
        "--precision: int8 is not available in this version; possible: fp32",
    )


def test_an_adapter_with_a_wrong_output_is_a_bug_and_not_a_request(
    lively: Lively, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = lively("yolov8n")
    monkeypatch.setattr(detector, "export_module", lambda nms_free=None: nn.Flatten(2))
    with pytest.raises(KDVisionError, match=r"yolov8n: .*shape \(1, 3, 9216\), which is not 'dense_cxcywh'") as caught:
        export_onnx(detector, tmp_path / "a.onnx", OnnxExportConfig(image_size=SIZE))
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


class _Wrong(nn.Module):
    """An export module whose output is wrong."""

    def __init__(self, module: nn.Module, fault: str) -> None:
        super().__init__()
        self.module = module
        self.fault = fault

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.module(images)
        boxes, scores = output[:, :4], output[:, 4:]
        if self.fault == "shifted":
            boxes = boxes + torch.tensor([1.0, 0.0, 0.0, 0.0])[None, :, None]
        if self.fault == "swapped":
            scores = scores[:, [1, 0, 2]]
        if self.fault == "scaled":
            scores = scores * 0.95
        if self.fault == "smaller":
            boxes = boxes * torch.tensor([1.0, 1.0, 0.9, 0.9])[None, :, None]
        return torch.cat((boxes, scores), dim=1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("shifted", "coordinate difference in pixels, 99th percentile: 1"),
        ("swapped", "of the boxes have a partner"),
        ("scaled", "score difference, 99th percentile"),
        ("smaller", "coordinate difference in pixels, 99th percentile"),
    ],
)
def test_gate_refuses_a_wrong_graph(
    fault: str, reason: str, lively: Lively, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = lively("yolov8n")
    module = _Wrong(detector.export_module(), fault)
    monkeypatch.setattr(detector, "export_module", lambda nms_free=None: module)
    out = tmp_path / "a.onnx"
    out.write_bytes(b"the export of yesterday")
    with pytest.raises(GateError, match=reason) as caught:
        export_onnx(detector, out, OnnxExportConfig(image_size=SIZE))
    assert caught.value.exit_code == 3
    assert "no file was written" in str(caught.value)
    assert out.read_bytes() == b"the export of yesterday"
    assert list(tmp_path.iterdir()) == [out]


def test_nms_thresholds_are_fixed_in_the_graph(lively: Lively, tmp_path: Path) -> None:
    config = OnnxExportConfig(image_size=SIZE, nms=True, score_threshold=0.3, nms_iou=0.4, max_detections=20)
    detector = lively("yolov8n")
    exported = export_onnx(detector, tmp_path / "a.onnx", config)
    given = OnnxPredictor(exported.path).predict(one_batch(), PredictOptions(0.0, 0.9, 300))
    wanted = detector.predict(one_batch(), PredictOptions(0.3, 0.4, 20))
    assert [len(each) for each in given] == [len(each) for each in wanted]
    assert min(each.scores.min() for each in given if len(each)) > 0.3
