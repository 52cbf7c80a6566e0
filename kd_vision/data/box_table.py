"""Labels of boxes, stored separately from their coordinates, so that augmentation only changes coordinates.

Shapes: M boxes, T boxes of ground truth over all images, S boxes of one teacher over all images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.data.pseudo_labels import PseudoLabelTable
from kd_vision.data.records import ImageRecord

Boxes = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BoxTable:
    """The boxes of many images: those of the ground truth first, then those of each teacher.

    Attributes:
        labels: (T,) int64, class of each box of the ground truth, crowds included.
        pseudo_labels: by teacher name; the boxes of each teacher follow those of the previous one.
    """

    labels: npt.NDArray[np.int64]
    pseudo_labels: Mapping[str, PseudoLabelTable]

    def to_targets(
        self, image_index: npt.NDArray[np.int64], boxes_xyxy: Boxes, rows: Rows
    ) -> tuple[Targets, dict[str, PseudoLabels]]:
        """Return ground truth and pseudo labels of a batch; only here probabilities become dense.

        Args:
            image_index: (M,) index of the image in the batch.
            boxes_xyxy: (M, 4) pixels of the batch.
            rows: (M,) rows of this table.
        """
        boxes_xyxy = boxes_xyxy.astype(np.float32)
        first = len(self.labels)
        truth = np.flatnonzero(rows < first)
        targets = Targets(
            torch.from_numpy(image_index[truth]),
            torch.from_numpy(self.labels[rows[truth]]),
            torch.from_numpy(boxes_xyxy[truth]),
        )
        pseudo_labels: dict[str, PseudoLabels] = {}
        for name, table in self.pseudo_labels.items():
            chosen = np.flatnonzero((rows >= first) & (rows < first + table.boxes))
            table_rows = rows[chosen] - first
            pseudo_labels[name] = PseudoLabels(
                torch.from_numpy(image_index[chosen]),
                torch.from_numpy(boxes_xyxy[chosen]),
                torch.from_numpy(table.class_probs(table_rows)),
                torch.from_numpy(table.scores[table_rows]),
                torch.from_numpy(table.ignore[table_rows]),
            )
            first += table.boxes
        return targets, pseudo_labels


@dataclass(frozen=True, slots=True, eq=False)
class PlacedBoxes:
    """Coordinates of the boxes of many images in flat arrays.

    Attributes:
        starts: (N + 1,) first box of each image.
        boxes_xyxy: (M, 4) float32, pixels of each image.
        rows: (M,) int64, row of each box in the `BoxTable`.
    """

    starts: npt.NDArray[np.int64]
    boxes_xyxy: Boxes
    rows: Rows

    def of(self, image: int) -> tuple[Boxes, Rows]:
        """Return the boxes of one image and their rows."""
        span = slice(self.starts[image], self.starts[image + 1])
        return self.boxes_xyxy[span], self.rows[span]

    def span(self, first: int, stop: int) -> PlacedBoxes:
        """Return the boxes of images `first` up to `stop`."""
        low, high = self.starts[first], self.starts[stop]
        return PlacedBoxes(self.starts[first : stop + 1] - low, self.boxes_xyxy[low:high], self.rows[low:high])

    def resized(self, scales_xy: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> PlacedBoxes:
        """Return the boxes in resized images, clipped to them; boxes without area are dropped.

        Args:
            scales_xy: (N, 2) factors of each image.
            sizes: (N, 2) width and height of each resized image.
        """
        image = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        limits = np.tile(sizes, 2)[image]
        boxes = np.minimum(np.maximum(self.boxes_xyxy * np.tile(scales_xy, 2)[image], 0), limits)
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        counts = np.bincount(image[solid], minlength=len(self.starts) - 1)
        starts = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
        return PlacedBoxes(starts, boxes[solid].astype(np.float32), self.rows[solid])


def tabulate(
    images: Sequence[ImageRecord], pseudo_labels: Mapping[str, PseudoLabelTable]
) -> tuple[BoxTable, PlacedBoxes]:
    """Put the boxes of all images into one table.

    Args:
        images: at least one.
        pseudo_labels: by teacher name, a table over the same images.

    Returns:
        The table, and the boxes in pixels of the originals with their rows: for each image the ground truth without
        crowds, which are never a training target, then the boxes of each teacher.
    """
    labels = np.concatenate([image.labels for image in images]).astype(np.int64)
    single = ~np.concatenate([image.crowd for image in images]).astype(np.bool_)
    image = np.repeat(np.arange(len(images)), [len(each.labels) for each in images])
    owners, boxes = [image[single]], [np.concatenate([each.boxes_xyxy for each in images])[single]]
    rows, first = [np.flatnonzero(single)], len(labels)
    for table in pseudo_labels.values():
        owners.append(np.repeat(np.arange(len(images)), np.diff(table.image_starts)))
        boxes.append(table.boxes_xyxy)
        rows.append(np.arange(first, first + table.boxes))
        first += table.boxes
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.bincount(owner, minlength=len(images)).cumsum()]).astype(np.int64)
    placed = PlacedBoxes(starts, np.concatenate(boxes)[order], np.concatenate(rows)[order])
    return BoxTable(labels, dict(pseudo_labels)), placed
