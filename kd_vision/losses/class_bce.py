"""Class distillation on dense heads by sigmoid cross-entropy.

Shapes: B images, A grid points, K classes.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.losses.base import LossConfig, Temperature, Weight
from kd_vision.losses.divergence import binary_divergence
from kd_vision.losses.grid import BalancedConfig, GridLoss


class ClassBCEConfig(BalancedConfig):
    """Settings of `ClassBCE`.

    Attributes:
        weight: 0.5, the gain that dense YOLO heads give their own class term.
        temperature: T > 1 softens both sides.
    """

    weight: Weight = 0.5
    temperature: Temperature = 1.0


class ClassBCE(GridLoss[ClassBCEConfig]):
    """KL between the class probabilities of each point, one Bernoulli distribution per class.

    L = T^2 * sum_{B,A,K} [BCE(s/T, q_T) - H(q_T)] / N_q with q_T = sigmoid(t/T), u = max_c sigmoid(t),
    N_q = max(sum_{B,A} u, 1).

    Shapes: logits (B, A, K) to a scalar. Reduction: sum over the teacher's count of objects N_q, so the
    value does not depend on the batch size. Unit: nats.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: binary distillation as in BCKD (Yang et al., ICCV 2023, eq. 4) without its modulating factor; the
    entropy is subtracted so that the minimum is 0, and all points of all levels share one normaliser.
    """

    Config: ClassVar[type[LossConfig]] = ClassBCEConfig

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        temperature = self.config.temperature
        divergence = binary_divergence(pair.student_logits / temperature, pair.teacher_logits / temperature)
        return (temperature**2 * divergence * pair.class_weight).sum() / pair.normaliser
