"""Ranking distillation within objects: which candidate of an object is best (rank mimicking).

Shapes: B images, A grid points, K classes, M objects of the batch, P candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signal, Signals
from kd_vision.losses.base import LossConfig, Temperature, computed
from kd_vision.losses.grid import GridLoss, images_with_targets, smallest_box


class RankListConfig(LossConfig):
    """Settings of `RankList`.

    Attributes:
        temperature: T > 1 softens both sides.
        score_threshold: on images without ground truth, the teacher's final boxes of at least this score are the
            objects.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"accept": "score_threshold"}

    temperature: Temperature = 1.0
    score_threshold: float = Field(default=0.5, gt=0.0, le=1.0)


def grouped_divergence(student: Tensor, teacher: Tensor, group: Tensor, groups: int, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(t/T) || softmax(s/T)) of each group, (M,); 0 for groups of one or none.

    Args:
        student: (P,) logits.
        teacher: (P,) logits.
        group: (P,) group of each value.
        groups: M.
        temperature: T.
    """
    student_log_probs, teacher_log_probs = (
        _grouped_log_softmax(x / temperature, group, groups) for x in (student, teacher)
    )
    probs = teacher_log_probs.exp()
    divergence = probs * (teacher_log_probs - student_log_probs)
    return temperature**2 * probs.new_zeros(groups).index_add(0, group, divergence)


def _grouped_log_softmax(values: Tensor, group: Tensor, groups: int) -> Tensor:
    top = values.new_full((groups,), float("-inf")).scatter_reduce(0, group, values.detach(), "amax")
    shifted = values - top[group]
    total = values.new_zeros(groups).index_add(0, group, shifted.exp())
    return shifted - total[group].log()


class RankList(GridLoss[RankListConfig]):
    """KL between the softmax of scores over the points inside each object.

    L = mean_M T^2 * KL(softmax_{a in m}(t_a/T) || softmax_{a in m}(s_a/T)) with s_a, t_a the best class logits of
    point a, over the objects m with a point (in overlapping boxes a point belongs to the smallest). Objects are the
    ground truth; on images without, the teacher's final boxes of score >= score_threshold if it provides
    `detections`, else none.

    NMS keeps the candidate of the highest score, so their order decides which box is final. Invariant to a shift of
    all logits of an object: the level of the scores is left to other terms.

    Shapes: logits (B, A, K) to a scalar. Reduction: mean over objects, so the value does not depend on the batch
    size. Unit: nats. Legitimately 0 without objects.

    Raises:
        RequestError: images or classes of the two grids differ, or a signal was not computed.

    Source: rank mimicking of Li et al., AAAI 2022 ("Knowledge distillation for object detection via rank mimicking
    and prediction-guided feature imitation"), there over the positives of each object by the teacher's assigner;
    we take the points inside the box, which need no assigner.
    """

    Config: ClassVar[type[LossConfig]] = RankListConfig
    optional: ClassVar[frozenset[Signal]] = frozenset({"detections"})
    can_be_zero = True

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        images = len(pair.student_logits)
        objects = self._objects(teacher, targets, images)
        owner = smallest_box(pair.student.points_xy, objects, images)
        inside = pair.masked(owner >= 0)
        group = owner[inside]
        student_scores = pair.student_logits.amax(dim=-1)[inside]
        teacher_scores = pair.teacher_logits.amax(dim=-1)[inside]
        divergence = grouped_divergence(student_scores, teacher_scores, group, len(objects), self.config.temperature)
        counted = torch.bincount(group, minlength=len(objects)) > 0
        return divergence.sum() / counted.sum().clamp(min=1)

    def _objects(self, teacher: Signals, targets: Targets, images: int) -> Targets:
        """Return the ground truth and, on images without, the teacher's boxes above the threshold."""
        if "detections" not in self.teacher_signals:
            return targets
        boxes = computed(teacher.pseudo_labels, "detections", "teacher")
        unlabelled = ~images_with_targets(targets, images)[boxes.image_index]
        boxes = boxes.take(unlabelled & (boxes.scores >= self.config.score_threshold) & ~boxes.ignore)
        return Targets(
            torch.cat([targets.image_index, boxes.image_index]),
            torch.cat([targets.labels, boxes.labels]),
            torch.cat([targets.boxes_xyxy, boxes.boxes_xyxy.to(targets.boxes_xyxy.dtype)]),
        )
