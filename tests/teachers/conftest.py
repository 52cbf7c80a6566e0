"""ONNX files that always answer the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Return a function (file name, classes, *rows x1 y1 x2 y2 score label) -> path; the file takes 32 x 32 pixels."""

    def write(name: str, classes: list[str], *rows: list[float]) -> str:
        values = np.float32([rows])
        graph = helper.make_graph(
            [helper.make_node("Identity", ["value"], ["rows"])],
            "test",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, values.shape)],
            [numpy_helper.from_array(values, "value")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        said = {"kd_vision.classes": json.dumps(classes), "kd_vision.layout": "end_to_end"}
        helper.set_model_props(model, said)
        onnx.save(model, tmp_path / name)
        return str(tmp_path / name)

    return write
