"""How many of a teacher's final boxes the targets of a grid loss still show.

Shapes: B images, A points of the student, K classes, M boxes of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_vision.core.batch import PseudoLabels
from kd_vision.core.predictions import GridPredictions

CONFIDENT = 0.3
"""Least score of the boxes that are counted."""
_SHARE_OF_SCORE = 0.5
"""A box is shown where a target scores at least this share of its score."""
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Coverage:
    """What targets show of a teacher's confident boxes.

    Attributes:
        shown: boxes that the targets show.
        boxes: boxes of at least `CONFIDENT`.
    """

    shown: int = 0
    boxes: int = 0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(self.shown + other.shown, self.boxes + other.boxes)

    @property
    def share(self) -> float:
        """In [0, 1]; 1 where there is no box."""
        return self.shown / self.boxes if self.boxes else 1.0


def measure_coverage(targets: GridPredictions, scores: Tensor, mask: Tensor | None, boxes: PseudoLabels) -> Coverage:
    """Count the confident boxes, and those that some target within them or beside them shows.

    A target shows a box if it scores the box's class at least half as high as the box, and the cell of its point
    (one stride wide) touches the box. Boxes with a point that takes no part are not counted unless shown.

    Args:
        targets: what the student is taught; its points are those of the student.
        scores: (B, A, K) class probabilities of the targets.
        mask: (B, A) bool, points that take part; None: all.
        boxes: final boxes of the teacher, in the student's pixels and classes; ignored ones do not count.
    """
    boxes = boxes.take((boxes.scores >= CONFIDENT) & ~boxes.ignore)
    total = Coverage()
    numbers = torch.arange(len(boxes), device=boxes.scores.device)
    for start in range(0, len(boxes), _CHUNK):  # in parts, which bounds the memory for a table of boxes and points
        part = boxes.take(numbers[start : start + _CHUNK])
        near = _touching(targets, part.boxes_xyxy)
        image, needed = part.image_index, _SHARE_OF_SCORE * part.scores[:, None]
        high = scores[image, :, part.labels] >= needed
        taking_part = near if mask is None else near & mask[image]
        shown = (taking_part & high).any(dim=1)
        counted = shown | ~(near & ~taking_part).any(dim=1)
        total += Coverage(int(shown.sum()), int(counted.sum()))
    return total


def _touching(grid: GridPredictions, boxes_xyxy: Tensor) -> Tensor:
    """Return (M, A) bool: the cell of the point touches the box."""
    gap = torch.maximum(boxes_xyxy[:, None, :2] - grid.points_xy, grid.points_xy - boxes_xyxy[:, None, 2:])
    return (gap.amax(dim=-1) <= grid.strides / 2).to(torch.bool)
