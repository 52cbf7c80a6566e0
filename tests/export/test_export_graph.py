from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from kd_vision.core.predictions import PredictOptions
from kd_vision.detectors.boxes import cxcywh_to_xyxy
from kd_vision.detectors.postprocess import nms
from kd_vision.export.graph import append_nms, check, free_batch, rename_output, write_metadata

Array = npt.NDArray[np.float32]


def identity(channels: int, points: int) -> onnx.ModelProto:
    """A graph that returns its input (B, channels, points)."""
    sides = ["batch", channels, points]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["dense_input"], ["output"])],
        "test",
        [helper.make_tensor_value_info("dense_input", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, sides)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)


def run(model: onnx.ModelProto, dense: Array) -> Array:
    check(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"dense_input": dense})[0])


def with_nms(classes: int, points: int, score: float = 0.1, iou: float = 0.5, rows: int = 4) -> onnx.ModelProto:
    model = identity(4 + classes, points)
    append_nms(model, PredictOptions(score, iou, rows), classes, points)
    return model


def test_rows_by_hand() -> None:
    """Point 1 overlaps point 0 (IoU 0.9): NMS drops its weaker box of class 0 and keeps its box of class 1."""
    points = [
        # cx, cy, w, h, score of class 0, of class 1
        [10.0, 10.0, 10.0, 10.0, 0.9, 0.05],
        [10.0, 10.0, 10.0, 9.0, 0.8, 0.3],
        [50.0, 40.0, 20.0, 10.0, 0.0, 0.6],
    ]
    dense = np.array(points, np.float32).T[None]
    wanted = [
        [5.0, 5.0, 15.0, 15.0, 0.9, 0.0],
        [40.0, 35.0, 60.0, 45.0, 0.6, 1.0],
        [5.0, 5.5, 15.0, 14.5, 0.3, 1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
    np.testing.assert_allclose(run(with_nms(2, 3), dense)[0], np.array(wanted), atol=1e-6)


def test_nothing_above_the_threshold_gives_zeros() -> None:
    dense = np.full((2, 6, 3), 0.05, np.float32)
    np.testing.assert_array_equal(run(with_nms(2, 3), dense), np.zeros((2, 4, 6), np.float32))


def test_rows_are_at_most_one_per_point_and_class() -> None:
    dense = np.array([[[5.0], [5.0], [2.0], [2.0], [0.7]]], np.float32)
    given = run(with_nms(1, 1, rows=300), dense)
    np.testing.assert_allclose(given, [[[4.0, 4.0, 6.0, 6.0, 0.7, 0.0]]], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_post_processing_of_the_detectors(batch: int) -> None:
    rng = np.random.default_rng(5)
    centres = rng.uniform(10, 90, (batch, 2, 120))
    sizes = rng.uniform(5, 60, (batch, 2, 120))
    scores = rng.uniform(0, 1, (batch, 3, 120)) ** 3
    dense = np.concatenate([centres, sizes, scores], axis=1).astype(np.float32)
    given = run(with_nms(3, 120, score=0.05, iou=0.6, rows=40), dense)
    assert given.shape == (batch, 40, 6)
    boxes, probabilities = torch.from_numpy(dense).transpose(1, 2).split((4, 3), dim=-1)
    detections = nms(cxcywh_to_xyxy(boxes), probabilities, PredictOptions(0.05, 0.6, 40)).per_image()
    for rows, wanted in zip(given, detections, strict=True):
        rows = rows[: len(wanted)]
        np.testing.assert_allclose(rows[:, :4], wanted.boxes_xyxy, atol=1e-4)
        np.testing.assert_allclose(rows[:, 4], wanted.scores, atol=1e-6)
        np.testing.assert_array_equal(rows[:, 5], wanted.labels)


def test_free_batch_keeps_values_and_hides_the_axis(tmp_path: Path) -> None:
    model = identity(6, 3)
    free_batch(model, [6, 3])
    dense = np.arange(36, dtype=np.float32).reshape(2, 6, 3)
    np.testing.assert_array_equal(run(model, dense), dense)
    onnx.save(model, tmp_path / "a.onnx")
    shape = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).get_outputs()[0].shape
    assert not isinstance(shape[0], str)
    assert shape[1:] == [6, 3]


def test_rename_output_keeps_the_graph_valid() -> None:
    model = identity(6, 3)
    rename_output(model, "another")
    assert model.graph.output[0].name == "another"
    dense = np.ones((1, 6, 3), np.float32)
    np.testing.assert_array_equal(run(model, dense), dense)


def test_metadata_is_replaced_key_by_key() -> None:
    model = identity(6, 3)
    write_metadata(model, {"a": "1", "b": "2"})
    write_metadata(model, {"b": "3"})
    assert {each.key: each.value for each in model.metadata_props} == {"a": "1", "b": "3"}
    assert len(model.metadata_props) == 2
