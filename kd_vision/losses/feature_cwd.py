"""Feature distillation by channel-wise KL divergence over positions.

Shapes: B images, C channels of the teacher, H W positions.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kd_vision.losses.base import LossConfig, Temperature, Weight
from kd_vision.losses.divergence import softmax_divergence
from kd_vision.losses.features import LEAST_STD, STD_EPSILON, LinearFeatureLoss, centred, channel_std


class FeatureCWDConfig(LossConfig):
    """Settings of `FeatureCWD`.

    Attributes:
        weight: 0.5; on small images the published 10 exceeds the whole detection loss.
        temperature: T > 1 flattens both sides.
        standardise: first scale each channel of both sides to standard deviation 1. The softmax over positions
            depends on scale, which differs between networks.
    """

    weight: Weight = 0.5
    temperature: Temperature = 1.0
    standardise: bool = True


def channel_wise_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return mean over B, C of T^2 * KL(softmax(t/T) || softmax(s/T)), softmax over the H*W positions.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).
        temperature: T > 0.
    """
    return softmax_divergence(student.flatten(2), teacher.flatten(2), temperature).mean()


class FeatureCWD(LinearFeatureLoss[FeatureCWDConfig]):
    """KL between the softmax over positions of each channel: where the teacher's channel is active.

    L = sum_levels mean_{B,C} T^2 * KL(softmax_{HW}(t/T) || softmax_{HW}(phi(s)/T)) with phi a linear 1x1
    adapter where widths differ.

    Shapes: maps (B, C, H, W) to a scalar. Reduction: sum over positions, mean over images and channels, sum
    over levels. Unit: nats.

    Source: CWD (Shu et al., ICCV 2021, eq. 4). We standardise first (an option), as in DAMO-YOLO but with
    plain statistics of the batch.
    """

    Config: ClassVar[type[LossConfig]] = FeatureCWDConfig
    adapter_bias: ClassVar[bool] = False

    def level_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one level; both (B, C, H, W)."""
        if self.config.standardise:
            student, teacher = _standardised(student), _standardised(teacher)
        return channel_wise_divergence(student, teacher, self.config.temperature)


def _standardised(maps: Tensor) -> Tensor:
    """Return maps of standard deviation 1 per channel; the softmax over positions is invariant to the mean."""
    shifted = centred(maps)
    return shifted / (channel_std(shifted).clamp(min=LEAST_STD) + STD_EPSILON)[:, None, None]
