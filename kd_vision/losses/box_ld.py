"""Box distillation on dense heads by the distribution over box bins (localisation distillation).

Shapes: B images, A grid points, R bins.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import GridPredictions, Signals
from kd_vision.losses.base import LossConfig, Temperature, Weight
from kd_vision.losses.divergence import softmax_divergence
from kd_vision.losses.grid import BalancedConfig, GridLoss, full_precision

BinReduction = Literal["sum", "mean"]


class BoxLDConfig(BalancedConfig):
    """Settings of `BoxLD`.

    Attributes:
        weight: 1.5, the gain that dense YOLO heads give their own term on the bins. With
            `bin_reduction: mean` the same strength needs R times the weight.
        temperature: T > 1 softens both distributions.
        bin_reduction: `sum` over bins (a true KL divergence) or their `mean`, as published.
    """

    weight: Weight = 1.5
    temperature: Temperature = 2.0
    bin_reduction: BinReduction = "sum"


def bins_divergence(
    student_bins: Tensor, teacher_bins: Tensor, temperature: float = 1.0, reduction: BinReduction = "sum"
) -> Tensor:
    """Return T^2 * KL(softmax(t/T) || softmax(s/T)) over the last dimension, of shape (...).

    Args:
        student_bins: (..., R) logits.
        teacher_bins: (..., R) logits.
        temperature: T.
        reduction: over the bins; `mean` is the sum / R.
    """
    divergence = softmax_divergence(student_bins, teacher_bins, temperature)
    return divergence if reduction == "sum" else divergence / student_bins.shape[-1]


class BoxLD(GridLoss[BoxLDConfig]):
    """KL between the distributions of distances of each side of each point's box (localisation KD).

    L = sum_{B,A} u * mean_{4 sides} T^2 * KL(softmax(t/T) || softmax(s/T)) / N_q with u = max_c q detached,
    N_q = max(sum_{B,A} u, 1). KL is summed over bins (or averaged, see `BoxLDConfig`).

    Shapes: bins (B, A, 4, R) to a scalar. Reduction: sum over the teacher's count of objects N_q, so the
    value does not depend on the batch size. Unit: nats.

    Raises:
        RequestError: images, classes or strides of the two grids differ, or one has no bins.

    Source: LD (Zheng et al., CVPR 2022, eq. 5), which averages over bins, T = 10, weight 0.25, on assigned
    positives; 0.25 there is 1.47 on the bin sum of 17 bins and T = 10. We act on all points, weighted by
    the teacher's score, as CrossKD does.
    """

    Config: ClassVar[type[LossConfig]] = BoxLDConfig
    needs_box_bins: ClassVar[bool] = True

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        sides = bins_divergence(
            _bins(pair.student, "student"),
            _bins(pair.teacher, "teacher"),
            self.config.temperature,
            self.config.bin_reduction,
        )
        return (pair.point_weight() * sides.mean(dim=-1)).sum() / pair.normaliser


def _bins(grid: GridPredictions, role: str) -> Tensor:
    if grid.box_bins is None:
        raise RequestError(f"BoxLD: the {role}'s head predicts no box bins; use box_iou instead")
    return full_precision(grid.box_bins)
