"""Feature distillation by attention transfer.

Shapes: B images, C channels, H W positions.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from kd_vision.losses.base import LossConfig, Weight
from kd_vision.losses.features import FeatureLoss


class FeatureATConfig(LossConfig):
    """Settings of `FeatureAT`.

    Attributes:
        weight: 500, half the published beta of 1000: the mean over positions of unit vectors is small.
    """

    weight: Weight = 500.0


def attention_map(maps: Tensor) -> Tensor:
    """Return (B, H*W): mean over channels of the squares, scaled to length 1 per image.

    Invariant to the order and sign of channels and to a positive factor.

    Args:
        maps: (B, C, H, W).
    """
    return functional.normalize(maps.square().mean(dim=1).flatten(1), dim=1)


class FeatureAT(FeatureLoss[FeatureATConfig]):
    """Squared error between the spatial attention maps; widths may differ, so there is no adapter.

    L = sum_levels mean_{B,HW} (A(s) - A(t))^2 with A the normalised mean square over channels.

    Shapes: maps (B, C, H, W) to a scalar. Reduction: mean within a level, sum over levels. No unit.

    Source: attention transfer (Zagoruyko and Komodakis, ICLR 2017, eq. 2 with p = 2, as in their code).
    """

    Config: ClassVar[type[LossConfig]] = FeatureATConfig

    def level_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one level; (B, C, H, W) of equal H W."""
        return (attention_map(student) - attention_map(teacher)).square().mean()
