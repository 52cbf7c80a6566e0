"""Output formats of ONNX detectors: which outputs a graph has, and how they decode to boxes.

A new format is one function and one entry of `OUTPUT_FORMATS`.

Shapes: A rows of a head (grid points, queries), K classes, M boxes, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_vision.core.boxes import cxcywh_to_xyxy
from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.runtime.nms import nms
from kd_vision.runtime.preprocessing import Preprocessing
from kd_vision.runtime.session import OnnxOutput

OutputFormat = str
"""A key of `OUTPUT_FORMATS`."""
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Values = npt.NDArray[Any]

_ROW = 6
_YOLOX_STRIDES = (8, 16, 32)
_TOLERANCE = 0.01  # scores of quantised files may lie outside 0 to 1 by this much
_MAX_CANDIDATES = 30_000  # of NMS


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """What a decoder needs besides the outputs.

    Attributes:
        classes: K.
        height, width: of the input, in pixels.
        options: thresholds.
    """

    classes: int
    height: int
    width: int
    options: PredictOptions


MatchOutputs = Callable[[Sequence[OnnxOutput], int], tuple[int, ...]]
Decode = Callable[[Sequence[Values], DecodeContext], Detections]


@dataclass(frozen=True, slots=True)
class OutputFormatEntry:
    """An output format.

    Attributes:
        meaning: one line for people.
        match_outputs: from the graph's outputs and K to the positions of the outputs that `decode` takes, in its
            order; raises ValueError where the graph does not have them.
        decode: from the output values of one image to its boxes in input pixels; raises ValueError where the values
            are impossible.
        needs_nms: the graph gives overlapping boxes of one object.
        preprocessing: what files of this format are trained with; None: it differs from file to file and must be
            declared.
        max_batch: images per call at most; None: any number.
        multiple: height and width must be multiples of it, for a file that does not record it.
    """

    meaning: str
    match_outputs: MatchOutputs
    decode: Decode
    needs_nms: bool = False
    preprocessing: Preprocessing | None = Preprocessing()
    max_batch: int | None = None
    multiple: int = 32


def find_output_format(
    recorded: str | None, declared: OutputFormat | None, outputs: Sequence[OnnxOutput], classes: int | None, path: Path
) -> OutputFormat:
    """Return the recorded format, else the declared one, else `dense_cxcywh` where the shape leaves no doubt.

    Args:
        recorded: in the file's metadata.
        declared: by the user.
        outputs: of the graph.
        classes: K; None: not known.
        path: for messages.

    Raises:
        RequestError: record and declaration differ, the format is unknown, or there is neither.
    """
    output_format = recorded or declared
    if output_format is not None and output_format not in OUTPUT_FORMATS:
        raise RequestError(f"{path}: {unknown_output_format(output_format)}")
    if recorded is not None and declared not in (None, recorded):
        raise RequestError(
            f"{path}: output_format is declared as '{declared}', but the file records '{recorded}'; leave it out"
        )
    if output_format is not None:
        return output_format
    shape = outputs[0].shape
    if classes is not None and len(outputs) == 1 and len(shape) == 3 and shape[1] == 4 + classes:
        return "dense_cxcywh"
    formats = "; ".join(f"{name}: {entry.meaning}" for name, entry in OUTPUT_FORMATS.items())
    raise RequestError(
        f"{path}: output format not recognised: the outputs are {list_outputs(outputs)}, and the metadata records "
        f"none; declare output_format as one of {formats}"
    )


def unknown_output_format(name: str) -> str:
    """Return the message about a name that is no key of `OUTPUT_FORMATS`."""
    return f"output format '{name}' is unknown{suggest(name, OUTPUT_FORMATS)}"


def list_outputs(outputs: Sequence[OnnxOutput]) -> str:
    """Return the names and shapes of outputs, for messages."""
    return ", ".join(map(str, outputs))


def _one_output(axis: int, beside: int | None, meaning: str) -> MatchOutputs:
    """Match one output of rank 3 with `beside` + K values per box on `axis`; None: six values."""

    def match(outputs: Sequence[OnnxOutput], classes: int) -> tuple[int, ...]:
        if len(outputs) != 1 or len(outputs[0].shape) != 3:
            raise ValueError(f"needs one output of three axes, the file has {list_outputs(outputs)}")
        wanted = _ROW if beside is None else beside + classes
        side = outputs[0].shape[axis]
        if isinstance(side, int) and side != wanted:
            text = meaning if beside is None else f"{beside} + {classes} classes"
            shape = ", ".join(str(each) for each in outputs[0].shape)
            raise ValueError(f"needs {wanted} values per box ({text}), the output is ({shape})")
        return (0,)

    return match


def _two_outputs(extra: int) -> MatchOutputs:
    """Match logits (B, A, K + extra) and boxes (B, A, 4), in any order."""

    def match(outputs: Sequence[OnnxOutput], classes: int) -> tuple[int, ...]:
        if len(outputs) != 2 or any(len(each.shape) != 3 for each in outputs):
            raise ValueError(f"needs two outputs of three axes, the file has {list_outputs(outputs)}")
        wide = classes + extra
        orders = [
            (logits, 1 - logits)
            for logits in (0, 1)
            if _may_be(outputs[logits].shape[2], wide) and _may_be(outputs[1 - logits].shape[2], 4)
        ]
        named = [order for order in orders if "box" in outputs[order[1]].name and "box" not in outputs[order[0]].name]
        if not orders:
            raise ValueError(f"needs logits of {wide} values and boxes of 4, the file has {list_outputs(outputs)}")
        if len(orders) > 1 and not named:
            raise ValueError(
                f"cannot tell logits from boxes among {list_outputs(outputs)}; name the boxes 'pred_boxes'"
            )
        return (named or orders)[0]

    return match


def _torchvision_outputs(outputs: Sequence[OnnxOutput], classes: int) -> tuple[int, ...]:
    boxes = [i for i, each in enumerate(outputs) if len(each.shape) == 2 and _may_be(each.shape[1], 4)]
    flat = [i for i, each in enumerate(outputs) if len(each.shape) == 1]
    labels = [i for i in flat if outputs[i].integer]
    scores = [i for i in flat if not outputs[i].integer]
    if len(outputs) != 3 or (len(boxes), len(labels), len(scores)) != (1, 1, 1):
        raise ValueError(
            f"needs boxes (M, 4), integer labels (M,) and scores (M,), the file has {list_outputs(outputs)}"
        )
    return (boxes[0], scores[0], labels[0])


def _may_be(side: int | str | None, wanted: int) -> bool:
    return side == wanted or not isinstance(side, int)


def _dense_cxcywh(outputs: Sequence[Values], context: DecodeContext) -> Detections:
    columns = outputs[0]
    return _classwise_nms(cxcywh_to_xyxy(columns[:4].T), _probabilities(columns[4:]).T, context.options)


def _rows(outputs: Sequence[Values], context: DecodeContext) -> Detections:
    rows = outputs[0]
    scores = _probabilities(rows[:, 4])
    return _top_k(rows[:, :4], scores, _labels(rows[:, 5], scores, 0, context), context.options)


def _torchvision(outputs: Sequence[Values], context: DecodeContext) -> Detections:
    boxes, scores, labels = outputs
    return _top_k(boxes, _probabilities(scores), _labels(labels, scores, 1, context), context.options)


def _yolox(outputs: Sequence[Values], context: DecodeContext) -> Detections:
    rows = outputs[0]
    corner, stride = _yolox_grid(context.height, context.width)
    if len(corner) != len(rows):
        text = f"strides 8, 16, 32 of {context.height}x{context.width} pixels"
        raise ValueError(f"the output has {len(rows)} rows, but {text} make {len(corner)}")
    boxes = np.concatenate([(rows[:, :2] + corner) * stride, np.exp(rows[:, 2:4]) * stride], axis=1)
    scores = _probabilities(rows[:, 4:5]) * _probabilities(rows[:, 5:])
    return _classwise_nms(cxcywh_to_xyxy(boxes), scores, context.options)


def _yolox_grid(height: int, width: int) -> tuple[Floats, Floats]:
    """Return column and row (A, 2) of each grid point in units of its stride, and the strides (A, 1)."""
    points, strides = [], []
    for stride in _YOLOX_STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        points.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((x.size, 1), stride))
    return np.concatenate(points).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _detr(outputs: Sequence[Values], context: DecodeContext) -> Detections:
    return _queries(outputs[0][:, :4], _probabilities(outputs[0][:, 4:]), context)


def _detr_sigmoid(outputs: Sequence[Values], context: DecodeContext) -> Detections:
    logits, boxes = outputs
    probs = np.exp(np.minimum(logits, 0)) / (1 + np.exp(-np.abs(logits)))  # exp of nothing above 0: no overflow
    return _queries(boxes, probs, context)


def _detr_softmax(outputs: Sequence[Values], context: DecodeContext) -> Detections:
    logits, boxes = outputs
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = (powers / powers.sum(axis=1, keepdims=True))[:, :-1]
    return _top_k(_in_pixels(boxes, context), probs.max(axis=1), probs.argmax(axis=1), context.options, probs)


def _detr_rows(outputs: Sequence[Values], context: DecodeContext) -> Detections:
    rows = outputs[0]
    scores = _probabilities(rows[:, 4])
    labels = _labels(rows[:, 5], scores, 0, context)
    return _top_k(_in_pixels(rows[:, :4], context), scores, labels, context.options)


def _queries(boxes: Floats, probs: Floats, context: DecodeContext) -> Detections:
    """Give a query's box once for each class above the threshold, as DETR's sigmoid descendants are evaluated."""
    query, label = np.nonzero(probs > context.options.score_threshold)
    corners = _in_pixels(boxes, context)[query]
    return _top_k(corners, probs[query, label], label, context.options, probs[query])


def _in_pixels(boxes: Floats, context: DecodeContext) -> Floats:
    size = np.array([context.width, context.height] * 2, np.float32)
    return cxcywh_to_xyxy(boxes * size)


def _probabilities(values: Floats) -> Floats:
    if values.size and not -_TOLERANCE <= float(values.min()) <= float(values.max()) <= 1 + _TOLERANCE:
        raise ValueError(f"scores go from {float(values.min()):.3g} to {float(values.max()):.3g}, not from 0 to 1")
    return values.clip(0.0, 1.0)


def _labels(values: Values, scores: Floats, first: int, context: DecodeContext) -> Labels:
    """Return labels from 0; those of the file start at `first`. Rows with score 0 are padding and not checked."""
    labels = np.rint(values).astype(np.int64)
    wrong = labels[((labels < first) | (labels >= first + context.classes)) & (scores > 0)]
    if len(wrong):
        raise ValueError(f"the output has label {wrong[0]}, but the model has {context.classes} classes")
    return labels - first


def _classwise_nms(boxes_xyxy: Floats, scores: Floats, options: PredictOptions) -> Detections:
    """Keep the best boxes (A, 4) by NMS within each class of scores (A, K); see `detectors.postprocess.nms`."""
    row, label = np.nonzero(scores > options.score_threshold)
    score = scores[row, label]
    if len(score) > _MAX_CANDIDATES:
        best = np.argsort(-score, kind="stable")[:_MAX_CANDIDATES]
        row, label, score = row[best], label[best], score[best]
    kept = nms(boxes_xyxy[row], score, options.nms_iou, options.max_detections, label)
    return Detections(boxes_xyxy[row[kept]], score[kept], label[kept], scores[row[kept]])


def _top_k(
    boxes_xyxy: Floats, scores: Floats, labels: Labels, options: PredictOptions, class_probs: Floats | None = None
) -> Detections:
    """Keep the best boxes where no NMS is needed; (M, 4), (M,), (M,) and, where the format has them, (M, K)."""
    detections = Detections(boxes_xyxy, scores, labels, class_probs).take(scores > options.score_threshold)
    return detections.take(np.argsort(-detections.scores, kind="stable")[: options.max_detections])


OUTPUT_FORMATS: Mapping[str, OutputFormatEntry] = {
    "dense_cxcywh": OutputFormatEntry(
        "(B, 4 + classes, points): centre x, centre y, width, height in input pixels, then scores",
        _one_output(1, 4, ""),
        _dense_cxcywh,
        needs_nms=True,
    ),
    "end_to_end": OutputFormatEntry(
        "(B, boxes, 6): x1 y1 x2 y2 score label, no NMS needed",
        _one_output(2, None, "x1 y1 x2 y2 score label"),
        _rows,
    ),
    "nms": OutputFormatEntry(
        "(B, boxes, 6): the same rows after NMS in the graph, padded with zeros",
        _one_output(2, None, "x1 y1 x2 y2 score label"),
        _rows,
    ),
    "torchvision": OutputFormatEntry(
        "boxes (boxes, 4) x1 y1 x2 y2, labels (boxes) from 1, scores (boxes) of one image",
        _torchvision_outputs,
        _torchvision,
        max_batch=1,
        multiple=1,  # the graph resizes by itself
    ),
    "yolox": OutputFormatEntry(
        "(B, points, 5 + classes): undecoded offsets and log sizes in strides, objectness, scores; wants BGR 0 to 255",
        _one_output(2, 5, ""),
        _yolox,
        needs_nms=True,
        preprocessing=Preprocessing(channel_order="bgr", value_range="byte"),
    ),
    "detr": OutputFormatEntry(
        "(B, queries, 4 + classes): centre x, centre y, width, height from 0 to 1, then scores",
        _one_output(2, 4, ""),
        _detr,
    ),
    "detr_rows": OutputFormatEntry(
        "(B, queries, 6): centre x, centre y, width, height from 0 to 1, score, label",
        _one_output(2, None, "centre x, centre y, width, height, score, label"),
        _detr_rows,
    ),
    "detr_sigmoid": OutputFormatEntry(
        "logits (B, queries, classes) and boxes (B, queries, 4) as in 'detr'",
        _two_outputs(0),
        _detr_sigmoid,
        preprocessing=None,
    ),
    "detr_softmax": OutputFormatEntry(
        "the same with a last logit for 'no object'",
        _two_outputs(1),
        _detr_softmax,
        preprocessing=None,
    ),
}
