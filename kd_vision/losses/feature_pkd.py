"""Feature distillation by Pearson correlation.

Shapes: B images, C channels of the teacher, H W positions.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kd_vision.losses.base import LossConfig, Weight
from kd_vision.losses.features import LEAST_STD, STD_EPSILON, LinearFeatureLoss, centred, channel_std


class FeaturePKDConfig(LossConfig):
    """Settings of `FeaturePKD`.

    Attributes:
        weight: 3.0; the published 6 to 10 belong to other detectors' terms.
    """

    weight: Weight = 3.0


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1/2 mean (z_s - z_t)^2, z standardised per channel over images and positions.

    This is (n - 1)/n * (1 - mean Pearson correlation) with n = B*H*W. Channels where the teacher's deviation
    is below 1e-3 carry no pattern and are left out; 0 if none remains. The student's deviation is floored at
    1e-3, which bounds the gradient of its constant channels.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).
    """
    student_map, teacher_map = centred(student), centred(teacher)
    student_std, teacher_std = channel_std(student_map), channel_std(teacher_map)
    student_scale, teacher_scale = student_std.clamp(min=LEAST_STD) + STD_EPSILON, teacher_std + STD_EPSILON
    values = student.shape[0] * student.shape[2] * student.shape[3]
    # The square is expanded into moments: the standardised maps themselves would cost many passes.
    squares = (student_std / student_scale).square() + (teacher_std / teacher_scale).square()
    products = (student_map * teacher_map).sum(dim=(0, 2, 3)) / (student_scale * teacher_scale)
    per_channel = ((values - 1) * squares - 2.0 * products) / values
    alive = (teacher_std >= LEAST_STD).to(per_channel.dtype)
    return 0.5 * (per_channel * alive).sum() / alive.sum().clamp(min=1.0)


class FeaturePKD(LinearFeatureLoss[FeaturePKDConfig]):
    """Squared error between standardised channels, that is 1 - Pearson correlation, blind to scale and offset.

    L = sum_levels 1/2 mean_{B,C,H,W} (z_s - z_t)^2, z = (x - mean) / (std + 1e-6) per channel over B, H, W
    with the unbiased deviation; the student's map goes through a linear 1x1 adapter where widths differ.

    Shapes: maps (B, C, H, W) to a scalar. Reduction: mean within a level, sum over levels. No unit.

    Source: PKD (Cao et al., NeurIPS 2022, eq. 3) as implemented in mmrazor. We differ by the adapter, float32
    statistics under autocast, and by leaving out dead channels of the teacher.
    """

    Config: ClassVar[type[LossConfig]] = FeaturePKDConfig
    adapter_bias: ClassVar[bool] = False

    def level_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one level; both (B, C, H, W)."""
        return pearson_distance(student, teacher)
