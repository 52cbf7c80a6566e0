"""The ground truth as a teacher: what a recipe brings where nobody knows more than the labels."""

from __future__ import annotations

from typing import Literal

import numpy as np

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.core.validation import StrictModel
from kd_vision.data.records import DetectionData, ImageRecord


class GroundTruthConfig(StrictModel):
    """The student's own training labels, as if a teacher had predicted them with a score of 1.

    A control, not a teacher: it cannot know what the labels do not, so what it brings over plain training is
    what the losses do by themselves (their weight, `balance` of rare classes).
    """

    family: Literal["labels"] = "labels"


class GroundTruth:
    """The labels of the images, predicted with a score of 1; crowds are left out, as in training.

    Args:
        classes: of the data.
        where: file and key of the config, for messages.
    """

    missing_classes: tuple[str, ...] = ()
    score_threshold = 0.0

    def __init__(self, classes: tuple[str, ...], where: str) -> None:
        self.classes = classes
        self._where = where

    def of(self, record: ImageRecord) -> Detections:
        """See `PrecomputedBoxes.of`."""
        if not record.labelled:
            raise RequestError(
                f"{self._where}: labels teach nothing on images without any; set train.unlabelled_ratio to 0, and "
                f"train.label_fraction above 0"
            )
        alone = ~record.crowd
        boxes = record.boxes_xyxy[alone]
        return Detections(boxes, np.ones(len(boxes), np.float32), record.labels[alone])


def build(config: GroundTruthConfig, train: DetectionData, where: str) -> GroundTruth:
    """Return the ground truth of the data that `train` belongs to."""
    return GroundTruth(train.classes, where)
