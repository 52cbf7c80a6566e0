"""Class scores of dense heads by sigmoid cross-entropy.

Shapes: B images, A grid points, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import LossConfig
from kd_vision.losses.divergence import binary_divergence
from kd_vision.losses.grid import BalancedConfig, GridLoss


class ClassBCEConfig(BalancedConfig):
    """Settings of `ClassBCE`.

    Attributes:
        weight: 0.5, the gain that dense YOLO heads give their own class term.
        temperature: T > 1 softens both sides.
    """

    weight: float | Literal["auto"] = 0.5
    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)


class ClassBCE(GridLoss):
    """Each class of each point learns the teacher's probability.

    L = T^2 * sum_{B,A,K} [BCE(s/T, q_T) - H(q_T)] / N_q with q_T = sigmoid(t/T), u = max_c sigmoid(t),
    N_q = max(sum_{B,A} u, 1).

    Shapes: logits (B, A, K) to a scalar. Reduction: sum over the teacher's count of objects N_q, so the
    value does not depend on the batch size. Unit: nats.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: binary distillation as in BCKD (Yang et al., ICCV 2023, eq. 4) without its modulating factor; the
    entropy is taken off so that the minimum is 0, and every point of every level shares one normaliser.
    """

    Config: ClassVar[type[LossConfig]] = ClassBCEConfig

    def __init__(self, config: ClassBCEConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._temperature = config.temperature

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        temperature = self._temperature
        divergence = binary_divergence(pair.student_logits / temperature, pair.teacher_logits / temperature)
        return (temperature**2 * divergence * pair.class_weight).sum() / pair.normaliser
