"""What all losses on dense predictions share: the pair of grids, the teacher's confidence, the normaliser.

Shapes: B images, A grid points, K classes, M boxes of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Channel, Channels, GridPredictions
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import (
    DistillationLoss,
    LossConfig,
    best_class_score,
    common_levels,
    select_levels,
)


def full_precision(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 if it is of half precision, else as it is (float64 stays)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class BalancedConfig(LossConfig):
    """Settings of losses that can lift rare classes.

    Attributes:
        balance: 0: every point counts by the teacher's confidence alone; 1: every class counts alike,
            however rare the teacher finds it; between: the power of the correction. mAP is a mean over
            classes, so a student short of time gains most where the teacher's rare classes are heard.
    """

    balance: float = Field(default=0.0, ge=0.0, le=1.0)


@dataclass(frozen=True, slots=True)
class GridPair:
    """Both sides on the points a loss acts on; nothing of the teacher carries a gradient.

    Attributes:
        student: dense predictions of the student.
        teacher: dense predictions of the teacher, same points.
        student_logits: (B, A, K) in float32 or better.
        teacher_logits: (B, A, K) in float32 or better.
        confidence: (B, A) u, the teacher's best class probability at each point.
        normaliser: scalar N_q = max(sum u, 1) over the batch and all levels jointly. A normaliser per
            level would give a level without objects a full-strength loss made of background.
        class_weight: (K,) how much each class counts; ones without balance.
    """

    student: GridPredictions
    teacher: GridPredictions
    student_logits: Tensor
    teacher_logits: Tensor
    confidence: Tensor
    normaliser: Tensor
    class_weight: Tensor

    def point_weight(self) -> Tensor:
        """Return (B, A): confidence times the weight of the teacher's best class."""
        return self.confidence * self.class_weight[self.teacher_logits.argmax(dim=-1)]


class GridLoss(DistillationLoss):
    """Base of losses between dense predictions on the same points."""

    requires: ClassVar[frozenset[Channel]] = frozenset({"grid"})

    def __init__(self, config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._student_strides = _chosen_strides(student, self.levels)
        self._teacher_strides = _chosen_strides(teacher, self.levels)
        self._balance = config.balance if isinstance(config, BalancedConfig) else 0.0

    @classmethod
    def mismatches(cls, config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
        """Add to the base's reasons: levels of one name must have one stride."""
        found = super().mismatches(config, student, teacher)
        if found:
            return found
        return [
            f"level '{level}' has stride {teacher.level_strides[level]} in the teacher and "
            f"{student.level_strides[level]} in the student; grids must have the same points"
            for level in common_levels(student, teacher, config.levels)
            if student.level_strides[level] != teacher.level_strides[level]
        ]

    def pair(self, student: Channels, teacher: Channels) -> GridPair:
        """Select the levels of the loss on both sides and weigh the points.

        Raises:
            RequestError: the two grids do not have the same points.
        """
        ours = _select(student, self._student_strides)
        theirs = _detached(_select(teacher, self._teacher_strides))
        if ours.logits.shape != theirs.logits.shape:
            raise RequestError(
                f"{type(self).__name__}: student grid {tuple(ours.logits.shape)} and teacher grid "
                f"{tuple(theirs.logits.shape)} (images, points, classes) differ; give both one image size"
            )
        teacher_logits = full_precision(theirs.logits)
        confidence = best_class_score(teacher_logits)
        return GridPair(
            ours,
            theirs,
            full_precision(ours.logits),
            teacher_logits,
            confidence,
            confidence.sum().clamp(min=1.0),
            class_weights(teacher_logits, self._balance),
        )


def class_weights(teacher_logits: Tensor, balance: float) -> Tensor:
    """Return (K,) weights w_c ~ mass_c^-balance that leave the total mass as it is.

    mass_c = max(sum_{B,A} q_c, 1): how much of the class the teacher sees in the batch. A class that is
    hardly there is thus not blown up without bound. Ones for balance 0.

    Args:
        teacher_logits: (B, A, K).
        balance: power of the correction.
    """
    if balance == 0.0:
        return teacher_logits.new_ones(teacher_logits.shape[-1])
    mass = teacher_logits.sigmoid().sum(dim=(0, 1)).clamp(min=1.0)
    weights = mass.pow(-balance)
    return weights * (mass.sum() / (weights * mass).sum())


def _chosen_strides(spec: DetectorSpec, levels: tuple[str, ...]) -> tuple[int, ...] | None:
    """Strides to keep; None where all points stay (saves a comparison and a device synchronisation)."""
    if set(levels) == set(spec.level_strides):
        return None
    return tuple(spec.level_strides[level] for level in levels)


def _select(side: Channels, strides: tuple[int, ...] | None) -> GridPredictions:
    if side.grid is None:
        raise RequestError("the channel 'grid' was not computed; ask the detector for it")
    return side.grid if strides is None else select_levels(side.grid, strides)


def _detached(grid: GridPredictions) -> GridPredictions:
    return GridPredictions(
        grid.logits.detach(),
        grid.boxes_xyxy.detach(),
        grid.points_xy,
        grid.strides,
        None if grid.box_bins is None else grid.box_bins.detach(),
    )


def points_in_boxes(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return (M, A) bool: the point lies strictly inside the box.

    Args:
        points_xy: (A, 2) input pixels.
        boxes_xyxy: (M, 4) input pixels.
    """
    low = points_xy[None] > boxes_xyxy[:, None, :2]
    high = points_xy[None] < boxes_xyxy[:, None, 2:]
    return (low & high).all(dim=-1)


def smallest_box(points_xy: Tensor, targets: Targets, images: int) -> Tensor:
    """Return (B, A) int64: index into `targets` of the smallest box a point lies in, -1 outside all.

    Args:
        points_xy: (A, 2) input pixels.
        targets: ground truth of the batch.
        images: B.
    """
    points = full_precision(points_xy)
    boxes = targets.boxes_xyxy.to(points.dtype)
    order = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1).argsort(stable=True)
    count = len(order)
    # Ranks by area are distinct, so the least rank names one box even where areas are equal.
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


def softmax_mismatches(spec: DetectorSpec) -> list[str]:
    """Say why a softmax over the classes would teach nothing, one line a reason; empty: it can."""
    if len(spec.classes) > 1:
        return []
    return ["needs two classes or more (a softmax over one class is always 1); use class_bce instead"]
