"""The detector of a device: images of any size in, boxes in their pixels out, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import kd_vision.runtime
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import PredictOptions
from kd_vision.runtime.detector import OnnxDetector
from kd_vision.runtime.metadata import KEY_PREPROCESSING, ModelMetadata
from kd_vision.runtime.preprocessing import Preprocessing

SIZE = 32
BOX = [8.0, 12.0, 16.0, 20.0]


def write_model(path: Path, channels: int = 3, size: int | str = SIZE, **recorded: Any) -> Path:
    """Write a graph of format 'end_to_end' with one row: BOX, the mean of the input's first channel, label 1."""
    matrix = np.zeros((channels, 6), np.float32)
    matrix[0, 4] = 1.0
    constants = {"matrix": matrix, "row": np.float32([*BOX, 0.0, 1.0]), "shape": np.int64([-1, 1, 6])}
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["means", "matrix", "row"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["rows"]),
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", channels, size, size])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 1, 6])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "test", [image], [rows], tensors),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    metadata = ModelMetadata(**{"classes": ("a", "b"), "output_format": "end_to_end", **recorded})
    helper.set_model_props(model, metadata.to_properties())
    onnx.save(model, path)
    return path


def test_boxes_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    """64 wide, 32 high: half the size in a square of 32, 8 pixels of padding above and below."""
    detector = OnnxDetector(write_model(tmp_path / "a.onnx"))
    image = np.full((32, 64, 3), 255, np.uint8)
    detections = detector(image)
    assert detections.boxes_xyxy.tolist() == [[16.0, 8.0, 32.0, 24.0]]
    assert detections.labels.tolist() == [1]
    assert detections.scores.tolist() == [pytest.approx((1 + 114 / 255) / 2)]
    assert len(detector.predict(image, PredictOptions(0.8))) == 0


def test_the_recorded_padding_is_obeyed(tmp_path: Path) -> None:
    """A black image on one half of the square: the mean is half the pad value."""
    path = write_model(tmp_path / "a.onnx", preprocessing=Preprocessing(pad_value=51))
    assert OnnxDetector(path)(np.zeros((32, 64, 3), np.uint8)).scores.tolist() == [pytest.approx(0.1)]


@pytest.mark.parametrize(("key", "step"), [("resize", "stretch"), ("interpolation", "lanczos")])
def test_a_recorded_step_that_the_runtime_does_not_know_is_refused(key: str, step: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {KEY_PREPROCESSING: json.dumps({key: step})})
    onnx.save(model, path)
    with pytest.raises(RequestError, match=f"metadata '{KEY_PREPROCESSING}' has {key} {step}; possible: "):
        OnnxDetector(path, ("a", "b"), "end_to_end")


