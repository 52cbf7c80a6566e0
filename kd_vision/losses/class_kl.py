"""Class distillation on dense heads by softmax KL divergence.

Shapes: B images, A grid points, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.losses.base import LossConfig, Temperature, Weight
from kd_vision.losses.divergence import softmax_divergence
from kd_vision.losses.grid import SoftmaxGridLoss

Reduction = Literal["confidence", "mean"]


class ClassKLConfig(LossConfig):
    """Settings of `ClassKL`.

    Attributes:
        weight: 0.5, the gain that dense YOLO heads give their own class term.
        temperature: T > 1 softens both sides.
        reduction: `confidence`: points weighted by the teacher's best score u, divided by N_q;
            `mean`: the mean over all points, as for classifiers (mostly background on a dense head).
    """

    weight: Weight = 0.5
    temperature: Temperature = 1.0
    reduction: Reduction = "confidence"


class ClassKL(SoftmaxGridLoss[ClassKLConfig]):
    """KL between the softmax over classes of each point: how classes compare, not whether an object is there.

    L = sum_{B,A} u * T^2 * KL(softmax(t/T) || softmax(s/T)) / N_q with u = max_c sigmoid(t) detached,
    N_q = max(sum_{B,A} u, 1); or the plain mean over B, A.

    Invariant to a shift of all logits of a point, so on sigmoid heads it needs another class term beside it.

    Shapes: logits (B, A, K) to a scalar. Reduction: see `ClassKLConfig.reduction`; neither depends on the
    batch size. Unit: nats.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: Hinton et al., 2015, section 2; the weighting by the teacher's score is ours.
    """

    Config: ClassVar[type[LossConfig]] = ClassKLConfig

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        divergence = softmax_divergence(pair.student_logits, pair.teacher_logits, self.config.temperature)
        if self.config.reduction == "mean":
            return divergence.mean()
        return (pair.confidence * divergence).sum() / pair.normaliser
