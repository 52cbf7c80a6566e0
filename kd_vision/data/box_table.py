"""What boxes mean, kept apart from where they are, so that augmentation moves places only.

Shapes: M boxes, T boxes of ground truth and S boxes of a teacher over all images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import Detections, collate_pseudo_labels
from kd_vision.data.records import ImageRecord

Boxes = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BoxTable:
    """The boxes of many images: those of the ground truth first, then those of a teacher.

    Attributes:
        labels: (T,) int64, class of each box of the ground truth, crowds included.
        knowledge: S boxes of a teacher, in pixels of the original images; None: nobody was asked.
    """

    labels: npt.NDArray[np.int64]
    knowledge: PseudoLabels | None

    def to_targets(
        self, image_index: npt.NDArray[np.int64], boxes_xyxy: Boxes, rows: Rows
    ) -> tuple[Targets, PseudoLabels | None]:
        """Say what boxes mean, wherever they are by now.

        Args:
            image_index: (M,) image of the batch.
            boxes_xyxy: (M, 4) pixels of the batch.
            rows: (M,) of this table.
        """
        boxes_xyxy = boxes_xyxy.astype(np.float32)
        given = np.flatnonzero(rows < len(self.labels))
        targets = Targets(
            torch.from_numpy(image_index[given]),
            torch.from_numpy(self.labels[rows[given]]),
            torch.from_numpy(boxes_xyxy[given]),
        )
        if self.knowledge is None:
            return targets, None
        said = np.flatnonzero(rows >= len(self.labels))
        meant = self.knowledge.take(torch.from_numpy(rows[said] - len(self.labels)))
        index, boxes = torch.from_numpy(image_index[said]), torch.from_numpy(boxes_xyxy[said])
        return targets, replace(meant, image_index=index, boxes_xyxy=boxes)


def tabulate(images: Sequence[ImageRecord], classes: int) -> tuple[BoxTable, list[tuple[Boxes, Rows]]]:
    """Put the boxes of all images into one table.

    Args:
        images: at least one.
        classes: K.

    Returns:
        The table, and for each image its boxes in pixels of the original with their rows: ground truth without
        crowds, which are never a training target, then the teacher's boxes.
    """
    known = [image.knowledge for image in images if image.knowledge is not None]
    labels = np.concatenate([image.labels for image in images]).astype(np.int64)
    placed, given, said = [], 0, len(labels)
    for image in images:
        placed.append(_placed(image, given, said))
        given += len(image.labels)
        said += len(image.knowledge) if image.knowledge is not None else 0
    return BoxTable(labels, collate_pseudo_labels(known, classes) if known else None), placed


def _placed(image: ImageRecord, given: int, said: int) -> tuple[Boxes, Rows]:
    """Return the boxes of one image and their rows, which begin at `given` and `said`."""
    keep = np.flatnonzero(~image.crowd)
    boxes, rows = image.boxes_xyxy[keep], keep + given
    if image.knowledge is None:
        return boxes, rows
    more: Detections = image.knowledge
    return np.concatenate([boxes, more.boxes_xyxy]), np.concatenate([rows, np.arange(said, said + len(more))])
