"""What the outputs of an ONNX detector can mean. A new layout is one function and one line in `OUTPUT_FORMATS`.

Shapes: A rows of a head, K classes, M boxes, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.detectors.postprocess import cxcywh_to_xyxy, nms, top_k_boxes
from kd_vision.runtime.preprocessing import Preprocessing
from kd_vision.runtime.session import OnnxOutput

OutputFormat = Literal[
    "dense_cxcywh", "end_to_end", "nms", "torchvision", "yolox", "detr", "detr_rows", "detr_sigmoid", "detr_softmax"
]

_ROW = 6
_YOLOX_STRIDES = (8, 16, 32)
_SLACK = 0.01  # of a score: quantised files overshoot a little


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """What a decoder has to know beside the values.

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
Decode = Callable[[Sequence[Tensor], DecodeContext], Detections]


@dataclass(frozen=True, slots=True)
class OutputFormatEntry:
    """A layout.

    Attributes:
        meaning: for people.
        match_outputs: from the outputs and K to the positions of those that `decode` wants, in its order; raises
            ValueError where they do not fit.
        decode: from the values of one image to its boxes in input pixels; raises ValueError where they cannot be.
        needs_nms: overlapping boxes of one object come out.
        preprocessing: what such files want; None: they differ, so it has to be said.
        max_batch: most images per call; None: any number.
        multiple: of which height and width must be, for a file that does not say it.
    """

    meaning: str
    match_outputs: MatchOutputs
    decode: Decode
    needs_nms: bool = False
    preprocessing: Preprocessing | None = Preprocessing()
    max_batch: int | None = None
    multiple: int = 32


def _one_output(axis: int, beside: int | None, meaning: str) -> MatchOutputs:
    """A single output of rank 3 with `beside` + K values a box on `axis`; None: a row of six."""

    def fit(outputs: Sequence[OnnxOutput], classes: int) -> tuple[int, ...]:
        if len(outputs) != 1 or len(outputs[0].shape) != 3:
            raise ValueError(f"needs one output of three axes, the file has {found(outputs)}")
        wanted = _ROW if beside is None else beside + classes
        side = outputs[0].shape[axis]
        if isinstance(side, int) and side != wanted:
            text = meaning if beside is None else f"{beside} + {classes} classes"
            shape = ", ".join(str(each) for each in outputs[0].shape)
            raise ValueError(f"needs {wanted} values a box ({text}), the output is ({shape})")
        return (0,)

    return fit


def _two_outputs(extra: int) -> MatchOutputs:
    """Logits (B, A, K + extra) and boxes (B, A, 4), in any order."""

    def fit(outputs: Sequence[OnnxOutput], classes: int) -> tuple[int, ...]:
        if len(outputs) != 2 or any(len(each.shape) != 3 for each in outputs):
            raise ValueError(f"needs two outputs of three axes, the file has {found(outputs)}")
        wide = classes + extra
        orders = [
            (logits, 1 - logits)
            for logits in (0, 1)
            if _may_be(outputs[logits].shape[2], wide) and _may_be(outputs[1 - logits].shape[2], 4)
        ]
        named = [order for order in orders if "box" in outputs[order[1]].name and "box" not in outputs[order[0]].name]
        if not orders:
            raise ValueError(f"needs logits of {wide} values and boxes of 4, the file has {found(outputs)}")
        if len(orders) > 1 and not named:
            raise ValueError(f"cannot tell logits from boxes among {found(outputs)}; name the boxes 'pred_boxes'")
        return (named or orders)[0]

    return fit


def _torchvision_outputs(outputs: Sequence[OnnxOutput], classes: int) -> tuple[int, ...]:
    boxes = [i for i, each in enumerate(outputs) if len(each.shape) == 2 and _may_be(each.shape[1], 4)]
    flat = [i for i, each in enumerate(outputs) if len(each.shape) == 1]
    labels = [i for i in flat if outputs[i].integer]
    scores = [i for i in flat if not outputs[i].integer]
    if len(outputs) != 3 or (len(boxes), len(labels), len(scores)) != (1, 1, 1):
        raise ValueError(f"needs boxes (M, 4), whole labels (M,) and scores (M,), the file has {found(outputs)}")
    return (boxes[0], scores[0], labels[0])


def _may_be(side: int | str | None, wanted: int) -> bool:
    return side == wanted or not isinstance(side, int)


def _dense_cxcywh(values: Sequence[Tensor], question: DecodeContext) -> Detections:
    rows = values[0]
    return nms(cxcywh_to_xyxy(rows[:4].T), _probabilities(rows[4:]).T, question.options)


