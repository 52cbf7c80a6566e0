"""Boxes as torch tensors: conversions between formats, and overlaps.

Formats: xyxy is left, top, right, bottom; cxcywh is centre x, centre y, width, height.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-7


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) centre boxes to corner boxes."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) corner boxes to centre boxes."""
    return torch.cat((centres(boxes), boxes[..., 2:] - boxes[..., :2]), dim=-1)


def centres(boxes_xyxy: Tensor) -> Tensor:
    """Return the centres, (..., 2), of (..., 4) boxes."""
    return (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2


def normalized_cxcywh(boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert (..., 4) corner boxes in pixels to centre boxes as shares of `size`, height and width in pixels."""
    height, width = size
    return xyxy_to_cxcywh(boxes_xyxy) / boxes_xyxy.new_tensor([width, height, width, height])


def intersection(first_xyxy: Tensor, second_xyxy: Tensor) -> Tensor:
    """Return the areas, (...), that boxes share; of two shapes (..., 4) that broadcast."""
    low = torch.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    high = torch.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    return (high - low).clamp(min=0.0).prod(dim=-1)


def iou_and_giou(first_cxcywh: Tensor, second_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalized IoU, each (...), of centre boxes of two shapes (..., 4) that broadcast.

    With the hull H, the smallest box around both, ``GIoU = IoU - (H - union) / H``. Union and hull are enlarged by
    1e-7, so that flat boxes have an IoU of 0 with each other.

    Source: Rezatofighi et al., CVPR 2019 (arXiv:1902.09630).
    """
    first, second = cxcywh_to_xyxy(first_cxcywh), cxcywh_to_xyxy(second_cxcywh)
    shared = intersection(first, second)
    union = first_cxcywh[..., 2:].prod(dim=-1) + second_cxcywh[..., 2:].prod(dim=-1) - shared + _EPSILON
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = (high - low).prod(dim=-1) + _EPSILON
    iou = shared / union
    return iou, iou - (hull - union) / hull
