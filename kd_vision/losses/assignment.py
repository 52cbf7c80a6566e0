"""Pseudo labels and label assignment, for the losses on final boxes.

Shapes: B images, A rows of a stage of the student's head, K classes, M boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import AssignResult, Signals
from kd_vision.losses.base import computed
from kd_vision.losses.grid import boxes_of_labels, rows_in_boxes

ROWS_PER_BOX = 4.0
"""Rows that a softmax head samples for each with a box: three of background, as SSD mines and the least that
Faster R-CNN samples."""


def pseudo_labels_of(teacher: Signals) -> PseudoLabels:
    """Return the teacher's boxes.

    Raises:
        RequestError: the signal was not computed.
    """
    return computed(teacher.pseudo_labels, "detections", "teacher")


def assign_student(student: Signals, pseudo_labels: PseudoLabels) -> tuple[AssignResult, ...]:
    """Return the student's rows, by stage of its head, matched with boxes by the student's own label assignment.

    Raises:
        RequestError: the signal was not computed.
    """
    return computed(student.assign, "detections", "student")(pseudo_labels)


def split_by_score(
    pseudo_labels: PseudoLabels, score_threshold: float, ignore_threshold: float
) -> tuple[PseudoLabels, PseudoLabels]:
    """Return the boxes that are objects, and those whose area takes no part.

    Args:
        pseudo_labels: boxes of a teacher.
        score_threshold: boxes of at least this score are objects.
        ignore_threshold: boxes from here up to `score_threshold` are ignored, as are all that are marked so;
            other boxes below `score_threshold` are in neither part.
    """
    objects = (pseudo_labels.scores >= score_threshold) & ~pseudo_labels.ignore
    return pseudo_labels.take(objects), pseudo_labels.take(
        pseudo_labels.ignore | ((pseudo_labels.scores >= ignore_threshold) & ~objects)
    )


def known_mask(centres_xy: Tensor, targets: Targets, missing_labels: tuple[int, ...], images: int) -> Tensor:
    """Return (B, A) bool: the row lies outside all ground truth of classes that the teacher never learned.

    Args:
        centres_xy: (B, A, 2) or (1, A, 2) input pixels.
        targets: ground truth of the batch.
        missing_labels: these classes.
        images: B.
    """
    if not missing_labels:
        return torch.ones((images, centres_xy.shape[1]), dtype=torch.bool, device=centres_xy.device)
    unknown = boxes_of_labels(targets, missing_labels)
    return ~rows_in_boxes(centres_xy, unknown.image_index, unknown.boxes_xyxy, images)
