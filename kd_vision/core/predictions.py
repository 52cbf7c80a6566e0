"""What a detector says: final detections, and the channels a loss can learn from.

Shapes: B images, A grid points of all levels, K classes, R bins per box side, M boxes, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

Channel = Literal["features", "grid", "regions", "detections"]
ONE_TO_MANY = "one_to_many"
ONE_TO_ONE = "one_to_one"


@dataclass(frozen=True, slots=True)
class Detections:
    """Final boxes of one image, best score first.

    Attributes:
        boxes_xyxy: (M, 4) float32; the frame (original or input pixels) is the producer's promise.
        scores: (M,) float32 in [0, 1].
        labels: (M,) int64, 0-based contiguous class.
        class_probs: (M, K) float32 where the detector has them.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_probs: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes_xyxy.shape != (count, 4) or self.labels.shape != (count,):
            raise ValueError(
                f"detections do not fit: boxes {self.boxes_xyxy.shape}, scores {self.scores.shape}, "
                f"labels {self.labels.shape}"
            )
        if self.class_probs is not None and len(self.class_probs) != count:
            raise ValueError(f"class_probs {self.class_probs.shape} do not fit {count} boxes")

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> Detections:
        """Return detections without any box."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class GridPredictions:
    """Dense predictions, one row per grid point, levels concatenated fine to coarse.

    Attributes:
        logits: (B, A, K) before activation.
        boxes_xyxy: (B, A, 4) decoded, in input pixels, differentiable.
        points_xy: (A, 2) centres of the grid points in input pixels.
        strides: (A,) stride of each point's level.
        box_bins: (B, A, 4, R) logits over distances of left, top, right, bottom, in units of the
            stride; None for heads that regress directly.
    """

    logits: Tensor
    boxes_xyxy: Tensor
    points_xy: Tensor
    strides: Tensor
    box_bins: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Channels:
    """What one side of a distillation loss sees.

    Attributes:
        features: pyramid maps by level, ``{"P3": (B, C, H, W)}``.
        grid: dense predictions of one branch of the head.
        detections: final boxes per image, in input pixels.
    """

    features: Mapping[str, Tensor] = field(default_factory=dict)
    grid: GridPredictions | None = None
    detections: tuple[Detections, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectorOutput:
    """One forward pass: the task's own losses, and the channels that were asked for.

    Attributes:
        task_losses: scalars by name (mean per image), empty without targets.
        features: pyramid maps by level.
        grids: dense predictions by branch; `one_to_many` always, `one_to_one` for end-to-end heads.
        branch_weights: how much each branch counts in the detector's own loss at this moment.
        detections: final boxes per image, in input pixels.
    """

    task_losses: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[str, GridPredictions] = field(default_factory=dict)
    branch_weights: Mapping[str, float] = field(default_factory=dict)
    detections: tuple[Detections, ...] = ()

    def channels(self, branch: str = ONE_TO_MANY) -> Channels:
        """Return what a loss sees of this output on one branch of the head."""
        return Channels(self.features, self.grids.get(branch), self.detections)
