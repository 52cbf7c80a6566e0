"""Every kind of model through the exporter and its gate, read back by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from kd_vision.core.predictions import PredictOptions
from kd_vision.detectors.boxes import cxcywh_to_xyxy
from kd_vision.detectors.postprocess import nms
from kd_vision.detectors.torchvision.common import TorchvisionDetector
from kd_vision.export import load_exporter
from kd_vision.export.base import export_detector
from kd_vision.export.onnx import OnnxExportConfig
from kd_vision.export.parity import synthetic_inputs

Make = Callable[[str], TorchvisionDetector]
SIZE = 64


@pytest.mark.parametrize(
    ("name", "batch", "opset"),
    [
        ("retinanet_resnet18_fpn", 1, 18),
        ("fcos_resnet18_fpn", "dynamic", 18),
        ("ssdlite320_mobilenet_v3_large", "dynamic", 11),
        ("fasterrcnn_resnet18_fpn", "dynamic", 18),
    ],
)
def test_the_file_finds_the_same_boxes(name: str, batch: int | str, opset: int, make: Make, tmp_path: Path) -> None:
    detector = make(name)
    if name.startswith("fasterrcnn"):  # most of its weight, and of the time to write it, is in two linear layers
        detector.net.roi_heads.box_head = TwoMLPHead(256 * 7 * 7, 32)
        detector.net.roi_heads.box_predictor = FastRCNNPredictor(32, 4)
    with torch.no_grad():
        for seed in range(2):
            detector(torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)))
    detector.eval()
    inputs = synthetic_inputs(detector.spec, SIZE, images=2)
    config = OnnxExportConfig.model_validate({"image_size": SIZE, "batch": batch, "opset": opset, "simplify": False})
    exported = export_detector(load_exporter("onnx"), detector, tmp_path / "model.onnx", config, {}, inputs)
    assert exported.output_format == "dense_cxcywh"
    assert exported.parity.reference_boxes > 100
    assert exported.parity.matched_share == 1.0
    assert exported.parity.score_max < 1e-4
    # Another batch than the one that was traced: the raw output, through the same NMS as the detector's.
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = torch.rand(3 if batch == "dynamic" else 1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    options = PredictOptions(0.01, 0.5, 50)
    dense = torch.from_numpy(session.run(None, {"images": images.numpy()})[0]).transpose(1, 2)
    assert len(dense) == len(images)
    from_file = nms(cxcywh_to_xyxy(dense[..., :4]), dense[..., 4:], options).per_image()
    for found, wanted in zip(from_file, detector.detect(images, options), strict=True):
        assert len(found) == len(wanted) > 5
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    # No step of the second stage depends on the data, so that devices without dynamic shapes can run the file.
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not operators & {"NonZero", "NonMaxSuppression", "Loop", "If"}
