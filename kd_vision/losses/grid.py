"""Base of the losses on dense predictions: the pair of grids, the teacher's confidence, the normaliser.

Shapes: B images, A grid points, K classes, M boxes of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import GridPredictions, Signal, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import (
    ConfigT_co,
    DistillationLoss,
    LossConfig,
    best_class_score,
    common_levels,
    computed,
    select_levels,
)
from kd_vision.losses.grid_coverage import Coverage, measure_coverage
from kd_vision.losses.grid_resample import Resampler

_UNKNOWN_LOGIT = -1000.0
"""Its sigmoid is exactly 0, so that masked values have weight 0 in any sum."""
_FOR_OTHER_ANCHORS = "soft_boxes or region_feedback"


def full_precision(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 if it is of half precision, else as it is (float64 stays)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class BalancedConfig(LossConfig):
    """Settings of losses that can lift rare classes.

    Attributes:
        balance: 0: points are weighted by the teacher's confidence alone; 1: all classes count alike, however
            rare in the teacher's predictions; between: the power of the correction. mAP is a mean over classes,
            so in a short training the rare classes gain most.
    """

    balance: float = Field(default=0.0, ge=0.0, le=1.0)


@dataclass(frozen=True, slots=True)
class GridPair:
    """Both sides on the points that a loss acts on; the teacher's tensors carry no gradient.

    Attributes:
        student: dense predictions of the student.
        teacher: dense predictions of the teacher, same points.
        student_logits: (B, A, K) in float32 or better.
        teacher_logits: (B, A, K) in float32 or better.
        confidence: (B, A) u, the teacher's best class probability at each point.
        normaliser: scalar N_q = max(sum u, 1) over the batch and all levels jointly. A normaliser per
            level would give a level without objects a full-strength loss made of background.
        class_weight: (K,) how much each class counts; ones without balance.
        mask: (B, A) bool, points that take part; None: all. Elsewhere, and in the columns of classes that the
            teacher never learned, both sides' logits are the same constant and the confidence is 0, so that
            every loss is 0 there.
    """

    student: GridPredictions
    teacher: GridPredictions
    student_logits: Tensor
    teacher_logits: Tensor
    confidence: Tensor
    normaliser: Tensor
    class_weight: Tensor
    mask: Tensor | None = None

    def point_weight(self) -> Tensor:
        """Return (B, A): confidence times the weight of the teacher's best class."""
        return self.confidence * self.class_weight[self.teacher_logits.argmax(dim=-1)]

    def masked(self, points: Tensor) -> Tensor:
        """Return (B, A) bool: those of `points` that take part."""
        return points if self.mask is None else points & self.mask


