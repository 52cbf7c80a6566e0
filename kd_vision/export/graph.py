"""Surgery on ONNX graphs: non-maximum suppression as ONNX operators, declared shapes, metadata.

Shapes: B images, A grid points, K classes, N boxes that survive NMS in the whole batch, M rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kd_vision.core.predictions import PredictOptions

OUTPUT = "output0"
_DENSE = "dense"


def append_nms(model: ModelProto, options: PredictOptions, classes: int, points: int) -> None:
    """Turn dense predictions (B, 4 + K, A) into rows (B, M, 6), best first, padded with zeros.

    ONNX's NonMaxSuppression returns one list of survivors for the whole batch. Their scores are
    scattered into an empty (B, K, A), and TopK takes the best M of each image, so that the graph has
    no loop over images and works for any batch size. A point may have boxes of several classes, as in
    `detectors.postprocess.nms`. Rows: x1 y1 x2 y2 score label.

    Args:
        model: its only output is dense; changed in place.
        options: thresholds; boxes with a score at or below the threshold are dropped.
        classes: K.
        points: A.
    """
    rename_output(model, _DENSE)
    rows = min(options.max_detections, classes * points)
    constants: Mapping[str, npt.NDArray[np.generic]] = {
        "nms_zero": np.array([0], np.int64),
        "nms_four": np.array([4], np.int64),
        "nms_end": np.array([4 + classes], np.int64),
        "nms_axis": np.array([1], np.int64),
        "nms_most": np.array([options.max_detections], np.int64),
        "nms_iou": np.array([options.nms_iou], np.float32),
        "nms_score": np.array([options.score_threshold], np.float32),
        "nms_flat": np.array([0, classes * points], np.int64),
        "nms_rows": np.array([rows], np.int64),
        "nms_points": np.array([points], np.int64),
        "nms_column": np.array([0, rows, 1], np.int64),
        "nms_half": np.array([0.5], np.float32),
        "nms_repeat": np.array([1, 1, 4], np.int64),
        "nms_nothing": np.array([0.0], np.float32),
        "nms_center": np.array([0, 1], np.int64),
        "nms_two": np.array([2], np.int64),
        "nms_last_axis": np.array([2], np.int64),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(_survivors() + _best_rows())
    declare_output(model, OUTPUT, [None, rows, 6])


def _survivors() -> list[NodeProto]:
    """Return the nodes from dense predictions to scores after NMS, zero where suppressed, (B, K * A)."""
    return [
        _node("Slice", [_DENSE, "nms_zero", "nms_four", "nms_axis"], "nms_boxes_by_point"),
        _node("Transpose", ["nms_boxes_by_point"], "nms_cxcywh", perm=[0, 2, 1]),
        _node("Slice", [_DENSE, "nms_four", "nms_end", "nms_axis"], "nms_scores"),
        _node(
            "NonMaxSuppression",
            ["nms_cxcywh", "nms_scores", "nms_most", "nms_iou", "nms_score"],
            "nms_selected",
            center_point_box=1,
        ),
        _node("GatherND", ["nms_scores", "nms_selected"], "nms_selected_scores"),
        _node("Mul", ["nms_scores", "nms_nothing"], "nms_empty"),
        _node("ScatterND", ["nms_empty", "nms_selected", "nms_selected_scores"], "nms_kept"),
        _node("Reshape", ["nms_kept", "nms_flat"], "nms_kept_flat"),
    ]


def _best_rows() -> list[NodeProto]:
    """Return the nodes from scores after NMS to rows (B, M, 6); a row without a score is all zeros."""
    return [
        NodeProto(
            op_type="TopK",
            name="nms_TopK",
            input=["nms_kept_flat", "nms_rows"],
            output=["nms_top_scores", "nms_top"],
            attribute=[helper.make_attribute("axis", 1)],
        ),
        _node("Div", ["nms_top", "nms_points"], "nms_label"),
        _node("Mod", ["nms_top", "nms_points"], "nms_point"),
        _node("Reshape", ["nms_point", "nms_column"], "nms_point_column"),
        _node("Tile", ["nms_point_column", "nms_repeat"], "nms_point_index"),
        _node("GatherElements", ["nms_cxcywh", "nms_point_index"], "nms_top_cxcywh", axis=1),
        _node("Slice", ["nms_top_cxcywh", "nms_zero", "nms_two", "nms_last_axis"], "nms_centre"),
        _node("Slice", ["nms_top_cxcywh", "nms_two", "nms_four", "nms_last_axis"], "nms_size"),
        _node("Mul", ["nms_size", "nms_half"], "nms_reach"),
        _node("Sub", ["nms_centre", "nms_reach"], "nms_low"),
        _node("Add", ["nms_centre", "nms_reach"], "nms_high"),
        _node("Reshape", ["nms_top_scores", "nms_column"], "nms_score_column"),
        _node("Cast", ["nms_label"], "nms_label_float", to=TensorProto.FLOAT),
        _node("Reshape", ["nms_label_float", "nms_column"], "nms_label_column"),
        _node("Concat", ["nms_low", "nms_high", "nms_score_column", "nms_label_column"], "nms_unmasked", axis=2),
        _node("Greater", ["nms_score_column", "nms_nothing"], "nms_is_box"),
        _node("Cast", ["nms_is_box"], "nms_mask", to=TensorProto.FLOAT),
        _node("Mul", ["nms_unmasked", "nms_mask"], OUTPUT),
    ]


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: object) -> NodeProto:
    return helper.make_node(operator, list(inputs), [output], name=f"{output}_{operator}", **attributes)


def rename_output(model: ModelProto, name: str) -> None:
    """Rename the graph's only output, also where nodes read or write it."""
    old = model.graph.output[0].name
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [name if tensor == old else tensor for tensor in tensors]
    model.graph.output[0].name = name


def free_batch(model: ModelProto, item_shape: Sequence[int]) -> None:
    """Give the only output an unnamed batch axis, by a reshape that shape inference cannot see through.

    ultralytics assumes that a file whose output has a named batch axis accepts any height and width
    too, and feeds it images that the graph cannot read.

    Args:
        model: whose batch axis is dynamic.
        item_shape: lengths of the other axes.
    """
    name = model.graph.output[0].name
    rename_output(model, f"{name}_shaped")
    shape = numpy_helper.from_array(np.array([-1, *item_shape], np.int64), "free_batch_shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(_node("Reshape", [f"{name}_shaped", "free_batch_shape"], name))
    declare_output(model, name, [None, *item_shape])


def declare_output(model: ModelProto, name: str, shape: Sequence[int | None]) -> None:
    """Set the name and the shape of the only output; None: an axis of any length, without a name."""
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))


def write_metadata(model: ModelProto, values: Mapping[str, str]) -> None:
    """Set metadata properties; keys already there are replaced."""
    before = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    helper.set_model_props(model, {**before, **values})


def check(model: ModelProto) -> None:
    """Check operators and shapes with ONNX's own checker."""
    onnx.checker.check_model(model, full_check=True)
