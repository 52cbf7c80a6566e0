"""From a teacher's final boxes to the pseudo labels that a student learns, on the device the boxes are on.

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
    """Return the boxes in the student's classes, every object once.

    Dense heads give a box once for every class above the threshold. Pseudo labels carry all class probabilities, so
    only the box under its likeliest class is kept.

    Args:
        detections: in the teacher's classes.
        labels: from these to the student's; None: they are the same.
        classes: K.
        merge_iou: overlap above which boxes are one object where several classes of the teacher become one.
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
    """Keep the best of boxes of one class and image that overlap by more than `iou`.

    Boxes to be ignored neither hide an object nor are hidden by one: they are a class of their own.
    """
    labels, ignore, kept = detections.labels, detections.ignore, []
    groups = labels if ignore is None else labels.masked_fill(ignore, -1)
    for image in range(detections.images):
        rows = (detections.image_index == image).nonzero()[:, 0]
        kept.append(rows[batched_nms(detections.boxes_xyxy[rows], detections.scores[rows], groups[rows], iou)])
    return detections.take(torch.cat(kept)) if kept else detections


def drop_outside(detections: BatchDetections, height: int, width: int) -> BatchDetections:
    """Keep the boxes of which some area lies on the image: a flat one overlaps nothing and would fit any anchor."""
    limits = detections.boxes_xyxy.new_tensor([width, height, width, height])
    inside = detections.boxes_xyxy.clamp(min=0).minimum(limits)
    return detections.take((inside[:, 2:] > inside[:, :2]).all(dim=1))
