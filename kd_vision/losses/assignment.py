"""Pseudo labels and label assignment, for the losses on final boxes.

Shapes: M boxes of the whole batch.
"""

from __future__ import annotations

from kd_vision.core.batch import PseudoLabels
from kd_vision.core.predictions import AssignResult, Signals
from kd_vision.losses.base import computed

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
