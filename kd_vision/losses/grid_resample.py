"""Resamples a teacher's dense predictions at the points of a student's grid of another layout.

Shapes: B images, A points of the student, P of them that take part, T rows of the teacher, C candidates of a point,
N pairs of a point and a row, K classes, R bins.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import GridPredictions


@dataclass(frozen=True, slots=True)
class LevelLink:
    """A level of the student that learns from a level of the teacher.

    Attributes:
        student: number of its level, fine to coarse.
        teacher: number of its level.
        borrowed: a row of this level counts only at points that its box holds.
    """

    student: int
    teacher: int
    borrowed: bool = False


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Which rows of the teacher each point of the student may learn.

    Attributes:
        points: (P,) int64, points of the student that take part; None: all.
        rows: (P, C) int64, rows of the teacher; short lists are filled up with their first row.
        borrowed: (P, C) bool, see `LevelLink`.
        borrowers: (Q,) int64, which of the P points have a borrowed candidate.
    """

    points: Tensor | None
    rows: Tensor
    borrowed: Tensor
    borrowers: Tensor


class Resampler:
    """Gives each point of the student the surest of the teacher's rows that fall into its cell.

    A row of a linked level (`link_levels`) falls into the cell of a point where either is the nearest of the other,
    so every point has a row and no row is left out. Of several anchors at a point the surest counts. A row's score is
    that of its best class. A borrowed row counts only at points that its box holds, as in the label assignment of
    dense heads; a point with no row left learns the least sure of those in its cell.

    Args:
        level_anchors: rows at each point of the teacher's levels, fine to coarse.
        same_stride: each level that takes part must have one counterpart of equal stride, as for box bins, which are
            in units of the stride; levels of the student finer or coarser than all of the teacher's take no part.
    """

    def __init__(self, level_anchors: tuple[int, ...], same_stride: bool) -> None:
        self._anchors = level_anchors
        self._same_stride = same_stride
        self._cache: tuple[tuple[object, ...], _Candidates] | None = None

    def __call__(
        self, teacher_grid: GridPredictions, student_grid: GridPredictions, strides: Collection[int] | None = None
    ) -> tuple[GridPredictions, GridPredictions]:
        """Return the points of the student that take part, and the teacher's predictions, one for each of them.

        Args:
            teacher_grid: (B, T) rows of all levels; the anchors of a point are consecutive.
            student_grid: (B, A) points of all levels, one row each.
            strides: the student's levels that take part; None: all.

        Raises:
            RequestError: `same_stride` and the strides differ, or the teacher's levels are not as specified.
        """
        candidates = self._lookup(teacher_grid, student_grid, strides)
        if candidates.points is not None:
            student_grid = _take_points(student_grid, candidates.points)
        row = _surest(candidates, teacher_grid, student_grid.points_xy)
        image = torch.arange(len(row), device=row.device)[:, None]
        bins = teacher_grid.box_bins
        return student_grid, GridPredictions(
            teacher_grid.logits[image, row],
            teacher_grid.boxes_xyxy[image, row],
            student_grid.points_xy,
            student_grid.strides,
            None if bins is None else bins[image, row],
        )

    def _lookup(
        self, teacher_grid: GridPredictions, student_grid: GridPredictions, strides: Collection[int] | None
    ) -> _Candidates:
        """Return the candidates of every point.

        Cached: grids of one detector differ by the image size alone, so their size and last point identify them.
        """
        ends = (*teacher_grid.points_xy[-1].tolist(), *student_grid.points_xy[-1].tolist())
        sizes = len(teacher_grid.points_xy), len(student_grid.points_xy)
        key = (student_grid.logits.device, *sizes, *ends, None if strides is None else tuple(strides))
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, self._candidates(teacher_grid, student_grid, strides))
        return self._cache[1]

    def _candidates(
        self, teacher_grid: GridPredictions, student_grid: GridPredictions, strides: Collection[int] | None
    ) -> _Candidates:
        teacher, student = (torch.unique(grid.strides).tolist() for grid in (teacher_grid, student_grid))
        if len(teacher) != len(self._anchors):
            raise RequestError(
                f"the teacher's grid has {len(teacher)} strides where its specification names {len(self._anchors)} "
                f"levels"
            )
        links = [link for link in link_levels(teacher, student) if strides is None or student[link.student] in strides]
        pairs = []
        for link in _of_equal_stride(links, teacher, student) if self._same_stride else links:
            points = (student_grid.strides == student[link.student]).nonzero().squeeze(1)
            rows = (teacher_grid.strides == teacher[link.teacher]).nonzero().squeeze(1)
            anchors = self._anchors[link.teacher]
            near = _nearest_pairs(student_grid.points_xy[points], teacher_grid.points_xy[rows[::anchors]])
            pairs.append(_pairs_of_rows(points[near[0]], rows.view(-1, anchors)[near[1]], link.borrowed))
        return _table(torch.cat(pairs, dim=1), len(student_grid.points_xy))


