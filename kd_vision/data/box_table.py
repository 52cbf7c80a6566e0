"""What boxes mean, kept apart from where they are, so that augmentation moves places only.

Shapes: M boxes, T boxes of ground truth and S boxes of a teacher over all images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kd_vision.core.predictions import Detections, class_probabilities
from kd_vision.data.records import ImageRecord

Boxes = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BoxTable:
    """The boxes of many images: those of the ground truth first, then those of a teacher.

    Attributes:
        labels: (T,) int64, class of each box of the ground truth, crowds included.
        knowledge: (S,) what the teacher said of each of its boxes, in pixels of the original images; None: nobody
            was asked.
    """

    labels: npt.NDArray[np.int64]
    knowledge: Detections | None

    def is_truth(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Tell for each of (M,) rows whether it is of the ground truth."""
        return np.asarray(rows < len(self.labels))

    def claims(self, boxes_xyxy: Boxes, rows: Rows) -> Detections:
        """Return what a teacher said of boxes.

        Args:
            boxes_xyxy: (M, 4) where they are by now.
            rows: (M,) of this table, all of the teacher.
        """
        assert self.knowledge is not None
        said = self.knowledge.take(rows - len(self.labels))
        return Detections(boxes_xyxy, said.scores, said.labels, said.class_probs, said.ignore)


def tabulate(images: Sequence[ImageRecord], classes: int) -> tuple[BoxTable, list[tuple[Boxes, Rows]]]:
    """Put the boxes of all images into one table.

    Args:
        images: of all pools.
        classes: K.

    Returns:
        The table, and for each image its boxes in pixels of the original with their rows: ground truth without
        crowds, which are never a training target, then the teacher's boxes.
    """
    known = [image.knowledge for image in images if image.knowledge is not None]
    table = BoxTable(np.concatenate([image.labels for image in images]), _joined(known, classes) if known else None)
    placed, given, said = [], 0, len(table.labels)
    for image in images:
        placed.append(_placed(image, given, said))
        given += len(image.labels)
        said += len(image.knowledge) if image.knowledge is not None else 0
    return table, placed


def _placed(image: ImageRecord, given: int, said: int) -> tuple[Boxes, Rows]:
    """Return the boxes of one image and their rows, which begin at `given` and `said`."""
    keep = np.flatnonzero(~image.crowd)
    boxes, rows = image.boxes_xyxy[keep], keep + given
    if image.knowledge is None:
        return boxes, rows
    more = image.knowledge.boxes_xyxy
    return np.concatenate([boxes, more]), np.concatenate([rows, np.arange(said, said + len(more))])


def _joined(known: list[Detections], classes: int) -> Detections:
    ignore = [np.zeros(len(one), np.bool_) if one.ignore is None else one.ignore for one in known]
    return Detections(
        np.concatenate([one.boxes_xyxy for one in known]),
        np.concatenate([one.scores for one in known]),
        np.concatenate([one.labels for one in known]),
        np.concatenate([class_probabilities(one, classes) for one in known]),
        np.concatenate(ignore),
    )
