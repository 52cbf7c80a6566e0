"""Turns a teacher's final boxes into pseudo labels, on the device of the boxes.

Shapes: M boxes of a batch, K classes of the student, H W input pixels.
"""

from __future__ import annotations

import torch
from torchvision.ops import batched_nms

from kd_vision.core.batch import PseudoLabels
from kd_vision.core.label_map import LabelMap
from kd_vision.core.predictions import BatchDetections


def to_pseudo_labels(
    detections: BatchDetections, labels: LabelMap | None, classes: int, merge_iou: float
) -> PseudoLabels:
    """Return pseudo labels in the student's classes, one for each object.

    Dense heads return a box once for every class above the threshold. Pseudo labels have all class probabilities,
    so that only the box of the likeliest class is kept.

    Args:
        detections: in the teacher's classes.
        labels: from these to the student's; None: they are the same.
        classes: K.
        merge_iou: threshold of NMS where the label map merges classes.
    """
    mapped = detections if labels is None or labels.is_identity else labels.detections(detections)
    probs = mapped.probabilities(classes)
    ignore = torch.zeros_like(mapped.scores, dtype=torch.bool) if mapped.ignore is None else mapped.ignore
    if len(probs):
        best = probs.gather(1, mapped.labels[:, None])[:, 0] >= probs.amax(dim=1)
        mapped = mapped.take(best | ignore)
    if labels is not None and labels.merges:
        mapped = classwise_nms(mapped, merge_iou)
    ignore = torch.zeros_like(mapped.scores, dtype=torch.bool) if mapped.ignore is None else mapped.ignore
    return PseudoLabels(mapped.image_index, mapped.boxes_xyxy, mapped.probabilities(classes), mapped.scores, ignore)


def classwise_nms(detections: BatchDetections, iou: float) -> BatchDetections:
    """Non-maximum suppression within each class and image, at IoU above `iou`.

    Ignored boxes are a separate class: they neither suppress objects nor are suppressed by them.
    """
    labels, ignore, kept = detections.labels, detections.ignore, []
    groups = labels if ignore is None else labels.masked_fill(ignore, -1)
    for image in range(detections.images):
        rows = (detections.image_index == image).nonzero()[:, 0]
        kept.append(rows[batched_nms(detections.boxes_xyxy[rows], detections.scores[rows], groups[rows], iou)])
    return detections.take(torch.cat(kept)) if kept else detections


def drop_outside(detections: BatchDetections, height: int, width: int) -> BatchDetections:
    """Drop boxes without area inside the image: they overlap nothing, and an assigner could match any anchor."""
    limits = detections.boxes_xyxy.new_tensor([width, height, width, height])
    inside = detections.boxes_xyxy.clamp(min=0).minimum(limits)
    return detections.take((inside[:, 2:] > inside[:, :2]).all(dim=1))
