"""Which of an object's candidates is best: the student learns the teacher's order.

Shapes: B images, A grid points, K classes, M objects of the batch, P candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import LossConfig
from kd_vision.losses.grid import GridLoss, images_with_targets, smallest_box


class RankListConfig(LossConfig):
    """Settings of `RankList`.

    Attributes:
        temperature: T > 1 softens both sides.
        score_threshold: on images without ground truth, the teacher's final boxes of at least this score are the
            objects.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"accept": "score_threshold"}

    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    score_threshold: float = Field(default=0.5, gt=0.0, le=1.0)


def grouped_divergence(student: Tensor, teacher: Tensor, group: Tensor, groups: int, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(t/T) || softmax(s/T)) of each group, (M,); 0 for groups of one or none.

    Args:
        student: (P,) logits.
        teacher: (P,) logits.
        group: (P,) which group a value belongs to.
        groups: M.
        temperature: T.
    """
    student_scores, teacher_scores = (_grouped_log_softmax(x / temperature, group, groups) for x in (student, teacher))
    share = teacher_scores.exp()
    return temperature**2 * share.new_zeros(groups).index_add(0, group, share * (teacher_scores - student_scores))


def _grouped_log_softmax(values: Tensor, group: Tensor, groups: int) -> Tensor:
    top = values.new_full((groups,), float("-inf")).scatter_reduce(0, group, values.detach(), "amax")
    shifted = values - top[group]
    total = values.new_zeros(groups).index_add(0, group, shifted.exp())
    return shifted - total[group].log()


class RankList(GridLoss):
    """Among the points inside an object, the student learns how the teacher divides its trust.

    L = mean_M T^2 * KL(softmax_{a in m}(t_a/T) || softmax_{a in m}(s_a/T)) with s_a, t_a the best class logits of
    point a, over the objects m that hold a point of their own (of overlapping boxes the smallest has it). Objects
    are the ground truth; on images without, the teacher's final boxes of score >= score_threshold where another
    loss asked for the channel `detections`, else nothing.

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
    can_be_zero = True

    def __init__(self, config: RankListConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._temperature = config.temperature
        self._score_threshold = config.score_threshold

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        images = len(pair.student_logits)
        objects = self._objects(teacher, targets, images)
        owner = smallest_box(pair.student.points_xy, objects, images)
        inside = owner >= 0 if pair.mask is None else (owner >= 0) & pair.mask
        group = owner[inside]
        student_scores = pair.student_logits.amax(dim=-1)[inside]
        teacher_scores = pair.teacher_logits.amax(dim=-1)[inside]
        divergence = grouped_divergence(student_scores, teacher_scores, group, len(objects), self._temperature)
        held = torch.bincount(group, minlength=len(objects)) > 0
        return divergence.sum() / held.sum().clamp(min=1)

    def _objects(self, teacher: Signals, targets: Targets, images: int) -> Targets:
        """Return the ground truth and, on images without, the boxes that the teacher is sure of."""
        if teacher.pseudo_labels is None:
            return targets
        pseudo_labels = teacher.pseudo_labels
        bare = ~images_with_targets(targets, images)[pseudo_labels.image_index]
        sure = pseudo_labels.take(bare & (pseudo_labels.scores >= self._score_threshold) & ~pseudo_labels.ignore)
        return Targets(
            torch.cat([targets.image_index, sure.image_index]),
            torch.cat([targets.labels, sure.labels]),
            torch.cat([targets.boxes_xyxy, sure.boxes_xyxy.to(targets.boxes_xyxy.dtype)]),
        )
