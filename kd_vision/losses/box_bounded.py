"""Regression toward ground truth, bounded by the teacher.

Shapes: B images, A grid points, M boxes of the whole batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.losses.base import LossConfig, Weight
from kd_vision.losses.box_iou import Kind, iou_distance
from kd_vision.losses.grid import GridLoss, GridPair, full_precision, smallest_box, take_or_zero

Form = Literal["hinge", "step"]


class BoxBoundedConfig(LossConfig):
    """Settings of `BoxBounded`.

    Attributes:
        weight: 7.5, the gain that dense YOLO heads give their own box term.
        kind: which overlap measures the error.
        margin: the loss is 0 only where the student is better than the teacher by this much of 1 - IoU;
            negative: where it is worse by at most as much.
        form: `hinge`: the excess over the bound, continuous; `step`: the whole error beyond the bound, as
            published, discontinuous there.
        min_score: points where the teacher scores the box's class no higher than this take no part.
    """

    weight: Weight = 7.5
    kind: Kind = "giou"
    margin: float = Field(default=0.0, ge=-2.0, le=2.0)
    form: Form = "hinge"
    min_score: float = Field(default=0.05, ge=0.0, lt=1.0)


def bounded_error(student_error: Tensor, teacher_error: Tensor, margin: float = 0.0, form: Form = "hinge") -> Tensor:
    """Return the student's error beyond the teacher's, elementwise; 0 where e_s + m <= e_t.

    `hinge`: max(e_s + m - e_t, 0), continuous. `step`: e_s * [e_s + m > e_t], which jumps by e_t - m.

    Args:
        student_error: e_s >= 0, distance of the student to ground truth.
        teacher_error: e_t >= 0, distance of the teacher to ground truth, same shape.
        margin: m.
        form: which of the two.
    """
    excess = student_error + margin - teacher_error
    return excess.clamp(min=0.0) if form == "hinge" else student_error * (excess > 0)


class BoxBounded(GridLoss[BoxBoundedConfig]):
    """Box regression to ground truth at points on labelled objects where the student is worse than the teacher.

    L = sum_{B,A: inside a box, v > min_score} v * bounded(1 - IoU(b_s, y), 1 - IoU(b_t, y)) / max(sum v, 1)
    with y the smallest ground-truth box that holds the point and v the teacher's score for its class,
    detached. Weighting by the teacher's score selects the points that predict an object at their level.

    Shapes: boxes (B, A, 4) in input pixels to a scalar. Reduction: mean weighted by v, so the value does not
    depend on the batch size. No unit. Legitimately 0 on unlabelled images and once the student is good enough.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: teacher-bounded regression of Chen et al., NeurIPS 2017, eq. 4, there with squared L2 errors of
    regression outputs and `form: step`; we measure by overlap, which does not depend on the object's size.
    """

    Config: ClassVar[type[LossConfig]] = BoxBoundedConfig
    can_be_zero = True

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        truth, weight = self._truth(pair, targets)
        loss = bounded_error(
            iou_distance(full_precision(pair.student.boxes_xyxy), truth, self.config.kind),
            iou_distance(full_precision(pair.teacher.boxes_xyxy), truth, self.config.kind),
            self.config.margin,
            self.config.form,
        )
        return (weight * loss).sum() / weight.sum().clamp(min=1.0)

    def _truth(self, pair: GridPair, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return each point's ground-truth box (B, A, 4) and weight (B, A), 0 outside all boxes."""
        owner = smallest_box(pair.student.points_xy, targets, len(pair.student_logits))
        labels = take_or_zero(targets.labels, owner)
        score = pair.teacher_logits.gather(-1, labels[..., None]).squeeze(-1).sigmoid()
        weight = score * ((owner >= 0) & (score > self.config.min_score))
        return take_or_zero(targets.boxes_xyxy, owner).to(weight.dtype), weight