def test_predicts_what_the_torch_side_predicts(tmp_path: Path, random_image: np.ndarray[Any, Any]) -> None:
    import torch

    from kd_vision.core.batch import ImageBatch
    from kd_vision.teachers.onnx import OnnxPredictor

    path = write_model(tmp_path / "a.onnx", preprocessing=Preprocessing(mean=(0.1,) * 3, std=(2.0,) * 3))
    detector = OnnxDetector(path)
    square, placement = detector.preprocessing.fit(random_image, SIZE)
    batch = ImageBatch.of_images(torch.from_numpy(square.transpose(2, 0, 1)[None]), [1], [placement])
    expected, actual = OnnxPredictor(path).predict(batch)[0], detector(random_image)
    np.testing.assert_array_equal(actual.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(actual.scores, expected.scores)


@pytest.fixture
def random_image() -> np.ndarray[Any, Any]:
    """Return a colour image of 45 x 70 pixels, bright enough for a score after normalisation."""
    return np.random.default_rng(5).integers(128, 256, (45, 70, 3), dtype=np.uint8)


def test_input_size_of_a_graph_that_takes_any(tmp_path: Path) -> None:
    """The box is a constant in input pixels, so its size in the image tells the scale."""
    image = np.full((64, 64, 3), 255, np.uint8)
    anything = OnnxDetector(write_model(tmp_path / "a.onnx", size="side"))
    assert anything.image_size is None
    assert anything(image).boxes_xyxy[0, 2] == pytest.approx(1.6)  # 16 of 640
    assert anything.predict(image, image_size=128).boxes_xyxy[0, 2] == 8.0
    recommends = OnnxDetector(write_model(tmp_path / "b.onnx", size="side", image_size=SIZE))
    assert recommends(image).boxes_xyxy[0, 2] == 32.0


def test_gray_images(tmp_path: Path) -> None:
    detector = OnnxDetector(write_model(tmp_path / "a.onnx", channels=1))
    assert detector(np.full((32, 32, 1), 51, np.uint8)).scores.tolist() == [pytest.approx(0.2)]
    with pytest.raises(RequestError, match="takes 1 channels, the images have 3"):
        detector(np.zeros((32, 32, 3), np.uint8))


def test_wrong_images_are_refused(tmp_path: Path) -> None:
    detector = OnnxDetector(write_model(tmp_path / "a.onnx"))
    for image, given in ((np.zeros((8, 8), np.uint8), r"uint8 \(8, 8\)"), (np.zeros((8, 8, 3)), "float64")):
        with pytest.raises(RequestError, match=rf"image: is {given}.*; give uint8 \(height, width, channels\)"):
            detector(image)
    with pytest.raises(RequestError) as caught:
        detector.detect(np.zeros((1, 1, 64, 64), np.float32))
    assert caught.value.problems == (
        f"{detector.path}: takes 3 channels, the images have 1",
        f"{detector.path}: takes images of 32x32 pixels, given 64x64; use image size 32",
    )


def test_providers_reach_the_session(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.onnx")
    assert len(OnnxDetector(path, providers=("cpu",))(np.full((32, 32, 3), 255, np.uint8))) == 1
    with pytest.raises(RequestError, match="providers: 'abacus' is not available in this build of onnxruntime"):
        OnnxDetector(path, providers=("abacus", "cpu"))


WITHOUT_TORCH = """
import importlib, pkgutil, sys
for name in ("torch", "torchvision", "lightning", "ultralytics", "albumentations", "matplotlib", "onnx", "pyarrow"):
    sys.modules[name] = None  # from here on, importing it raises ImportError
from pathlib import Path
import kd_vision.runtime as runtime
for module in pkgutil.iter_modules(runtime.__path__):
    importlib.import_module(f"kd_vision.runtime.{module.name}")
model, image = map(Path, sys.argv[1:])
detections = runtime.OnnxDetector(model)(runtime.read_image(image, 3), runtime.PredictOptions(0.25))
print(detections.boxes_xyxy.tolist(), detections.labels.tolist(), len(detections.scores))
"""


def test_runs_from_file_to_boxes_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    model, image = write_model(tmp_path / "a.onnx"), tmp_path / "image.png"
    cv2.imwrite(str(image), np.full((32, 64, 3), 255, np.uint8))
    command = [sys.executable, "-c", WITHOUT_TORCH, str(model), str(image)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "[[16.0, 8.0, 32.0, 24.0]] [1] 1\n", "")


@pytest.mark.parametrize("module", ["kd_vision.runtime", "kd_vision.runtime.images", "kd_vision.runtime.metadata"])
def test_reading_images_and_metadata_loads_no_runtime(module: str) -> None:
    code = f"import sys, {module}; print('onnxruntime' in sys.modules, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"


def test_public_names() -> None:
    assert kd_vision.runtime.OnnxDetector is OnnxDetector
    for name in kd_vision.runtime.__all__:
        assert getattr(kd_vision.runtime, name).__name__ == name
    with pytest.raises(AttributeError, match=r"module 'kd_vision\.runtime' has no attribute 'OnnxDetektor'"):
        kd_vision.runtime.OnnxDetektor  # noqa: B018
