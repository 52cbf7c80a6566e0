"""Graphs made by hand whose answers are known, and real files of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import PredictOptions
from kd_vision.teachers.onnx import OnnxPredictor

ULTRALYTICS = {
    "task": "detect",
    "names": "{0: 'car', 1: 'it\\'s'}",
    "imgsz": "[32, 32]",
    "stride": "32",
    "args": "{'nms': False}",
    "end2end": "False",
}


def write_graph(
    path: Path,
    shape: tuple[int, int],
    bias: list[float],
    batch: int | str = 1,
    size: int | str = 32,
    metadata: dict[str, str] | None = None,
    weight: dict[tuple[int, int], float] | None = None,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Output (B, *shape) = bias + weight x mean of each channel; weight by (channel, flat position)."""
    count = shape[0] * shape[1]
    matrix = np.zeros((3, count), np.float32)
    for place, value in (weight or {}).items():
        matrix[place] = value
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    constants = {
        "weight": matrix.astype(dtype),
        "bias": np.array(bias, dtype),
        "shape": np.array([-1, *shape], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["means", "weight", "bias"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", kind, [batch, 3, size, size])],
        [helper.make_tensor_value_info("output0", kind, [batch, *shape])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


# Two points and two classes: (6, 2) cx cy w h score score. Point 1 answers for class 1 only.
DENSE = [10.0, 20.0, 12.0, 16.0, 4.0, 8.0, 6.0, 8.0, 0.75, 0.0, 0.0, 0.5]
ROWS = [1.0, 2.0, 11.0, 12.0, 0.5, 1.0, 4.0, 4.0, 8.0, 8.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def batch_of(*values: int, size: int = 32, letterbox: Letterbox | None = None) -> ImageBatch:
    """Images whose red channel has a value; the other channels are zero."""
    images = torch.zeros(len(values), 3, size, size, dtype=torch.uint8)
    for index, value in enumerate(values):
        images[index, 0] = value
    none = torch.zeros(0, dtype=torch.int64)
    box = letterbox or Letterbox(size, size, 1.0, 1.0, 0, 0)
    return ImageBatch(
        images,
        Targets(none, none, torch.zeros(0, 4)),
        torch.zeros(len(values), dtype=torch.bool),
        tuple(range(len(values))),
        (box,) * len(values),
    )


def test_dense_layout_of_ultralytics(tmp_path: Path) -> None:
    predictor = OnnxPredictor(write_graph(tmp_path / "a.onnx", (6, 2), DENSE, metadata=ULTRALYTICS))
    assert predictor.output_format == "dense_cxcywh"
    assert predictor.spec.classes == ("car", "it's")
    assert (predictor.image_size, predictor.spec.size_multiple) == (32, 32)
    assert predictor.spec.end_to_end is False
    found = predictor.predict(batch_of(0))[0]
    assert found.boxes_xyxy.tolist() == [[8.0, 9.0, 12.0, 15.0], [16.0, 12.0, 24.0, 20.0]]
    assert found.scores.tolist() == [0.75, 0.5]
    assert found.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "output_format"),
    [({"end2end": "True"}, "end_to_end"), ({"args": "{'nms': True}"}, "nms")],
)
def test_row_layouts_of_ultralytics(change: dict[str, str], output_format: str, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", (3, 6), ROWS, metadata={**ULTRALYTICS, **change})
    predictor = OnnxPredictor(path)
    assert predictor.output_format == output_format
    assert predictor.spec.end_to_end is True
    found = predictor.predict(batch_of(0))[0]
    assert found.boxes_xyxy.tolist() == [[1.0, 2.0, 11.0, 12.0], [4.0, 4.0, 8.0, 8.0]]
    assert found.labels.tolist() == [1, 0]
    assert len(predictor.predict(batch_of(0), PredictOptions(0.3))[0]) == 1
    assert len(predictor.predict(batch_of(0), PredictOptions(max_detections=1))[0]) == 1


def test_boxes_come_back_in_original_pixels(tmp_path: Path) -> None:
    """An image of 64 x 32 in a square of 32: half the size, 8 pixels of gray above and below."""
    letterbox = Letterbox(32, 64, 0.5, 0.5, 0, 8)
    predictor = OnnxPredictor(write_graph(tmp_path / "a.onnx", (6, 2), DENSE, metadata=ULTRALYTICS))
    found = predictor.predict(batch_of(0, letterbox=letterbox))[0]
    assert found.boxes_xyxy.tolist() == [[16.0, 2.0, 24.0, 14.0], [32.0, 8.0, 48.0, 24.0]]


def test_pixels_arrive_as_rgb_between_0_and_1(tmp_path: Path) -> None:
    """The score of point 0 is the mean of the first channel, which is red."""
    bias = [*DENSE[:8], 0.0, 0.0, 0.0, 0.0]
    path = write_graph(tmp_path / "a.onnx", (6, 2), bias, metadata=ULTRALYTICS, weight={(0, 8): 1.0})
    found = OnnxPredictor(path).predict(batch_of(51))[0]
    assert found.scores.tolist() == [pytest.approx(0.2, abs=1e-5)]


@pytest.mark.parametrize("batch", [1, 2, 4, "batch"])
def test_any_number_of_images_for_any_batch(batch: int | str, tmp_path: Path) -> None:
    bias = [*DENSE[:8], 0.0, 0.0, 0.0, 0.0]
    path = write_graph(tmp_path / "a.onnx", (6, 2), bias, batch, metadata=ULTRALYTICS, weight={(0, 8): 1.0})
    found = OnnxPredictor(path).predict(batch_of(51, 102, 153))
    assert [each.scores.tolist() for each in found] == [
        [pytest.approx(0.2, abs=1e-5)],
        [pytest.approx(0.4, abs=1e-5)],
        [pytest.approx(0.6, abs=1e-5)],
    ]


def test_half_precision_input(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", (6, 2), DENSE, metadata=ULTRALYTICS, kind=TensorProto.FLOAT16)
    assert OnnxPredictor(path).predict(batch_of(0))[0].scores.tolist() == [0.75, 0.5]


def test_free_size_recommends_that_of_the_metadata(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", (6, 2), DENSE, size="side", metadata=ULTRALYTICS)
    predictor = OnnxPredictor(path)
    assert predictor.image_size == 32
    assert len(predictor.predict(batch_of(0, size=64))[0]) == 2


def test_declared_layout_and_classes(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", (6, 2), DENSE)
    predictor = OnnxPredictor(path, classes=("a", "b"), output_format="dense_cxcywh")
    assert predictor.spec.classes == ("a", "b")
    assert predictor.predict(batch_of(0))[0].labels.tolist() == [0, 1]


def refused(path: Path, **declared: Any) -> str:
    with pytest.raises(RequestError) as caught:
        OnnxPredictor(path, **declared)
    return str(caught.value)


def test_unknown_layout_is_refused_by_name(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", (6, 2), DENSE)
    assert refused(path) == (
        f"{path}: output format not recognised: the outputs are output0 (1, 6, 2), and the metadata records none; "
        "declare output_format as one of "
        "dense_cxcywh: (B, 4 + classes, points): centre x, centre y, width, height in input pixels, then scores; "
        "end_to_end: (B, boxes, 6): x1 y1 x2 y2 score label, no NMS needed; "
        "nms: (B, boxes, 6): the same rows after NMS in the graph, padded with zeros; "
        "torchvision: boxes (boxes, 4) x1 y1 x2 y2, labels (boxes) from 1, scores (boxes) of one image; "
        "yolox: (B, points, 5 + classes): undecoded offsets and log sizes in strides, objectness, scores; "
        "wants BGR 0 to 255; "
        "detr: (B, queries, 4 + classes): centre x, centre y, width, height from 0 to 1, then scores; "
        "detr_rows: (B, queries, 6): centre x, centre y, width, height from 0 to 1, score, label; "
        "detr_sigmoid: logits (B, queries, classes) and boxes (B, queries, 4) as in 'detr'; "
        "detr_softmax: the same with a last logit for 'no object'"
    )


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "no.onnx"
    assert refused(missing) == f"{missing}: does not exist; give an .onnx file"
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"this is no graph")
    assert refused(corrupt).startswith(f"{corrupt}: onnxruntime cannot open it (")
    path = write_graph(tmp_path / "a.onnx", (6, 2), DENSE, metadata=ULTRALYTICS)
    assert refused(path, output_format="nms") == (
        f"{path}: output_format is declared as 'nms', but the file records 'dense_cxcywh'; leave it out"
    )
    assert refused(path, classes=("a", "b", "c")) == (
        f"{path}: output format 'dense_cxcywh' needs 7 values per box (4 + 3 classes), the output is (1, 6, 2)"
    )
    assert refused(write_graph(path, (6, 2), DENSE, metadata={**ULTRALYTICS, "task": "segment"})) == (
        f"{path}: is a model for 'segment'; only 'detect' is supported"
    )
    assert refused(write_graph(path, (6, 2), DENSE), output_format="dense_cxcywh") == (
        f"{path}: the file does not record its classes; declare them, in label order"
    )
    assert refused(write_graph(path, (6, 2), DENSE, metadata={**ULTRALYTICS, "names": "{0: car"})) == (
        f"{path}: metadata 'names' is not a list of classes: {{0: car; export the file again"
    )


def test_names_are_read_as_values_and_never_run(tmp_path: Path) -> None:
    trap = "__import__('os').system('touch trapped')"
    path = write_graph(tmp_path / "a.onnx", (6, 2), DENSE, metadata={**ULTRALYTICS, "names": trap})
    assert "is not a list of classes" in refused(path)
    assert not Path("trapped").exists()


def test_wrong_images_are_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", (6, 2), DENSE, metadata=ULTRALYTICS)
    batch = batch_of(0, size=64)
    with pytest.raises(RequestError) as caught:
        OnnxPredictor(path).predict(batch)
    assert str(caught.value) == (f"{path}: takes images of 32x32 pixels, given 64x64; use image size 32")
    gray = batch_of(0)
    gray = ImageBatch(gray.images[:, :1], gray.targets, gray.labelled, gray.image_ids, gray.letterboxes)
    with pytest.raises(RequestError) as caught:
        OnnxPredictor(path).predict(gray)
    assert str(caught.value) == f"{path}: takes 3 channels, the images have 1"


def test_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    rows = [1.0, 2.0, 11.0, 12.0, 0.5, 7.0]
    path = write_graph(tmp_path / "a.onnx", (1, 6), rows, metadata={**ULTRALYTICS, "end2end": "True"})
    with pytest.raises(RequestError) as caught:
        OnnxPredictor(path).predict(batch_of(0))
    assert str(caught.value) == (
        f"{path}: image id 0: the output has label 7, but the model has 2 classes; "
        "is its output format really 'end_to_end'?"
    )


@pytest.mark.parametrize(
    ("name", "output_format", "size", "declared"),
    [
        pytest.param("yolo26n_coco_int8.onnx", "end_to_end", 640, {}, marks=pytest.mark.stress),
        ("yolo11n_coco_int8_320.onnx", "dense_cxcywh", 320, {}),
        ("yolox_nano_coco_416.onnx", "yolox", 416, {"output_format": "yolox", "classes": "coco80"}),
    ],
)
def test_real_files_find_what_the_annotations_say(
    name: str, output_format: str, size: int, declared: dict[str, Any], shared: Path
) -> None:
    """On four pictures of COCO, most confident boxes lie on a box of the ground truth of the same class."""
    weights, data = shared / "weights" / name, shared / "data" / "coco_tiny"
    from torchvision.ops import box_iou

    from kd_vision.data.dataset import load_split
    from kd_vision.data.descriptor import DataDescriptor, SplitSource
    from kd_vision.data.loader import eval_batches

    source = SplitSource(images="images/val2017", annotations="annotations/instances_val2017.json")
    truth = load_split(DataDescriptor(format="coco", root=data, splits={"val": source}), "val")
    truth = replace(truth, images=truth.images[:4])
    predictor = OnnxPredictor(weights, **declared)
    assert (predictor.output_format, predictor.image_size, len(predictor.spec.classes)) == (output_format, size, 80)
    right = total = 0
    for batch in eval_batches(truth, size, 3, 3):
        for image_id, found in zip(batch.image_ids, predictor.predict(batch, PredictOptions(0.5))):
            record = next(image for image in truth.images if image.image_id == image_id)
            iou = box_iou(torch.from_numpy(found.boxes_xyxy), torch.from_numpy(record.boxes_xyxy)).numpy()
            names = np.array([predictor.spec.classes[label] for label in found.labels])
            known = np.array([truth.classes[label] for label in record.labels])
            right += int(((iou > 0.5) & (names[:, None] == known[None])).any(axis=1).sum())
            total += len(found)
    assert total >= 8
    assert right / total > 0.7


def test_layout_of_another_family_is_refused_clearly(shared: Path) -> None:
    path = shared / "weights" / "yolox_nano_coco_416.onnx"
    assert refused(path).startswith(f"{path}: output format not recognised: the outputs are output (1, 3549, 85), ")


def test_a_size_that_the_graph_cannot_run_is_told(tmp_path: Path) -> None:
    """The file declares free sides, but its graph was traced at 32: it adds a map of 32 x 32 to the image."""
    nodes = [
        helper.make_node("Add", ["images", "map"], ["sum"]),
        helper.make_node("ReduceMean", ["sum"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Add", ["rows", "mean"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 3, 6])],
        [
            numpy_helper.from_array(np.zeros((1, 3, 32, 32), np.float32), "map"),
            numpy_helper.from_array(np.array(ROWS, np.float32).reshape(1, 3, 6), "rows"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    said = {"kd_vision.classes": '["a", "b"]', "kd_vision.layout": "end_to_end"}
    helper.set_model_props(model, {**said, "imgsz": "[32, 32]"})
    onnx.save(model, tmp_path / "a.onnx")
    predictor = OnnxPredictor(tmp_path / "a.onnx")
    assert len(predictor.detect(torch.zeros(1, 3, 32, 32))[0]) == 2
    with pytest.raises(RequestError) as caught:
        predictor.detect(torch.zeros(1, 3, 64, 96))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'a.onnx'}: onnxruntime cannot run it on images of 64x96 (")
    assert text.endswith("); give image_size: 32")
    assert "\n" not in text
    helper.set_model_props(model, said)
    del model.metadata_props[:]
    helper.set_model_props(model, said)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(RequestError, match=r"give image_size: the size it was exported for$"):
        OnnxPredictor(tmp_path / "a.onnx").detect(torch.zeros(1, 3, 64, 64))


def test_scores_of_a_quantised_file_stay_between_0_and_1(tmp_path: Path) -> None:
    values = [10.0, 20.0, 12.0, 16.0, 4.0, 8.0, 6.0, 8.0, 1.005, -0.005, -0.005, 0.5]
    found = OnnxPredictor(write_graph(tmp_path / "a.onnx", (6, 2), values, metadata=ULTRALYTICS)).detect(
        torch.zeros(1, 3, 32, 32)
    )[0]
    assert found.scores.tolist() == [1.0, 0.5]
    assert found.class_probs is not None
    assert found.class_probs.tolist() == [[1.0, 0.0], [0.0, 0.5]]
