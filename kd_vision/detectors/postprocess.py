"""From dense scores to final boxes, once for every family and for ONNX files alike.

Shapes: A grid points, K classes, M boxes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from kd_vision.core.batch import Letterbox
from kd_vision.core.label_map import LabelMap
from kd_vision.core.predictions import Detections, PredictOptions, keep_top_class

_MOST_CANDIDATES = 30_000


def nms(boxes_xyxy: Tensor, scores: Tensor, options: PredictOptions) -> Detections:
    """Keep the best boxes of one image by class-wise NMS.

    A point may answer for several classes, as in COCO evaluation of dense detectors.

    Args:
        boxes_xyxy: (A, 4) input pixels.
        scores: (A, K) in [0, 1].
        options: thresholds.

    Returns:
        Detections in input pixels, best first.
    """
    point, label = (scores > options.score_threshold).nonzero(as_tuple=True)
    score = scores[point, label]
    if len(score) > _MOST_CANDIDATES:
        score, order = score.topk(_MOST_CANDIDATES)
        point, label = point[order], label[order]
    boxes = boxes_xyxy[point]
    keep = batched_nms(boxes.float(), score.float(), label, options.nms_iou)[: options.max_detections]
    return to_detections(boxes[keep], score[keep], label[keep], scores[point[keep]])


def top_k_boxes(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, options: PredictOptions, class_probs: Tensor | None = None
) -> Detections:
    """Keep the best boxes of one image where the head needs no NMS; (M, 4), (M,), (M,) and, where known, (M, K)."""
    keep = scores > options.score_threshold
    boxes, score, label = boxes_xyxy[keep], scores[keep], labels[keep]
    order = score.argsort(descending=True, stable=True)[: options.max_detections]
    probs = None if class_probs is None else class_probs[keep][order]
    return to_detections(boxes[order], score[order], label[order], probs)


def to_detections(boxes: Tensor, scores: Tensor, labels: Tensor, class_probs: Tensor | None = None) -> Detections:
    """Move tensors of one image into the value type."""
    return Detections(
        boxes.detach().float().cpu().numpy(),
        scores.detach().float().cpu().numpy(),
        labels.detach().cpu().numpy().astype(np.int64),
        None if class_probs is None else class_probs.detach().float().cpu().numpy(),
    )


def to_original(detections: Detections, letterbox: Letterbox) -> Detections:
    """Map boxes from input pixels to pixels of the original image."""
    return replace(detections, boxes_xyxy=letterbox.invert(detections.boxes_xyxy))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Turn (..., 4) centre x, centre y, width, height into corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def nms_groups(found: Detections) -> npt.NDArray[np.int64]:
    """Return (M,): boxes of which group may stand for each other, the class, or -1 for all boxes to be ignored.

    What is to be ignored neither hides an object nor is hidden by one.
    """
    return found.labels if found.ignore is None else np.where(found.ignore, -1, found.labels)


def classwise_nms(found: Detections, iou: float) -> Detections:
    """Keep the best of boxes of one group that overlap by more than `iou`; one image, best first; see `nms_groups`."""
    boxes, scores = torch.from_numpy(found.boxes_xyxy), torch.from_numpy(found.scores)
    keep = batched_nms(boxes, scores, torch.from_numpy(nms_groups(found)), iou)
    return found.take(keep.numpy())


def drop_outside(found: Detections, height: int, width: int) -> Detections:
    """Keep the boxes of which some area lies on the image: a flat one overlaps nothing and would fit any anchor.

    Args:
        found: boxes in pixels of the image.
        height, width: of the image.
    """
    inside = found.boxes_xyxy.clip(0, np.array([width, height, width, height], np.float32))
    return found.take(np.all(inside[:, 2:] > inside[:, :2], axis=1))


def to_pseudo_labels(found: Detections, labels: LabelMap | None, iou: float) -> Detections:
    """Return the boxes of one image as a student learns them: in its words, every object once.

    Args:
        found: in the words of whoever said it.
        labels: from these to the student's; None: they are the same.
        iou: overlap above which boxes whose classes have become one are one.
    """
    if labels is None or labels.is_identity:
        return keep_top_class(found)
    mapped = keep_top_class(labels.detections(found))
    return classwise_nms(mapped, iou) if labels.merges else mapped
