"""Box distillation on dense heads by overlap (IoU, GIoU, CIoU).

Shapes: B images, A grid points.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.losses.base import LossConfig, Weight
from kd_vision.losses.grid import BalancedConfig, GridLoss, full_precision

Kind = Literal["iou", "giou", "ciou"]
_LEAST_SIDE = 1e-3


class BoxIoUConfig(BalancedConfig):
    """Settings of `BoxIoU`.

    Attributes:
        weight: 7.5, the gain that dense YOLO heads give their own box term.
        kind: which overlap.
        min_score: points where the teacher's best score is no higher than this take no part.
    """

    weight: Weight = 7.5
    kind: Kind = "giou"
    min_score: float = Field(default=0.05, ge=0.0, lt=1.0)


def fix_degenerate_boxes(boxes_xyxy: Tensor) -> Tensor:
    """Return boxes in which crossed or flat sides have a length of 0.001 pixels; the others are unchanged.

    Heads that regress sides directly may cross them early in training, and the formulas then divide by zero.
    The correction is a constant in the graph, so the gradient still opens the box.

    Args:
        boxes_xyxy: (..., 4) pixels.
    """
    near, far = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    lift = (near + _LEAST_SIDE - far).clamp(min=0.0).detach()
    return torch.cat([near, far + lift], dim=-1)


def iou_distance(boxes_xyxy: Tensor, others_xyxy: Tensor, kind: Kind = "giou") -> Tensor:
    """Return 1 - IoU (or GIoU, CIoU) of pairs of boxes, of shape (...).

    At equality GIoU and CIoU are 0 up to 1e-7 / area.

    Args:
        boxes_xyxy: (..., 4) pixels; receives the gradient.
        others_xyxy: (..., 4) pixels.
        kind: which overlap.
    """
    boxes, others = fix_degenerate_boxes(boxes_xyxy), fix_degenerate_boxes(others_xyxy)
    if kind != "iou":
        formula = generalized_box_iou_loss if kind == "giou" else complete_box_iou_loss
        distance: Tensor = formula(boxes, others)
        return distance
    shared = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    inter = shared.clamp(min=0.0).prod(dim=-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) + (others[..., 2:] - others[..., :2]).prod(dim=-1)
    return 1.0 - inter / (area - inter)


class BoxIoU(GridLoss[BoxIoUConfig]):
    """Overlap of each point's box with the teacher's box, weighted by the teacher's confidence.

    L = sum_{B,A: u > min_score} u * (1 - IoU(b_s, b_t)) / N_q with u = max_c q detached,
    N_q = max(sum_{B,A} u, 1) over all points.

    Shapes: boxes (B, A, 4) in input pixels to a scalar. Reduction: sum over the teacher's count of objects
    N_q, so the value does not depend on the batch size. No unit. Legitimately 0 where no
    score of the teacher is above `min_score`.

    Raises:
        RequestError: images or classes of the two grids differ.

    Source: IoU imitation of BCKD (Yang et al., ICCV 2023, eq. 7), which weights by the largest class
    disagreement; we weight by the teacher's score. GIoU: Rezatofighi et al., CVPR 2019; CIoU: Zheng et al.,
    AAAI 2020.
    """

    Config: ClassVar[type[LossConfig]] = BoxIoUConfig
    can_be_zero = True

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        pair = self.pair(student, teacher, targets)
        # Points are weighted by 0 and not left out: boolean indexing would synchronise with the device.
        weight = pair.point_weight() * (pair.confidence > self.config.min_score)
        distance = iou_distance(
            full_precision(pair.student.boxes_xyxy), full_precision(pair.teacher.boxes_xyxy), self.config.kind
        )
        return (weight * distance).sum() / pair.normaliser
