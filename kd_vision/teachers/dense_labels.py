"""A teacher whose dense predictions were stored for every training batch; it is neither loaded nor run.

Shapes: B images, A rows of a head, N stored rows of the batch, S strides, K classes, R bins per box side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch
from kd_vision.core.dense_labels import DenseLabels
from kd_vision.core.errors import RequestError
from kd_vision.core.label_map import LabelMap
from kd_vision.core.predictions import DetectorOutput, GridPredictions, Signal
from kd_vision.core.spec import DetectorSpec

if TYPE_CHECKING:
    from typing_extensions import Self

_LEAST_PROB = 1e-6
"""Lower bound of mean probabilities, so that their logarithms are finite."""


class GridLayout:
    """Where the rows of a head lie.

    Args:
        points_xy: (A, 2) centres in input pixels.
        strides: (A,) stride of each row's level.
    """

    def __init__(self, points_xy: Tensor, strides: Tensor) -> None:
        self.points_xy, self.strides = points_xy, strides
        self.level_strides, self.levels = torch.unique(strides, return_inverse=True)
        half = strides[:, None] / 2
        self._background_boxes = torch.cat([points_xy - half, points_xy + half], dim=-1)

    def to(self, device: torch.device | str) -> GridLayout:
        """Return the same layout on `device`."""
        return GridLayout(self.points_xy.to(device), self.strides.to(device))

    def sparse(self, grid: GridPredictions, threshold: float, max_points: int) -> DenseLabels:
        """Return the rows whose best class probability is above `threshold`, at most `max_points` an image.

        Background logits are those of the mean probabilities over the other rows of a stride; the likeliest class has
        the mean of the best class probabilities, so that their sum, by which losses on grids are normalised, stays.
        Background bins are those of the mean distribution, weighted by the best class probability, as losses do.

        Args:
            grid: predictions on B images, in this layout.
            threshold: in [0, 1).
            max_points: the best ones are kept.
        """
        probs = grid.logits.detach().float().sigmoid()
        best = probs.amax(dim=-1)
        kept = best > threshold
        if int(kept.sum(dim=1).max()) > max_points:
            chosen = torch.zeros_like(kept).scatter_(1, best.topk(max_points, dim=1).indices, True)
            kept &= chosen
        rows = kept.flatten().nonzero()[:, 0]
        others = best.masked_fill(kept, 0.0)
        bins = None if grid.box_bins is None else grid.box_bins.detach().float().log_softmax(dim=-1)
        return DenseLabels(
            rows,
            grid.logits.detach().float().flatten(0, 1)[rows],
            self._sides(grid.boxes_xyxy.detach().float().flatten(0, 1)[rows], rows),
            torch.logit(self._background_probs(probs, best, (~kept).float()), eps=_LEAST_PROB),
            None if bins is None else bins.flatten(0, 1)[rows],
            None if bins is None else self._level_means(bins.exp(), others).clamp(min=_LEAST_PROB).log(),
        )

    def dense(self, labels: DenseLabels, images: int) -> GridPredictions:
        """Return dense predictions on `images` images; see `sparse`.

        Boxes of background rows have one stride a side; their bins and logits are those of the background.
        """
        logits = self._filled(labels.background_logits[self.levels], labels.rows, labels.logits, images)
        boxes = self._filled(self._background_boxes, labels.rows, self._boxes(labels.sides, labels.rows), images)
        bins = None
        if labels.box_bins is not None and labels.background_bins is not None:
            bins = self._filled(labels.background_bins[self.levels], labels.rows, labels.box_bins, images)
        return GridPredictions(logits, boxes, self.points_xy, self.strides, bins)

    def _background_probs(self, probs: Tensor, best: Tensor, weights: Tensor) -> Tensor:
        means = self._level_means(probs, weights)
        likeliest = means.argmax(dim=-1, keepdim=True)
        return means.scatter(1, likeliest, self._level_means(best, weights)[:, None])

    def _level_means(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return (S, ...) means of (B, A, ...) values by stride, with (B, A) weights; 0 where all weights are 0."""
        flat = weights.reshape(*weights.shape, *[1] * (values.dim() - 2))
        sums = values.new_zeros(len(self.level_strides), *values.shape[2:])
        sums.index_add_(0, self.levels, (values * flat).sum(dim=0))
        counts = weights.new_zeros(len(self.level_strides)).index_add_(0, self.levels, weights.sum(dim=0))
        return sums / counts.clamp(min=_LEAST_PROB).reshape(-1, *[1] * (values.dim() - 2))

    def _filled(self, background: Tensor, rows: Tensor, values: Tensor, images: int) -> Tensor:
        """Return (B, A, ...): `background`, (A, ...), in every image, but `values`, (N, ...), at `rows`."""
        filled = background.repeat(images, *[1] * (background.dim() - 1))
        filled[rows] = values.to(filled.dtype)
        return filled.reshape(images, *background.shape)

    def _sides(self, boxes_xyxy: Tensor, rows: Tensor) -> Tensor:
        points, strides = self._at(rows)
        return torch.cat([points - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - points], dim=-1) / strides

    def _boxes(self, sides: Tensor, rows: Tensor) -> Tensor:
        points, strides = self._at(rows)
        lengths = sides * strides
        return torch.cat([points - lengths[:, :2], points + lengths[:, 2:]], dim=-1)

    def _at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        index = rows % len(self.points_xy)
        return self.points_xy[index], self.strides[index][:, None]


class DenseLabelsTeacher:
    """The dense labels of the batch as dense predictions, in the student's classes and pixels.

    Args:
        name: of the teacher in its run; key of its dense labels.
        spec: of the teacher that made them, in its own classes.
        layout: of its head.
        labels: from its classes to the student's; None: they are the same.
        image_size: side of the samples of which the batches were made.
        score_threshold: rows whose best class probability is no higher were not stored.
    """

    def __init__(
        self,
        name: str,
        spec: DetectorSpec,
        layout: GridLayout,
        labels: LabelMap | None,
        image_size: int,
        score_threshold: float,
    ) -> None:
        self.name, self.image_size, self.score_threshold = name, image_size, score_threshold
        self.labels = None if labels is None or labels.is_identity else labels
        self.layout = layout
        self.spec = spec
        if self.labels is not None:
            ignored = frozenset(self.labels.teacher[position] for position in self.labels.ignored)
            missing = self.labels.missing_classes
            self.spec = replace(spec, classes=self.labels.student, missing_classes=missing, ignored=ignored)

    def to(self, device: torch.device | str) -> Self:
        """Move the layout; the labels are moved with the batch."""
        self.layout = self.layout.to(device)
        return self

    @torch.no_grad()
    def signals(self, batch: ImageBatch, wanted: frozenset[Signal]) -> DetectorOutput:
        """Return the stored dense predictions on the batch, by branch.

        Raises:
            RequestError: the batch is not of a stream that reads the store.
        """
        if "grid" not in wanted:
            return DetectorOutput()
        labels: Mapping[str, DenseLabels] | None = batch.dense_labels.get(self.name)
        if labels is None:
            raise RequestError(f"'{self.name}': the batch has no dense labels; they exist for training batches alone")
        return DetectorOutput(grids={branch: self._grid(one, len(batch)) for branch, one in labels.items()})

    def _grid(self, labels: DenseLabels, images: int) -> GridPredictions:
        if self.labels is not None:
            mapped, background = self.labels.logits(labels.logits), self.labels.logits(labels.background_logits)
            labels = replace(labels, logits=mapped, background_logits=background)
        return self.layout.dense(labels, images)
