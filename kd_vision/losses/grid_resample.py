"""Resamples a teacher's dense predictions at the points of a student's grid of another layout.

Shapes: B images, A points of the student, T rows of the teacher, K classes, R bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import GridPredictions


class Resampler:
    """Nearest-neighbour resampling of the teacher's predictions.

    Each point of the student takes the level of the nearest stride (in log2; the finer of two as near), in it the
    nearest point, and of a point with several anchors the one with the best score.

    Args:
        level_anchors: rows at each point of the teacher's levels, fine to coarse.
        same_stride: the strides must be equal, as for box bins, which are in units of the stride.
    """

    def __init__(self, level_anchors: tuple[int, ...], same_stride: bool) -> None:
        self._anchors = level_anchors
        self._same_stride = same_stride
        self._cache: tuple[tuple[object, ...], Tensor, Tensor] | None = None

    def __call__(self, teacher_grid: GridPredictions, student_grid: GridPredictions) -> GridPredictions:
        """Return the teacher's predictions, one for each point of the student.

        Args:
            teacher_grid: (B, T) rows; the anchors of a point are consecutive.
            student_grid: (B, A) points.

        Raises:
            RequestError: `same_stride` and the strides differ, or the teacher's levels are not as specified.
        """
        first, count = self._lookup(teacher_grid, student_grid)
        row = first.expand(len(teacher_grid.logits), -1)
        if max(self._anchors) > 1:
            step = torch.arange(max(self._anchors), device=first.device)
            candidates = first[:, None] + torch.minimum(step, count[:, None] - 1)
            row = row + teacher_grid.logits.amax(dim=-1)[:, candidates].argmax(dim=-1)
        image = torch.arange(len(row), device=row.device)[:, None]
        bins = teacher_grid.box_bins
        return GridPredictions(
            teacher_grid.logits[image, row],
            teacher_grid.boxes_xyxy[image, row],
            student_grid.points_xy,
            student_grid.strides,
            None if bins is None else bins[image, row],
        )

    def _lookup(self, teacher_grid: GridPredictions, student_grid: GridPredictions) -> tuple[Tensor, Tensor]:
        """Return, for each point of the student, the first row and the number of rows of its point; (A,) each.

        Cached: grids of one detector differ by the image size alone, so their size and last point identify them.
        """
        ends = (*teacher_grid.points_xy[-1].tolist(), *student_grid.points_xy[-1].tolist())
        key = (student_grid.logits.device, len(teacher_grid.points_xy), len(student_grid.points_xy), *ends)
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, *self._nearest(teacher_grid, student_grid))
        return self._cache[1], self._cache[2]

    def _nearest(self, teacher_grid: GridPredictions, student_grid: GridPredictions) -> tuple[Tensor, Tensor]:
        strides = torch.unique(teacher_grid.strides)  # sorted, fine to coarse
        if len(strides) != len(self._anchors):
            raise RequestError(
                f"the teacher's grid has {len(strides)} strides where its specification names {len(self._anchors)} "
                f"levels"
            )
        level = (student_grid.strides.log2()[:, None] - strides.log2()).abs().argmin(dim=-1)
        if self._same_stride and not torch.equal(strides[level].float(), student_grid.strides.float()):
            raise RequestError(
                "box bins are in units of the stride, and the strides of teacher and student differ; give both one "
                "image size, or use box_iou instead"
            )
        first = torch.zeros_like(level)
        count = torch.ones_like(level)
        for index, anchors in enumerate(self._anchors):
            rows = (teacher_grid.strides == strides[index]).nonzero().squeeze(1)[::anchors]
            here = level == index
            first[here] = rows[_nearest_in_lattice(teacher_grid.points_xy[rows], student_grid.points_xy[here])]
            count[here] = anchors
        return first, count


def _nearest_in_lattice(points_xy: Tensor, query_xy: Tensor) -> Tensor:
    """Return, for each of (A, 2) query points, the index of the nearest of the (T, 2) points of a full lattice.

    In a lattice the nearest column and the nearest row meet in the nearest point, so no pair of points is compared.
    The points may come in any order.
    """
    (x, column), (y, row) = (torch.unique(axis, return_inverse=True) for axis in points_xy.unbind(dim=-1))
    if len(x) * len(y) != len(points_xy):
        raise RequestError(
            f"the teacher's grid has a level of {len(points_xy)} points in {len(x)} columns and {len(y)} rows; its "
            f"points must form a lattice"
        )
    table = torch.empty((len(y), len(x)), dtype=torch.int64, device=points_xy.device)
    table[row, column] = torch.arange(len(points_xy), device=points_xy.device)
    nearest = [
        (query[:, None] - axis).abs().argmin(dim=-1)
        for query, axis in zip(query_xy.unbind(dim=-1), (x, y), strict=True)
    ]
    return table[nearest[1], nearest[0]]
