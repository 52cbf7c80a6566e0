"""The ground truth as a teacher: a control that measures the effect of the losses alone."""

from __future__ import annotations

from typing import Literal

import numpy as np

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.core.validation import StrictModel
from kd_vision.data.records import DetectionData, ImageRecord


class GroundTruthConfig(StrictModel):
    """The training labels as pseudo labels with a score of 1.

    A control: it has no information beyond the labels, so that its gain over plain training is the effect of the
    losses alone (their weight, `balance` of rare classes).
    """

    family: Literal["labels"] = "labels"


class GroundTruth:
    """The labels of the images with a score of 1; crowds are left out, as in training.

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
                f"{self._where}: 'labels' has no boxes of unlabelled images; set train.unlabelled_ratio to 0, and "
                f"train.label_fraction above 0"
            )
        single = ~record.crowd
        boxes = record.boxes_xyxy[single]
        return Detections(boxes, np.ones(len(boxes), np.float32), record.labels[single])


def build(config: GroundTruthConfig, train: DetectionData, where: str) -> GroundTruth:
    """Return the ground truth of the data that `train` belongs to."""
    return GroundTruth(train.classes, where)
