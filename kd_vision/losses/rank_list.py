"""Which of an object's candidates is best: the student learns the teacher's order.

Shapes: B images, A grid points, K classes, M objects of the batch, P candidates.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Channels
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import LossConfig
from kd_vision.losses.grid import GridLoss, images_with_targets, smallest_box


class RankListConfig(LossConfig):
    """Settings of `RankList`.

    Attributes:
        temperature: T > 1 softens both sides.
        accept: on images without ground truth, the teacher's final boxes of at least this score are the objects.
    """

    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    accept: float = Field(default=0.5, gt=0.0, le=1.0)


def grouped_divergence(student: Tensor, teacher: Tensor, group: Tensor, groups: int, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(t/T) || softmax(s/T)) of each group, (M,); 0 for groups of one or none.

    Args:
        student: (P,) logits.
        teacher: (P,) logits.
        group: (P,) which group a value belongs to.
        groups: M.
        temperature: T.
    """
    ours, theirs = (_grouped_log_softmax(x / temperature, group, groups) for x in (student, teacher))
    share = theirs.exp()
    return temperature**2 * share.new_zeros(groups).index_add(0, group, share * (theirs - ours))


def _grouped_log_softmax(values: Tensor, group: Tensor, groups: int) -> Tensor:
    top = values.new_full((groups,), float("-inf")).scatter_reduce(0, group, values.detach(), "amax")
    shifted = values - top[group]
    total = values.new_zeros(groups).index_add(0, group, shifted.exp())
    return shifted - total[group].log()


class RankList(GridLoss):
    """Among the points inside an object, the student learns how the teacher divides its trust.

    L = mean_M T^2 * KL(softmax_{a in m}(t_a/T) || softmax_{a in m}(s_a/T)) with s_a, t_a the best class logits of
    point a, over the objects m that hold a point of their own (of overlapping boxes the smallest has it). Objects
    are the ground truth; on images without, the teacher's final boxes of score >= accept where another loss asked
    for the channel `detections`, else nothing.

    Suppression keeps the candidate of the highest score, so its order decides which box is shown. The level of
    the scores is not taught: invariant to a shift of all logits of an object.

    Shapes: logits (B, A, K) to a scalar. Reduction: mean over objects, so the value does not depend on the batch
    size. Unit: nats. Rightly 0 without objects.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: rank mimicking of Li et al., AAAI 2022 ("Knowledge distillation for object detection via rank mimicking
    and prediction-guided feature imitation"), there over the positives of each object by the teacher's assigner;
    we take the points inside the box, which needs no assigner.
    """

    Config: ClassVar[type[LossConfig]] = RankListConfig
    may_vanish = True

    def __init__(self, config: RankListConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._temperature = config.temperature
        self._accept = config.accept

    def forward(self, student: Channels, teacher: Channels, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        images = len(pair.student_logits)
        objects = self._objects(teacher, targets, images)
        owner = smallest_box(pair.student.points_xy, objects, images)
        inside = owner >= 0 if pair.part is None else (owner >= 0) & pair.part
        group = owner[inside]
        ours = pair.student_logits.amax(dim=-1)[inside]
        theirs = pair.teacher_logits.amax(dim=-1)[inside]
        divergence = grouped_divergence(ours, theirs, group, len(objects), self._temperature)
        held = torch.bincount(group, minlength=len(objects)) > 0
        return divergence.sum() / held.sum().clamp(min=1)

    def _objects(self, teacher: Channels, targets: Targets, images: int) -> Targets:
        """Return the ground truth and, on images without, the boxes that the teacher is sure of."""
        if teacher.soft is None:
            return targets
        soft = teacher.soft
        bare = ~images_with_targets(targets, images)[soft.image_index]
        sure = soft.take(bare & (soft.scores >= self._accept) & ~soft.ignore)
        return Targets(
            torch.cat([targets.image_index, sure.image_index]),
            torch.cat([targets.labels, sure.labels]),
            torch.cat([targets.boxes_xyxy, sure.boxes_xyxy.to(targets.boxes_xyxy.dtype)]),
        )
