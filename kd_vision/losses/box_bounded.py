"""Regression toward ground truth, bounded by the teacher.

Shapes: B images, A grid points, M boxes of the whole batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import LossConfig
from kd_vision.losses.box_iou import Kind, iou_distance
from kd_vision.losses.grid import GridLoss, GridPair, full_precision, smallest_box

Form = Literal["hinge", "step"]


class BoxBoundedConfig(LossConfig):
    """Settings of `BoxBounded`.

    Attributes:
        weight: 7.5, the gain that dense YOLO heads give their own box term.
        kind: which overlap measures the error.
        margin: the student is to be better than the teacher by this much of 1 - IoU; negative: it may be
            worse by as much before it pays.
        form: `hinge`: the excess over the bound, continuous; `step`: the whole error as soon as the bound is
            crossed, as published, which jumps there.
        min_score: points where the teacher scores the box's class no higher than this take no part.
    """

    weight: float | Literal["auto"] = 7.5
    kind: Kind = "giou"
    margin: float = Field(default=0.0, ge=-2.0, le=2.0)
    form: Form = "hinge"
    min_score: float = Field(default=0.05, ge=0.0, lt=1.0)


def bounded_error(student_error: Tensor, teacher_error: Tensor, margin: float = 0.0, form: Form = "hinge") -> Tensor:
    """Return what the student pays, elementwise; 0 where e_s + m <= e_t.

    `hinge`: max(e_s + m - e_t, 0), continuous. `step`: e_s * [e_s + m > e_t], which jumps by e_t - m.

    Args:
        student_error: e_s >= 0, distance of the student to ground truth.
        teacher_error: e_t >= 0, distance of the teacher to ground truth, same shape.
        margin: m.
        form: which of the two.
    """
    excess = student_error + margin - teacher_error
    return excess.clamp(min=0.0) if form == "hinge" else student_error * (excess > 0)


class BoxBounded(GridLoss):
    """Boxes of points on labelled objects are pulled to ground truth while they are worse than the teacher's.

    L = sum_{B,A: inside a box, v > min_score} v * bounded(1 - IoU(b_s, y), 1 - IoU(b_t, y)) / max(sum v, 1)
    with y the smallest ground-truth box that holds the point and v the teacher's score for its class,
    detached. The teacher's score picks the points that answer for an object at their level.

    Shapes: boxes (B, A, 4) in input pixels to a scalar. Reduction: mean weighted by v, so the value does not
    depend on the batch size. No unit. Rightly 0 on unlabelled images and once the student is good enough.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: teacher-bounded regression of Chen et al., NeurIPS 2017, eq. 4, there with squared L2 errors of
    regression outputs and `form: step`; we measure by overlap, which does not depend on the object's size.
    """

    Config: ClassVar[type[LossConfig]] = BoxBoundedConfig
    can_be_zero = True

    def __init__(self, config: BoxBoundedConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._settings = config

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        truth, weight = self._truth(pair, targets)
        kind = self._settings.kind
        loss = bounded_error(
            iou_distance(full_precision(pair.student.boxes_xyxy), truth, kind),
            iou_distance(full_precision(pair.teacher.boxes_xyxy), truth, kind),
            self._settings.margin,
            self._settings.form,
        )
        return (weight * loss).sum() / weight.sum().clamp(min=1.0)

    def _truth(self, pair: GridPair, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return each point's ground-truth box (B, A, 4) and weight (B, A), 0 outside all boxes."""
        owner = smallest_box(pair.student.points_xy, targets, len(pair.student_logits))
        # Owner -1 (no box) reads the row appended at the end; its weight is 0.
        boxes = torch.cat([targets.boxes_xyxy, targets.boxes_xyxy.new_zeros(1, 4)])[owner]
        labels = torch.cat([targets.labels, targets.labels.new_zeros(1)])[owner]
        score = pair.teacher_logits.gather(-1, labels[..., None]).squeeze(-1).sigmoid()
        weight = score * ((owner >= 0) & (score > self._settings.min_score))
        return boxes.to(weight.dtype), weight
