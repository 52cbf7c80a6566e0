"""Precomputed boxes of a teacher for many images, sparse and flat.

A dense table of N images with M boxes and K classes takes N * M * K numbers. Stores only have the few likeliest classes
of a box, so only these are kept here, in arrays that forked loader workers share without copying. They become dense for
one batch at a time.

Shapes: N images, S boxes of all images, P stored class probabilities of all boxes, K classes, M selected boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_vision.core.predictions import Detections, class_probabilities

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class PseudoLabelTable:
    """Pseudo labels of one teacher for the images of a data set, in their order.

    Attributes:
        image_starts: (N + 1,) int64, index of the first box of each image, then S.
        boxes_xyxy: (S, 4) float32, pixels of the original image.
        scores: (S,) float32.
        ignore: (S,) bool, see `PseudoLabels`.
        prob_starts: (S + 1,) int64, index of the first stored probability of each box, then P.
        prob_labels: (P,) class of each stored probability.
        probs: (P,) half precision where it is exact, else float32; all other classes have 0.
        classes: K.
    """

    image_starts: Ints
    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    ignore: npt.NDArray[np.bool_]
    prob_starts: Ints
    prob_labels: Ints
    probs: Floats
    classes: int

    @classmethod
    def of(cls, detections: Iterable[Detections], classes: int) -> PseudoLabelTable:
        """Build the table; boxes without class probabilities get their score at their label.

        Args:
            detections: one per image; each is read once and not kept.
            classes: K.
        """
        parts = [_Part.of(one, classes) for one in detections]
        probs = _concatenated([part.probs for part in parts], np.float32)
        halves = probs.astype(np.float16)
        return cls(
            _starts([len(part.scores) for part in parts]),
            _concatenated([part.boxes_xyxy for part in parts], np.float32).reshape(-1, 4),
            _concatenated([part.scores for part in parts], np.float32),
            _concatenated([part.ignore for part in parts], np.bool_),
            _starts(_concatenated([part.counts for part in parts], np.int64)),
            _concatenated([part.labels for part in parts], np.uint16),
            halves if np.array_equal(halves.astype(np.float32), probs) else probs,
            classes,
        )

    @classmethod
    def concatenate(cls, tables: Sequence[PseudoLabelTable]) -> PseudoLabelTable:
        """Return one table of the images of all tables, in order."""
        if len(tables) == 1:
            return tables[0]
        return cls(
            _starts(np.concatenate([np.diff(table.image_starts) for table in tables])),
            np.concatenate([table.boxes_xyxy for table in tables]),
            np.concatenate([table.scores for table in tables]),
            np.concatenate([table.ignore for table in tables]),
            _starts(np.concatenate([np.diff(table.prob_starts) for table in tables])),
            np.concatenate([table.prob_labels for table in tables]),
            np.concatenate([table.probs for table in tables]),
            tables[0].classes,
        )

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.image_starts) - 1

    @property
    def boxes(self) -> int:
        """S, the number of boxes of all images."""
        return len(self.scores)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        arrays = (self.image_starts, self.boxes_xyxy, self.scores, self.ignore, self.prob_starts, self.prob_labels)
        return sum(array.nbytes for array in arrays) + self.probs.nbytes

    def class_probs(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Return the dense (M, K) probabilities of boxes `rows`, (M,)."""
        dense = np.zeros((len(rows), self.classes), np.float32)
        counts = self.prob_starts[rows + 1] - self.prob_starts[rows]
        ends = counts.cumsum()
        place = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.prob_starts[rows] - (ends - counts), counts)
        dense[np.repeat(np.arange(len(rows)), counts), self.prob_labels[place]] = self.probs[place]
        return dense

    def detections(self, image: int) -> Detections:
        """Return the boxes of one image, dense, in pixels of the original."""
        rows = np.arange(self.image_starts[image], self.image_starts[image + 1])
        probs = self.class_probs(rows)
        labels = probs.argmax(axis=1) if len(rows) else np.zeros(0, np.int64)
        return Detections(self.boxes_xyxy[rows], self.scores[rows], labels, probs, self.ignore[rows])

    def subset(self, images: Sequence[int]) -> PseudoLabelTable:
        """Return the table of some images."""
        return PseudoLabelTable.of((self.detections(image) for image in images), self.classes)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The boxes of one image as the table stores them; `counts` is the number of stored probabilities of each box."""

    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    ignore: npt.NDArray[np.bool_]
    counts: Ints
    labels: Ints
    probs: npt.NDArray[np.float32]

    @classmethod
    def of(cls, detections: Detections, classes: int) -> _Part:
        dense = class_probabilities(detections, classes)
        box, label = dense.nonzero()
        ignore = np.zeros(len(detections), np.bool_) if detections.ignore is None else detections.ignore
        counts = np.bincount(box, minlength=len(detections))
        return cls(detections.boxes_xyxy, detections.scores, ignore, counts, label.astype(np.uint16), dense[box, label])


def _starts(counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def _concatenated(arrays: Sequence[npt.NDArray[Any]], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate(arrays).astype(kind, copy=False) if arrays else np.zeros(0, kind)
