"""The runtime where torch, torchvision, ultralytics and albumentations are not installed: image in, detections out."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import kd_vision.runtime

for package in ("torch", "torchvision", "ultralytics", "albumentations"):
    assert importlib.util.find_spec(package) is None, f"{package} is installed: this proves nothing"
for module in pkgutil.iter_modules(kd_vision.runtime.__path__):
    importlib.import_module(f"kd_vision.runtime.{module.name}")

# A graph that always answers two boxes: the centre's with 0.9 as class 1, and one below the threshold.
answer = np.zeros((1, 4 + 2, 2), np.float32)
answer[0, :4] = np.float32([[32, 10], [32, 10], [20, 4], [10, 4]])
answer[0, 4:] = np.float32([[0.0, 0.1], [0.9, 0.0]])
image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])
output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(answer.shape))
value = helper.make_tensor("answer", TensorProto.FLOAT, answer.shape, answer.ravel())
graph = helper.make_graph([helper.make_node("Constant", [], ["output0"], value=value)], "fixed", [image], [output])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "fixed.onnx"
    onnx.save(model, path)
    detector = kd_vision.runtime.OnnxDetector(path, classes=["red", "blue"], output_format="dense_cxcywh")
    options = kd_vision.runtime.PredictOptions(score_threshold=0.5)
    detections = detector.predict(np.zeros((64, 128, 3), np.uint8), options)

# 128x64 pixels lie at half scale, 16 px below the top of the square input.
np.testing.assert_allclose(detections.boxes_xyxy, [[44, 22, 84, 42]], atol=1e-4)
np.testing.assert_allclose(detections.scores, [0.9], atol=1e-6)
assert detections.labels.tolist() == [1]
