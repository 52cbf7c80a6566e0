"""Feature maps by channel-wise KL divergence over positions.

Shapes: B images, C channels of the teacher, H W positions.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import LossConfig
from kd_vision.losses.divergence import softmax_divergence
from kd_vision.losses.features import LEAST_STD, STD_EPSILON, LinearFeatureLoss, centred, channel_std


class FeatureCWDConfig(LossConfig):
    """Settings of `FeatureCWD`.

    Attributes:
        weight: 0.5; on small images the published 10 exceeds the whole detection loss.
        temperature: T > 1 flattens both sides.
        standardise: give each channel of both sides deviation 1 first. The softmax over
            positions depends on scale, which differs between networks.
    """

    weight: float | Literal["auto"] = 0.5
    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    standardise: bool = True


def channel_wise_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return mean over B, C of T^2 * KL(softmax(t/T) || softmax(s/T)), softmax over the H*W positions.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).
        temperature: T > 0.
    """
    return softmax_divergence(student.flatten(2), teacher.flatten(2), temperature).mean()


class FeatureCWD(LinearFeatureLoss):
    """Each channel learns where the teacher's channel is active.

    L = sum_levels mean_{B,C} T^2 * KL(softmax_{HW}(t/T) || softmax_{HW}(phi(s)/T)) with phi a linear 1x1
    adapter where widths differ.

    Shapes: maps (B, C, H, W) to a scalar. Reduction: sum over positions, mean over images and channels, sum
    over levels. Unit: nats.

    Source: CWD (Shu et al., ICCV 2021, eq. 4). We standardise first (an option), as in DAMO-YOLO but with
    plain statistics of the batch.
    """

    Config: ClassVar[type[LossConfig]] = FeatureCWDConfig
    adapter_bias: ClassVar[bool] = False

    def __init__(self, config: FeatureCWDConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._temperature = config.temperature
        self._standardise = config.standardise

    def level_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one level; both (B, C, H, W)."""
        if self._standardise:
            student, teacher = _standardised(student), _standardised(teacher)
        return channel_wise_divergence(student, teacher, self._temperature)


def _standardised(maps: Tensor) -> Tensor:
    """Scale channels to deviation 1; their mean does not matter to a softmax over positions."""
    shifted = centred(maps)
    return shifted / (channel_std(shifted).clamp(min=LEAST_STD) + STD_EPSILON)[:, None, None]