class GridLoss(DistillationLoss[ConfigT_co]):
    """Base of losses between dense predictions, point by point.

    Where the two grids differ in strides or size, each point of the student learns the surest of the teacher's rows
    in its cell, see `Resampler`. Grids of one layout are compared row by row even where one family puts its points at
    the corner of each cell (FCOS of torchvision, i * stride) and the other in its centre (YOLO, (i + 1/2) * stride):
    these lie 0.71 strides apart, and so do the nearest ones.
    Points inside ground-truth boxes of classes that the teacher never learned take no part.
    """

    requires: ClassVar[frozenset[Signal]] = frozenset({"grid"})
    per_branch: ClassVar[bool] = True
    uses_levels: ClassVar[bool] = True

    def __init__(self, config: ConfigT_co, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        levels = self.levels
        self.levels = levels or tuple(student.level_strides)
        self._student_levels = _LevelChoice.of(student, self.levels)
        self._teacher_levels = _LevelChoice.of(teacher, levels or tuple(teacher.level_strides))
        self._same_layout = not _differences(config, student, teacher)
        every = sorted(teacher.level_strides, key=lambda level: teacher.level_strides[level])
        self._resampler = Resampler(tuple(teacher.level_anchors.get(each, 1) for each in every), self.needs_box_bins)
        self._balance = config.balance if isinstance(config, BalancedConfig) else 0.0

    @classmethod
    def incompatibilities(cls, config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
        """Add to the base's reasons: anchors of a student need a teacher with the same, bins the same strides."""
        errors = super().incompatibilities(config, student, teacher)
        if errors:
            return errors
        levels = common_levels(student, teacher, config.levels)
        anchors = max(student.level_anchors.get(level, 1) for level in levels or student.level_strides)
        differences = _differences(config, student, teacher)
        if anchors > 1 and (differences or student.family != teacher.family):
            return [
                f"the student has {anchors} anchors at a point and the teacher not the same, so the rows of the two "
                f"grids do not correspond; use {_FOR_OTHER_ANCHORS} instead"
            ]
        if cls.needs_box_bins and differences:
            return [f"box bins are in units of the stride, and {differences[0]}; use box_iou instead"]
        return []

    @classmethod
    def pair_warnings(cls, config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
        """Add to the base's warnings: the grids differ."""
        warnings = super().pair_warnings(config, student, teacher)
        differences = _differences(config, student, teacher)
        if differences:
            warnings.append(
                f"{'; '.join(differences)}: each point of the student learns the surest of the teacher's rows in its "
                f"cell"
            )
        return warnings

    def pair(self, student: Signals, teacher: Signals, targets: Targets) -> GridPair:
        """Select the levels of the loss on both sides and weight the points.

        Raises:
            RequestError: a signal was not computed, or images or classes differ.
        """
        student_grid, teacher_grid = self._corresponding(
            computed(student.grid, "grid", "student"), _detached(computed(teacher.grid, "grid", "teacher"))
        )
        student_logits, teacher_logits = full_precision(student_grid.logits), full_precision(teacher_grid.logits)
        mask = None
        if self.known is not None:
            mask = known_mask(student_grid.points_xy[None], targets, self.missing_labels, len(student_logits))
            hidden = ~(mask[..., None] & self.known)
            student_logits = student_logits.masked_fill(hidden, _UNKNOWN_LOGIT)
            teacher_logits = teacher_logits.masked_fill(hidden, _UNKNOWN_LOGIT)
        confidence = best_class_score(teacher_logits)
        return GridPair(
            student_grid,
            teacher_grid,
            student_logits,
            teacher_logits,
            confidence,
            confidence.sum().clamp(min=1.0),
            class_weights(teacher_logits, self._balance, self.known),
            mask,
        )

    def coverage(self, student: Signals, teacher: Signals, targets: Targets) -> Coverage:
        """Return how many of the teacher's confident final boxes the targets of this loss show.

        Args:
            student: with its grid.
            teacher: with its grid and its final boxes (signal `detections`).
            targets: ground truth of the batch.

        Raises:
            RequestError: see `pair`; or the final boxes were not computed.
        """
        boxes = computed(teacher.pseudo_labels, "detections", "teacher")
        pair = self.pair(student, teacher, targets)
        if self.missing_labels:
            boxes = boxes.take(~torch.isin(boxes.labels, boxes.labels.new_tensor(self.missing_labels)))
        return measure_coverage(pair.teacher, pair.teacher_logits.sigmoid(), pair.mask, boxes)

    def _corresponding(
        self, student_whole: GridPredictions, teacher_whole: GridPredictions
    ) -> tuple[GridPredictions, GridPredictions]:
        """Return the rows of both grids that correspond: row by row in one layout, else resampled."""
        student_grid = self._student_levels.select(student_whole)
        teacher_grid = self._teacher_levels.select(teacher_whole)
        self._refuse_unlike(student_grid, teacher_grid)
        if self._same_layout and student_grid.logits.shape == teacher_grid.logits.shape:
            return student_grid, teacher_grid
        self._refuse_anchors()
        larger = float(teacher_whole.strides.amin()) != self._teacher_levels.finest
        levels = None if larger and self.config.levels is None else self._student_levels.strides
        return self._resampler(teacher_whole, student_whole, levels)

    def _refuse_anchors(self) -> None:
        anchors = max(self._student_levels.anchors)
        if anchors > 1:  # all anchors of a point would learn the same row of the teacher
            raise RequestError(
                f"the student has {anchors} anchors at a point, and the teacher's grid is of another size, because its "
                f"image_size differs, so their rows do not correspond; give both one image size, or use "
                f"{_FOR_OTHER_ANCHORS} instead"
            )

    def _refuse_unlike(self, student_grid: GridPredictions, teacher_grid: GridPredictions) -> None:
        shapes = student_grid.logits.shape, teacher_grid.logits.shape
        if shapes[0][0] != shapes[1][0] or shapes[0][2] != shapes[1][2]:
            raise RequestError(
                f"{type(self).__name__}: student grid {tuple(shapes[0])} and teacher grid {tuple(shapes[1])} "
                f"(images, points, classes) differ in images or classes"
            )


class SoftmaxGridLoss(GridLoss[ConfigT_co]):
    """Base of losses with a softmax over the classes of each point, which needs two classes to compare."""

    @classmethod
    def incompatibilities(cls, config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
        """Add to the grid's reasons: the teacher must know two classes."""
        errors = super().incompatibilities(config, student, teacher)
        if len(set(student.classes) - teacher.missing_classes) > 1:
            return errors
        return [
            *errors,
            "needs two classes that the teacher knows (a softmax over one is always 1); use class_bce instead",
        ]


def class_weights(teacher_logits: Tensor, balance: float, known: Tensor | None = None) -> Tensor:
    """Return (K,) weights w_c ~ mass_c^-balance that leave the total mass unchanged.

    mass_c = max(sum_{B,A} q_c, 1): how much of the class the teacher predicts in the batch, at least 1, which
    bounds the weight of a class that is hardly there. Ones for balance 0.

    Args:
        teacher_logits: (B, A, K).
        balance: power of the correction.
        known: (K,) bool, classes that count in the total; None: all.
    """
    if balance == 0.0:
        return teacher_logits.new_ones(teacher_logits.shape[-1])
    return balanced(teacher_logits.sigmoid().sum(dim=(0, 1)), balance, known)


def balanced(mass: Tensor, balance: float, known: Tensor | None = None) -> Tensor:
    """Return (K,) weights, see `class_weights`.

    Args:
        mass: (K,) how much of each class there is.
        balance: power of the correction.
        known: (K,) bool, classes that count in the total; None: all.
    """
    mass = mass.clamp(min=1.0)
    weights = mass.pow(-balance)
    counted = mass if known is None else mass * known
    return weights * (counted.sum() / (weights * counted).sum())


@dataclass(frozen=True, slots=True)
class _LevelChoice:
    """Selects levels of a detector's grid.

    Attributes:
        strides: to keep, fine to coarse; None where all points stay (saves a device synchronisation).
        anchors: rows at each point of the levels kept.
        finest: smallest stride of the detector.
    """

    strides: tuple[int, ...] | None
    anchors: tuple[int, ...]
    finest: int

    @staticmethod
    def of(spec: DetectorSpec, levels: tuple[str, ...]) -> _LevelChoice:
        kept = sorted(levels, key=lambda level: spec.level_strides[level])
        return _LevelChoice(
            None if set(levels) == set(spec.level_strides) else tuple(spec.level_strides[level] for level in kept),
            tuple(spec.level_anchors.get(level, 1) for level in kept),
            min(spec.level_strides.values()),
        )

    def select(self, grid: GridPredictions) -> GridPredictions:
        return grid if self.strides is None else select_levels(grid, self.strides, self.finest)


def _differences(config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
    """Return how the layouts of two grids differ, one clause a difference; empty: at one image size, same points."""
    levels = common_levels(student, teacher, config.levels)
    if not levels:
        return ["teacher and student share no level"]
    differences = []
    for level in levels:
        strides = teacher.level_strides[level], student.level_strides[level]
        anchors = teacher.level_anchors.get(level, 1), student.level_anchors.get(level, 1)
        for what, (of_teacher, of_student) in (("stride", strides), ("anchors per point", anchors)):
            if of_teacher != of_student:
                differences.append(
                    f"level '{level}' has {what} {of_teacher} in the teacher and {of_student} in the student"
                )
    return differences


def _detached(grid: GridPredictions) -> GridPredictions:
    bins = None if grid.box_bins is None else grid.box_bins.detach()
    return replace(grid, logits=grid.logits.detach(), boxes_xyxy=grid.boxes_xyxy.detach(), box_bins=bins)


def points_in_boxes(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return (M, A) bool: the point lies strictly inside the box.

    Args:
        points_xy: (A, 2) input pixels, or (M, A, 2) with other points for each box.
        boxes_xyxy: (M, 4) input pixels.
    """
    low = points_xy > boxes_xyxy[:, None, :2]
    high = points_xy < boxes_xyxy[:, None, 2:]
    return (low & high).all(dim=-1)


def rows_in_boxes(centres_xy: Tensor, image_index: Tensor, boxes_xyxy: Tensor, images: int) -> Tensor:
    """Return (B, A) bool: the row's centre lies strictly inside a box of its image.

    Args:
        centres_xy: (B, A, 2) or (1, A, 2) input pixels.
        image_index: (M,) which image a box belongs to.
        boxes_xyxy: (M, 4) input pixels.
        images: B.
    """
    centres = full_precision(centres_xy[0] if len(centres_xy) == 1 else centres_xy[image_index])
    inside = points_in_boxes(centres, boxes_xyxy.to(centres.dtype)).to(torch.int32)
    counts = inside.new_zeros((images, inside.shape[1]))
    return counts.index_add_(0, image_index, inside) > 0


def known_mask(centres_xy: Tensor, targets: Targets, missing_labels: tuple[int, ...], images: int) -> Tensor:
    """Return (B, A) bool: the row lies outside all ground truth of classes that the teacher never learned.

    Args:
        centres_xy: (B, A, 2) or (1, A, 2) input pixels.
        targets: ground truth of the batch.
        missing_labels: these classes.
        images: B.
    """
    if not missing_labels:
        return torch.ones((images, centres_xy.shape[1]), dtype=torch.bool, device=centres_xy.device)
    unknown = torch.isin(targets.labels, targets.labels.new_tensor(missing_labels))
    return ~rows_in_boxes(centres_xy, targets.image_index[unknown], targets.boxes_xyxy[unknown], images)


def smallest_box(points_xy: Tensor, targets: Targets, images: int) -> Tensor:
    """Return (B, A) int64: index into `targets` of the smallest box that holds a point, -1 outside all.

    Args:
        points_xy: (A, 2) input pixels.
        targets: ground truth of the batch.
        images: B.
    """
    points = full_precision(points_xy)
    boxes = targets.boxes_xyxy.to(points.dtype)
    order = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1).argsort(stable=True)
    count = len(order)
    # Ranks by area are distinct, so the lowest rank names one box even where areas are equal.
    inside = points_in_boxes(points, boxes[order])
    rank = torch.arange(count, device=inside.device)[:, None].expand_as(inside)
    rank = rank.masked_fill(~inside, count)
    best = rank.new_full((images, len(points)), count)
    rows = targets.image_index[order][:, None].expand_as(rank)
    best = best.scatter_reduce(0, rows, rank, "amin")
    return torch.cat([order, order.new_full((1,), -1)])[best]


def images_with_targets(targets: Targets, images: int) -> Tensor:
    """Return (B,) bool: the image has at least one ground-truth box."""
    numbers = torch.arange(images, device=targets.image_index.device)
    return (targets.image_index[:, None] == numbers).any(dim=0)


def take_or_zero(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[index]``, zeros where the index is -1.

    Args:
        values: (M, ...).
        index: int64 of any shape, as of `smallest_box`.
    """
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[index]
