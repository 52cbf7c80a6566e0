"""Feature distillation by mean squared error.

Shapes: B images, C channels of the teacher, H W positions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from kd_vision.losses.base import LossConfig
from kd_vision.losses.features import LinearFeatureLoss


class FeatureMSE(LinearFeatureLoss[LossConfig]):
    """Mean squared error to the teacher's maps.

    L = sum_levels mean_{B,C,H,W} (phi(s) - t)^2 with phi a linear 1x1 adapter where widths differ.

    Shapes: maps (B, C, H, W) to a scalar. Reduction: mean within a level, sum over levels. Unit: the square
    of the teacher's activations, so its size depends on the teacher; use `weight: auto`.

    Source: FitNets (Romero et al., ICLR 2015, eq. 3) with the mean instead of half the sum.
    """

    def level_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one level; both (B, C, H, W)."""
        return functional.mse_loss(student, teacher)