def link_levels(teacher_strides: list[float], student_strides: list[float]) -> list[LevelLink]:
    """Return which levels of the student learn from which of the teacher, own levels before borrowed ones.

    1. Each level of the teacher belongs to the student's level of the nearest stride (in log2; the finer of two as
       near), so that none is lost: with a larger input the teacher sees small objects on levels finer than the
       student's finest.
    2. Where such levels fall to the student's finest, the teacher finds all objects on finer levels than the student
       would. A coarser level therefore also borrows the next finer level of the teacher.
    3. A level of the student to which none belongs takes the nearest level, a coarser one borrows it. As background
       it would be taught against its own labels, which assign it large objects.

    Args:
        teacher_strides: fine to coarse, in the student's pixels.
        student_strides: fine to coarse.
    """
    gaps = (torch.tensor(student_strides).log2()[:, None] - torch.tensor(teacher_strides).log2()).abs()
    owner, nearest = gaps.argmin(dim=0).tolist(), gaps.argmin(dim=1).tolist()
    folded = owner.count(0) > 1 and teacher_strides[0] < student_strides[0]
    links = []
    for level, stride in enumerate(student_strides):
        own = [index for index, student in enumerate(owner) if student == level]
        links += [LevelLink(level, index) for index in own]
        finer = [index for index, other in enumerate(teacher_strides) if other < stride and index not in own]
        if not own:
            links.append(LevelLink(level, nearest[level], teacher_strides[nearest[level]] < stride))
        elif folded and level > 0 and finer:
            links.append(LevelLink(level, finer[-1], True))
    return links


def _of_equal_stride(links: list[LevelLink], teacher: list[float], student: list[float]) -> list[LevelLink]:
    """Return the links between levels of equal stride.

    Raises:
        RequestError: a linked level of the teacher has no counterpart of its stride.
    """
    equal = [link for link in links if abs(teacher[link.teacher] / student[link.student] - 1.0) < 1e-3]
    if {link.teacher for link in equal} != {link.teacher for link in links}:
        raise RequestError(
            f"box bins are in units of the stride, and the strides of teacher and student differ: "
            f"{_listed(teacher)} in the student's pixels and {_listed(student)}; give both one image size, or use "
            f"box_iou instead"
        )
    return equal


def _listed(strides: list[float]) -> str:
    return ", ".join(f"{stride:g}" for stride in strides)


def _pairs_of_rows(points: Tensor, rows: Tensor, borrowed: bool) -> Tensor:
    """Return (3, N) int64: point, row, borrowed; from (n,) points and (n, anchors) rows."""
    owners = points[:, None].expand_as(rows)
    return torch.stack([owners, rows, torch.full_like(rows, int(borrowed))]).flatten(1)


def _table(pairs: Tensor, points: int) -> _Candidates:
    """Return the candidates of the points that have some; (3, N) pairs as of `_pairs_of_rows`."""
    pairs = pairs[:, pairs[0].argsort(stable=True)]
    taking_part, counts = torch.unique_consecutive(pairs[0], return_counts=True)
    step = torch.arange(int(counts.max()), device=pairs.device)
    first = counts.cumsum(0) - counts
    place = first[:, None] + torch.where(step < counts[:, None], step, 0)
    borrowed = pairs[2][place].bool()
    return _Candidates(
        None if len(taking_part) == points else taking_part,
        pairs[1][place],
        borrowed,
        borrowed.any(dim=1).nonzero().squeeze(1),
    )


def _surest(candidates: _Candidates, teacher_grid: GridPredictions, points_xy: Tensor) -> Tensor:
    """Return (B, P) int64: the row that each of (P, 2) points learns."""
    score = teacher_grid.logits.amax(dim=-1)
    choice = score[:, candidates.rows].argmax(dim=-1)
    borrowers = candidates.borrowers
    if len(borrowers):
        rows = candidates.rows[borrowers]
        boxes, points = teacher_grid.boxes_xyxy[:, rows], points_xy[borrowers, None]
        held = ((points > boxes[..., :2]) & (points < boxes[..., 2:])).all(dim=-1) | ~candidates.borrowed[borrowers]
        scores = score[:, rows]
        best = scores.masked_fill(~held, float("-inf")).argmax(dim=-1)
        choice[:, borrowers] = torch.where(held.any(dim=-1), best, scores.argmin(dim=-1))
    return candidates.rows.expand(len(choice), -1, -1).gather(-1, choice[..., None]).squeeze(-1)


def _take_points(grid: GridPredictions, points: Tensor) -> GridPredictions:
    return GridPredictions(
        grid.logits[:, points],
        grid.boxes_xyxy[:, points],
        grid.points_xy[points],
        grid.strides[points],
        None if grid.box_bins is None else grid.box_bins[:, points],
    )


def _nearest_pairs(points_xy: Tensor, others_xy: Tensor) -> Tensor:
    """Return (2, N) int64: all pairs of two lattices of which one is the nearest of the other, each pair once."""
    forth = torch.stack([torch.arange(len(points_xy), device=points_xy.device), _nearest(others_xy, points_xy)])
    back = torch.stack([_nearest(points_xy, others_xy), torch.arange(len(others_xy), device=others_xy.device)])
    pairs: Tensor = torch.unique(torch.cat([forth, back], dim=1), dim=1)
    return pairs


def _nearest(points_xy: Tensor, query_xy: Tensor) -> Tensor:
    """Return, for each of (Q, 2) query points, the index of the nearest of the (P, 2) points of a full lattice.

    In a lattice the nearest column and the nearest row meet in the nearest point, so no pair of points is compared.
    The points may come in any order.
    """
    (x, column), (y, row) = (torch.unique(axis, return_inverse=True) for axis in points_xy.unbind(dim=-1))
    if len(x) * len(y) != len(points_xy):
        raise RequestError(
            f"a level of the grid has {len(points_xy)} points in {len(x)} columns and {len(y)} rows; its points must "
            f"form a lattice"
        )
    table = torch.empty((len(y), len(x)), dtype=torch.int64, device=points_xy.device)
    table[row, column] = torch.arange(len(points_xy), device=points_xy.device)
    nearest = [
        (query[:, None] - axis).abs().argmin(dim=-1)
        for query, axis in zip(query_xy.unbind(dim=-1), (x, y), strict=True)
    ]
    places: Tensor = table[nearest[1], nearest[0]]
    return places
