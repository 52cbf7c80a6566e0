"""Gives the images of a data set what a teacher said of them, wherever that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from kd_vision.core.errors import RequestError, truncate
from kd_vision.core.label_map import LabelMap
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.detectors.postprocess import to_pseudo_labels

_MERGE_IOU = 0.6


class Knowledge(Protocol):
    """Somebody's word on images, given beforehand."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes it speaks of."""
        ...

    @property
    def missing_classes(self) -> tuple[str, ...]:
        """Those of `classes` that nobody asked ever learned: that they are not seen says nothing."""
        ...

    def of(self, record: ImageRecord) -> Detections:
        """Return what was said of an image, boxes in its pixels, in `classes`.

        Raises:
            RequestError: nothing was said of it.
        """
        ...


class JsonKnowledge:
    """The word of a results file, which names images by their id in one split.

    Args:
        found: by image id, boxes in pixels of the original image; one for every image of `data`.
        data: the split that the ids belong to; its classes are those of the labels.
        path: of the file, for messages.
    """

    missing_classes: tuple[str, ...] = ()

    def __init__(self, found: Mapping[int, Detections], data: DetectionData, path: Path) -> None:
        # By path: images of another source may have the same ids.
        self._found = {image.path: found[image.image_id] for image in data.images}
        self._split = data.name
        self.classes = data.classes
        self.path = path

    def of(self, record: ImageRecord) -> Detections:
        """See `Knowledge.of`."""
        if record.path not in self._found:
            raise RequestError(
                f"{record.path}: is not among the images of '{self._split}', of which {self.path} speaks"
            )
        return self._found[record.path]


class OwnLabels:
    """The labels of the images themselves, said with a score of 1; crowds are nobody's word, as in training.

    Args:
        classes: of the data.
    """

    missing_classes: tuple[str, ...] = ()

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes

    def of(self, record: ImageRecord) -> Detections:
        """See `Knowledge.of`."""
        if not record.labelled:
            raise RequestError(f"{record.path}: has no labels that could teach")
        alone = ~record.crowd
        boxes = record.boxes_xyxy[alone]
        return Detections(boxes, np.ones(len(boxes), np.float32), record.labels[alone])


def attach(data: DetectionData, knowledge: Knowledge, labels: LabelMap | None = None) -> DetectionData:
    """Return the data with `ImageRecord.knowledge` filled, in the data's classes.

    Args:
        data: images, labelled or not.
        knowledge: what was said of them.
        labels: from its classes to the data's; None: they are the same.

    Raises:
        RequestError: the classes differ, or nothing was said of an image; up to 20 lines.
    """
    ours = labels.student if labels is not None else knowledge.classes
    if ours != data.classes:
        raise RequestError(
            f"split '{data.name}' has the classes {', '.join(data.classes)}, the knowledge {', '.join(ours)}; map them "
            f"with labels:"
        )
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda record: _asked(knowledge, record), data.images))
    lost = [answer for answer in answers if isinstance(answer, str)]
    if lost:
        raise RequestError(*truncate(lost))
    found = [to_pseudo_labels(answer, labels, _MERGE_IOU) for answer in answers if isinstance(answer, Detections)]
    pairs = zip(data.images, found, strict=True)
    return replace(data, images=tuple(replace(image, knowledge=one) for image, one in pairs))


def _asked(knowledge: Knowledge, record: ImageRecord) -> Detections | str:
    try:
        return knowledge.of(record)
    except RequestError as error:
        return str(error)
