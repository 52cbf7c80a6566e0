"""The classic combination of hard labels and softened teacher, on the points of a dense head.

Shapes: B images, A grid points, K classes, M boxes of the whole batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import LossConfig
from kd_vision.losses.divergence import softmax_divergence
from kd_vision.losses.grid import GridLoss, images_with_targets, smallest_box, softmax_incompatibilities


class HintonConfig(LossConfig):
    """Settings of `Hinton`.

    Attributes:
        weight: 0.5, the gain that dense YOLO heads give their own class term.
        alpha: share of the hard labels; the paper found a considerably lower weight on them best.
        temperature: T > 1 softens both sides of the soft part.
        min_score: on images without ground truth, points where the teacher's best score is above this
            take part.
    """

    weight: float | Literal["auto"] = 0.5
    alpha: float = Field(default=0.1, ge=0.0, le=1.0)
    temperature: float = Field(default=2.0, gt=0.0, allow_inf_nan=False)
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


class Hinton(GridLoss):
    """Points inside ground-truth boxes learn the box's class and the teacher's softened classes.

    `hinton_loss` over the points whose centre lies in a box (the smallest wins). Images without ground truth
    add only the soft part, (1 - alpha) * T^2 * KL, of the points where the teacher is confident. The sum is
    divided by the number of points of both kinds. Rightly 0 where there are none: no point lies in a box, or
    nothing in an image without labels is sure enough.

    Shapes: logits (B, A, K) to a scalar. Reduction: mean over the points that take part, so the value does
    not depend on the batch size. Unit: nats.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: Hinton et al., 2015, section 2, on classifiers; choosing points of a dense head is ours.
    """

    Config: ClassVar[type[LossConfig]] = HintonConfig
    can_be_zero = True

    def __init__(self, config: HintonConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._alpha = config.alpha
        self._temperature = config.temperature
        self._min_score = config.min_score

    @classmethod
    def incompatibilities(cls, config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
        """Add to the grid's reasons: there must be classes to compare."""
        return super().incompatibilities(config, student, teacher) + softmax_incompatibilities(student, teacher)

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        images = len(pair.student_logits)
        owner = smallest_box(pair.student.points_xy, targets, images)
        inside = owner >= 0 if pair.mask is None else (owner >= 0) & pair.mask
        unlabelled = ~images_with_targets(targets, images)[:, None]
        guided = unlabelled & (pair.confidence > self._min_score)
        # Owner -1 (no box) reads the label appended at the end; such rows take no part.
        labels = torch.cat([targets.labels, targets.labels.new_zeros(1)])[owner]
        mixed = hinton_loss(
            pair.student_logits[inside],
            pair.teacher_logits[inside],
            labels[inside],
            self._alpha,
            self._temperature,
        )
        soft = softmax_divergence(pair.student_logits[guided], pair.teacher_logits[guided], self._temperature).sum()
        rows = (inside | guided).sum().clamp(min=1)
        return (mixed * inside.sum() + (1.0 - self._alpha) * soft) / rows
