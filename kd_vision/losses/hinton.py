"""Hinton distillation (hard labels and softened teacher) on the points of a dense head.

Shapes: B images, A grid points, K classes, M boxes of the whole batch.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.losses.base import LossConfig, Temperature, Weight
from kd_vision.losses.divergence import softmax_divergence
from kd_vision.losses.grid import SoftmaxGridLoss, images_with_targets, smallest_box, take_or_zero


class HintonConfig(LossConfig):
    """Settings of `Hinton`.

    Attributes:
        weight: 0.5, the gain that dense YOLO heads give their own class term.
        alpha: share of the hard labels; the paper found a weight considerably below that of the soft part best.
        temperature: T > 1 softens both sides of the soft part.
        min_score: on images without ground truth, points where the teacher's best score is above this
            take part.
    """

    weight: Weight = 0.5
    alpha: float = Field(default=0.1, ge=0.0, le=1.0)
    temperature: Temperature = 2.0
    min_score: float = Field(default=0.25, ge=0.0, lt=1.0)


def hinton_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha: float, temperature: float
) -> Tensor:
    """Return mean over rows of alpha * CE(s, y) + (1 - alpha) * T^2 * KL(softmax(t/T) || softmax(s/T)).

    Args:
        student_logits: s, (N, K).
        teacher_logits: t, (N, K).
        labels: y, (N,) int64.
        alpha: share of the hard part, in [0, 1].
        temperature: T, of the soft part alone; the hard part is taken at 1.

    Returns:
        A scalar; 0 without rows.

    Source: Hinton et al., 2015, section 2. The soft part is there a cross-entropy; KL differs from it by the
    teacher's entropy, which has no gradient.
    """
    hard = functional.cross_entropy(student_logits, labels, reduction="sum")
    soft = softmax_divergence(student_logits, teacher_logits, temperature).sum()
    return (alpha * hard + (1.0 - alpha) * soft) / max(len(labels), 1)


class Hinton(SoftmaxGridLoss[HintonConfig]):
    """Cross-entropy to ground truth and KL to the softened teacher, at points inside ground-truth boxes.

    `hinton_loss` over the points whose centre lies in a box (the smallest wins). Images without ground truth
    add only the soft part, (1 - alpha) * T^2 * KL, of the points where the teacher's best score is above
    `min_score`. The sum is divided by the number of points of both kinds. Legitimately 0 where there are none.

    Shapes: logits (B, A, K) to a scalar. Reduction: mean over the points that take part, so the value does
    not depend on the batch size. Unit: nats.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: Hinton et al., 2015, section 2, on classifiers; the choice of points of a dense head is ours.
    """

    Config: ClassVar[type[LossConfig]] = HintonConfig
    can_be_zero = True

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        alpha, temperature = self.config.alpha, self.config.temperature
        pair = self.pair(student, teacher, targets)
        images = len(pair.student_logits)
        owner = smallest_box(pair.student.points_xy, targets, images)
        inside = pair.masked(owner >= 0)
        unlabelled = ~images_with_targets(targets, images)[:, None]
        confident = unlabelled & (pair.confidence > self.config.min_score)
        labels = take_or_zero(targets.labels, owner)[inside]
        mixed = hinton_loss(pair.student_logits[inside], pair.teacher_logits[inside], labels, alpha, temperature)
        soft = softmax_divergence(pair.student_logits[confident], pair.teacher_logits[confident], temperature).sum()
        points = (inside | confident).sum().clamp(min=1)
        return (mixed * inside.sum() + (1.0 - alpha) * soft) / points
