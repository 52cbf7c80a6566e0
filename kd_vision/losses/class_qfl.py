"""Class distillation on dense heads by quality focal loss.

Shapes: B images, A grid points, K classes.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.losses.base import LossConfig, Weight
from kd_vision.losses.grid import BalancedConfig, GridLoss


class ClassQFLConfig(BalancedConfig):
    """Settings of `ClassQFL`.

    Attributes:
        weight: 2.0, from our measurement on a small data set.
        beta: power of the modulating factor, at least 1 (below, the gradient at equality is unbounded); 1 in
            CrossKD and BCKD, 2 in PP-YOLOE.
    """

    weight: Weight = 2.0
    beta: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)


def quality_focal(student_logits: Tensor, teacher_logits: Tensor, beta: float = 1.0) -> Tensor:
    """Return |p - q|^beta * BCE(s, q), elementwise.

    Zero at equality. With beta = 1 there is a kink: one-sided slopes +-H(q) q (1 - q), because the
    gradient also flows through the modulating factor, as in the published code.

    Args:
        student_logits: s of any shape, p = sigmoid(s).
        teacher_logits: t of the same shape, q = sigmoid(t).
        beta: power of the modulating factor.
    """
    target = teacher_logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(student_logits, target, reduction="none")
    return (student_logits.sigmoid() - target).abs().pow(beta) * entropy


class ClassQFL(GridLoss[ClassQFLConfig]):
    """Cross-entropy to the teacher's class probabilities, weighted by the disagreement of the two.

    L = sum_{B,A,K} w_K * |p - q|^beta * BCE(s, q) / N_q with w = 1 unless balanced, u = max_c q,
    N_q = max(sum_{B,A} u, 1).

    Shapes: logits (B, A, K) to a scalar. Reduction: sum over the teacher's count of objects N_q, so the
    value does not depend on the batch size. Unit: nats.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: quality focal loss (Li et al., NeurIPS 2020, eq. 4) with the teacher's score as its target, as
    CrossKD (Wang et al., CVPR 2024) and BCKD (Yang et al., ICCV 2023). They divide by the number of assigned
    positives; we divide by N_q, which needs no labels.
    """

    Config: ClassVar[type[LossConfig]] = ClassQFLConfig

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        focal = quality_focal(pair.student_logits, pair.teacher_logits, self.config.beta)
        return (focal * pair.class_weight).sum() / pair.normaliser
