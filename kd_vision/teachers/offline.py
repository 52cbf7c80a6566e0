"""An offline teacher: its precomputed boxes are attached to the images and are part of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError, truncate
from kd_vision.core.label_map import LabelMap
from kd_vision.core.predictions import BatchDetections, Detections, DetectorOutput, Signal
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.pseudo_labels import PseudoLabelTable
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.teachers.pseudo_labels import to_pseudo_labels

if TYPE_CHECKING:
    import torch

_MERGE_IOU = 0.6
_AT_ONCE = 512


class PrecomputedBoxes(Protocol):
    """Precomputed boxes of images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the boxes, in label order."""
        ...

    @property
    def missing_classes(self) -> tuple[str, ...]:
        """Those of `classes` that the teacher never learned; it has no boxes of them."""
        ...

    @property
    def score_threshold(self) -> float:
        """Score below which boxes were dropped."""
        ...

    def of(self, record: ImageRecord) -> Detections:
        """Return the boxes of an image, in its pixels, in `classes`.

        Raises:
            RequestError: there are no predictions for the image.
        """
        ...


class OfflineTeacher:
    """Precomputed boxes in the student's classes.

    Args:
        name: of the teacher in its run; key of its pseudo labels.
        source: the boxes.
        labels: from their classes to the data's; None: they are the same.
    """

    image_size: int | None = None

    def __init__(self, name: str, source: PrecomputedBoxes, labels: LabelMap | None = None) -> None:
        self.name = name
        self.source = source
        self.labels = labels
        self.spec = DetectorSpec(
            family="offline",
            name=name,
            classes=source.classes if labels is None else labels.student,
            level_channels={},
            level_strides={},
            provides=frozenset({"detections"}),
            missing_classes=frozenset() if labels is None else labels.missing_classes,
        )

    @property
    def score_threshold(self) -> float:
        """See `Teacher.score_threshold`."""
        return self.source.score_threshold

    def to(self, device: torch.device | str) -> OfflineTeacher:
        """Return the teacher itself: its boxes are moved with the batch."""
        return self

    def signals(self, batch: ImageBatch, wanted: frozenset[Signal]) -> DetectorOutput:
        """Return this teacher's pseudo labels of the batch."""
        return DetectorOutput(pseudo_labels=batch.pseudo_labels.get(self.name))

    def attach(self, data: DetectionData) -> DetectionData:
        """Return the data with this teacher's pseudo labels of each image, in the data's classes.

        Raises:
            RequestError: the classes differ, or images have no predictions; up to 20 lines.
        """
        if self.spec.classes != data.classes:
            raise RequestError(
                f"split '{data.name}' has the classes {', '.join(data.classes)}, '{self.name}' "
                f"{', '.join(self.spec.classes)}; map them with labels:"
            )
        table = PseudoLabelTable.of(self._detections(data.images), len(data.classes))
        return replace(data, pseudo_labels={**data.pseudo_labels, self.name: table})

    def _detections(self, images: Sequence[ImageRecord]) -> Iterator[Detections]:
        """Yield the pseudo labels of each image; predictions are read in threads."""
        errors: list[str] = []
        with ThreadPoolExecutor() as threads:
            for first in range(0, len(images), _AT_ONCE):
                results = list(threads.map(self._try_read, images[first : first + _AT_ONCE]))
                errors += [line for result in results if isinstance(result, RequestError) for line in result.problems]
                if not errors:
                    yield from self._pseudo_labels([one for one in results if isinstance(one, Detections)])
        if errors:
            raise RequestError(*truncate(list(dict.fromkeys(errors))))

    def _try_read(self, record: ImageRecord) -> Detections | RequestError:
        try:
            return self.source.of(record)
        except RequestError as error:
            return error

    def _pseudo_labels(self, detections: Sequence[Detections]) -> list[Detections]:
        boxes = to_pseudo_labels(BatchDetections.of(detections), self.labels, len(self.spec.classes), _MERGE_IOU)
        batch = BatchDetections(
            boxes.image_index,
            boxes.boxes_xyxy,
            boxes.scores,
            boxes.labels,
            boxes.class_probs,
            len(detections),
            boxes.ignore,
        )
        return batch.per_image()
