"""Dense labels: a teacher's dense predictions on a batch, stored for the points that predict something.

Shapes: B images, A rows of a head, N stored rows of the batch, S strides, K classes, R bins per box side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DenseLabels:
    """The dense predictions of one branch of a head on a batch.

    The other rows are background: those of one stride share one value, the mean of what the teacher predicted there.

    Attributes:
        rows: (N,) int64, image * A + row of the head, rising.
        logits: (N, K) before the sigmoid.
        sides: (N, 4) distances from the point to left, top, right, bottom of its box, in strides.
        background_logits: (S, K) of the other rows, by stride, fine to coarse.
        box_bins: (N, 4, R) logits over distances; None for heads that regress directly.
        background_bins: (S, 4, R); None without `box_bins`.
    """

    rows: Tensor
    logits: Tensor
    sides: Tensor
    background_logits: Tensor
    box_bins: Tensor | None = None
    background_bins: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DenseLabels:
        """Return the same labels on `device`."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: value.to(device, non_blocking=non_blocking) for name, value in given.items() if value is not None
        }
        return replace(self, **moved)
