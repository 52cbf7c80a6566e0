"""Class-weighted soft targets with a lower weight where ground truth contradicts the teacher.

Shapes: B images, A grid points, K classes, M boxes of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.losses.base import LossConfig, Weight
from kd_vision.losses.divergence import binary_divergence
from kd_vision.losses.grid import GridLoss, full_precision, images_with_targets, points_in_boxes


class ClassWeightedSoftConfig(LossConfig):
    """Settings of `ClassWeightedSoft`.

    Attributes:
        weight: 0.5, the gain that dense YOLO heads give their own class term.
        foreground: weight of the "is this class" half of a target.
        background: weight of the "is not" half. Above `foreground`, missing an object costs relatively less.
        confident: a score above this, outside every box of that class, is a false positive.
        false_negative_threshold: a box none of whose points scores this much for its class is a false negative,
            and so is each of its points. Single points of low score are not: others may predict the object.
        false_positive: weight of a false positive, 0 (left out) to 1 (as any other target).
        false_negative: weight of a false negative.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"silent": "false_negative_threshold"}

    weight: Weight = 0.5
    foreground: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    background: float = Field(default=1.5, gt=0.0, allow_inf_nan=False)
    confident: float = Field(default=0.5, gt=0.0, lt=1.0)
    false_negative_threshold: float = Field(default=0.25, gt=0.0, lt=1.0)
    false_positive: float = Field(default=0.2, ge=0.0, le=1.0)
    false_negative: float = Field(default=0.2, ge=0.0, le=1.0)


def weighted_soft(
    student_logits: Tensor, teacher_logits: Tensor, foreground: float = 1.0, background: float = 1.5
) -> Tensor:
    """Return -w_f q log p - w_b (1 - q) log(1 - p) less its minimum over p, elementwise.

    The minimum is at logit(p) = t + log(w_f / w_b), so the loss is w KL(q' || p) with that q' and
    w = w_f q + w_b (1 - q). With equal weights of 1 it is `binary_divergence`.

    Args:
        student_logits: s of any shape, p = sigmoid(s).
        teacher_logits: t of the same shape, q = sigmoid(t).
        foreground: w_f > 0.
        background: w_b > 0.
    """
    score = teacher_logits.sigmoid()
    weight = foreground * score + background * (1.0 - score)
    return weight * binary_divergence(student_logits, teacher_logits + math.log(foreground / background))


def teacher_trust(scores: Tensor, points_xy: Tensor, targets: Targets, config: ClassWeightedSoftConfig) -> Tensor:
    """Return (B, A, K) in [0, 1]: the weight of each score of the teacher as a target.

    It is 1 on images without ground truth, where the teacher's errors are unknown.

    Args:
        scores: (B, A, K) the teacher's class probabilities.
        points_xy: (A, 2) input pixels.
        targets: ground truth of the batch.
        config: thresholds and weights.
    """
    points = full_precision(points_xy)
    inside = points_in_boxes(points, targets.boxes_xyxy.to(points.dtype))
    of_class = scores[targets.image_index, :, targets.labels]
    missed = (of_class * inside).amax(dim=1, keepdim=True) < config.false_negative_threshold
    covered = _per_class(inside, targets, scores)
    false_negative = _per_class(inside & missed, targets, scores)
    labelled = images_with_targets(targets, len(scores))[:, None, None]
    false_positive = labelled & ~covered & (scores > config.confident)
    trust = torch.ones_like(scores).masked_fill(false_positive, config.false_positive)
    return trust.masked_fill(false_negative, config.false_negative)


def _per_class(points: Tensor, targets: Targets, scores: Tensor) -> Tensor:
    """Merge (M, A) masks of boxes into (B, A, K): true where any box of the image and class has it."""
    images, count, classes = scores.shape
    rows = (targets.image_index * classes + targets.labels)[:, None].expand_as(points)
    joined = torch.zeros(images * classes, count, dtype=torch.int32, device=scores.device)
    joined = joined.scatter_reduce(0, rows, points.to(torch.int32), "amax")
    return joined.view(images, classes, count).movedim(1, 2).bool()


class ClassWeightedSoft(GridLoss[ClassWeightedSoftConfig]):
    """Weighted cross-entropy to the teacher's class probabilities, reduced at its false positives and negatives.

    L = sum_{B,A,K} v * [-w_f q log p - w_b (1 - q) log(1 - p) - minimum] / N_q with v in [0, 1] of
    `teacher_trust`, u = max_c q, N_q = max(sum_{B,A} u, 1); all weights detached.

    Shapes: logits (B, A, K) to a scalar. Reduction: sum over the teacher's count of objects N_q, so the
    value does not depend on the batch size. Unit: nats.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: class-weighted cross-entropy of Chen et al., NeurIPS 2017, eq. 3, with its weights 1.5 for
    background and 1 for objects. There one softmax has a background class; here each sigmoid has two sides.
    The minimum is subtracted so that the loss is 0 there. The weights v are ours.
    """

    Config: ClassVar[type[LossConfig]] = ClassWeightedSoftConfig

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        config = self.config
        trust = teacher_trust(pair.teacher_logits.sigmoid(), pair.teacher.points_xy, targets, config)
        loss = weighted_soft(pair.student_logits, pair.teacher_logits, config.foreground, config.background)
        return (trust * loss).sum() / pair.normaliser