def _rows(values: Sequence[Tensor], question: DecodeContext) -> Detections:
    rows = values[0]
    scores = _probabilities(rows[:, 4])
    return top_k_boxes(rows[:, :4], scores, _labels(rows[:, 5].round().long(), scores, 0, question), question.options)


def _torchvision(values: Sequence[Tensor], question: DecodeContext) -> Detections:
    boxes, scores, labels = values
    return top_k_boxes(boxes, _probabilities(scores), _labels(labels.long(), scores, 1, question), question.options)


def _yolox(values: Sequence[Tensor], question: DecodeContext) -> Detections:
    rows = values[0]
    points, strides = [], []
    for stride in _YOLOX_STRIDES:
        y, x = torch.meshgrid(
            torch.arange(question.height // stride), torch.arange(question.width // stride), indexing="ij"
        )
        points.append(torch.stack((x, y), dim=-1).reshape(-1, 2))
        strides.append(torch.full((y.numel(), 1), stride))
    corner, scale = torch.cat(points), torch.cat(strides)
    if len(corner) != len(rows):
        text = f"strides 8, 16, 32 of {question.height}x{question.width} pixels"
        raise ValueError(f"the output has {len(rows)} rows, but {text} make {len(corner)}")
    centre_size = torch.cat(((rows[:, :2] + corner) * scale, rows[:, 2:4].exp() * scale), dim=1)
    scores = _probabilities(rows[:, 4:5]) * _probabilities(rows[:, 5:])
    return nms(cxcywh_to_xyxy(centre_size), scores, question.options)


def _detr(values: Sequence[Tensor], question: DecodeContext) -> Detections:
    return _queries(values[0][:, :4], _probabilities(values[0][:, 4:]), question)


def _detr_sigmoid(values: Sequence[Tensor], question: DecodeContext) -> Detections:
    return _queries(values[1], values[0].sigmoid(), question)


def _detr_softmax(values: Sequence[Tensor], question: DecodeContext) -> Detections:
    probs = values[0].softmax(dim=-1)[:, :-1]
    scores, labels = probs.max(dim=-1)
    return top_k_boxes(_in_pixels(values[1], question), scores, labels, question.options, probs)


def _detr_rows(values: Sequence[Tensor], question: DecodeContext) -> Detections:
    rows = values[0]
    scores = _probabilities(rows[:, 4])
    labels = _labels(rows[:, 5].round().long(), scores, 0, question)
    return top_k_boxes(_in_pixels(rows[:, :4], question), scores, labels, question.options)


def _queries(boxes: Tensor, probs: Tensor, question: DecodeContext) -> Detections:
    """A query may answer for several classes, as DETR's sigmoid descendants are evaluated."""
    query, label = (probs > question.options.score_threshold).nonzero(as_tuple=True)
    corners = _in_pixels(boxes, question)
    return top_k_boxes(corners[query], probs[query, label], label, question.options, probs[query])


def _in_pixels(boxes: Tensor, question: DecodeContext) -> Tensor:
    size = boxes.new_tensor([question.width, question.height])
    return cxcywh_to_xyxy(boxes * torch.cat((size, size)))


def _probabilities(values: Tensor) -> Tensor:
    if values.numel() and not -_SLACK <= float(values.min()) <= float(values.max()) <= 1 + _SLACK:
        raise ValueError(f"scores go from {float(values.min()):.3g} to {float(values.max()):.3g}, not from 0 to 1")
    return values.clamp(0.0, 1.0)  # a quantised file may miss by a little


def _labels(labels: Tensor, scores: Tensor, first: int, question: DecodeContext) -> Tensor:
    """Count labels from 0; the file counts from `first`. Rows without a score only fill the table."""
    wrong = labels[((labels < first) | (labels >= first + question.classes)) & (scores > 0)]
    if len(wrong):
        raise ValueError(f"the output has label {int(wrong[0])}, but {question.classes} classes are known")
    return labels - first


def found(outputs: Sequence[OnnxOutput]) -> str:
    """Say what a file gives."""
    return ", ".join(map(str, outputs))


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
        multiple=1,  # it resizes for itself
    ),
    "yolox": OutputFormatEntry(
        "(B, points, 5 + classes): undecoded offsets and log sizes in strides, objectness, scores; wants BGR 0 to 255",
        _one_output(2, 5, ""),
        _yolox,
        needs_nms=True,
        preprocessing=Preprocessing("bgr", "byte"),
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
