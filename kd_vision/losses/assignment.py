"""What losses on final boxes share: the teacher's boxes, the student's answer to them, rows to leave out.

Shapes: B images, A rows of a stage of the student's head, M boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd_vision.core.batch import SoftTargets, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Assigned, Channels
from kd_vision.losses.grid import rows_in_boxes, silent_boxes

ROWS_PER_BOX = 4.0
"""Softmax heads look at few rows of background: three for each with a box is what SSD mines and the least that
Faster R-CNN samples."""


def taught(teacher: Channels) -> SoftTargets:
    """Return the teacher's boxes.

    Raises:
        RequestError: the channel was not computed.
    """
    if teacher.soft is None:
        raise RequestError("the channel 'detections' of the teacher was not computed; ask the teacher for it")
    return teacher.soft


def answered(student: Channels, handed: SoftTargets) -> tuple[Assigned, ...]:
    """Return the student's rows, by stage of its head, paired with boxes handed to it.

    Raises:
        RequestError: the channel was not computed.
    """
    if student.answer is None:
        raise RequestError("the channel 'detections' of the student was not computed; ask the detector for it")
    return student.answer(handed)


def split_by_score(soft: SoftTargets, accept: float, doubt: float) -> tuple[SoftTargets, SoftTargets]:
    """Return the boxes that are objects, and those in whose place nothing is taught.

    Args:
        soft: boxes of a teacher.
        accept: boxes of at least this score are objects.
        doubt: boxes from here up to `accept` are doubtful, as are all that are marked to be ignored; other
            boxes below `accept` are in neither part.
    """
    objects = (soft.scores >= accept) & ~soft.ignore
    return soft.take(objects), soft.take(soft.ignore | ((soft.scores >= doubt) & ~objects))


def heard(centres_xy: Tensor, targets: Targets, silent_labels: tuple[int, ...], images: int) -> Tensor:
    """Return (B, A) bool: the row lies outside all ground truth of classes that the teacher never learned.

    Args:
        centres_xy: (B, A, 2) or (1, A, 2) input pixels.
        targets: ground truth of the batch.
        silent_labels: these classes.
        images: B.
    """
    if not silent_labels:
        return torch.ones((images, centres_xy.shape[1]), dtype=torch.bool, device=centres_xy.device)
    unheard = silent_boxes(targets, silent_labels)
    return ~rows_in_boxes(centres_xy, unheard.image_index, unheard.boxes_xyxy, images)
