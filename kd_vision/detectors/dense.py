"""What every one-stage head can do with its grid: give its rows, and judge boxes handed to it.

Shapes: B images, A rows, K classes, N boxes handed in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from kd_vision.core.predictions import GridPredictions, RawPredictions, RoIPredictions


def raw_predictions_of(grid: GridPredictions) -> RawPredictions:
    """Return a grid as rows."""
    return RawPredictions(
        grid.logits,
        grid.boxes_xyxy,
        grid.points_xy[None],
        box_bins=grid.box_bins,
        strides=None if grid.box_bins is None else grid.strides,
    )


def padded(image_index: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Turn a flat list of boxes into a table of images.

    Args:
        image_index: (M,) which image a box belongs to.
        images: B.

    Returns:
        (B, N) position of each box in the flat list, N the most boxes of an image, and (B, N) bool, False where
        the table is only filled up.
    """
    counts = torch.bincount(image_index, minlength=images)
    order = image_index.argsort(stable=True)
    slot = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[image_index[order]]
    most = int(counts.max()) if len(order) else 0
    position = order.new_zeros((images, most))
    mask = torch.zeros((images, most), dtype=torch.bool, device=order.device)
    position[image_index[order], slot] = order
    mask[image_index[order], slot] = True
    return position, mask


def refine_by_grid(grid: GridPredictions, boxes_xyxy: Tensor) -> RoIPredictions:
    """Judge boxes, (B, N, 4) in the grid's frame, by the grid's row that fits each best; see `refine_by_rows`."""
    return refine_by_rows(grid.boxes_xyxy, grid.logits.float().sigmoid(), boxes_xyxy)


@torch.no_grad()
def refine_by_rows(own_xyxy: Tensor, probs: Tensor, boxes_xyxy: Tensor) -> RoIPredictions:
    """Judge boxes by the row that fits each best.

    The row is the one of highest ``IoU^6 * sqrt(best class probability)``, the measure by which task-aligned
    heads choose the rows that answer for an object; a box that meets nothing gets probabilities of 0.

    Args:
        own_xyxy: (B, A, 4) boxes of the judge's rows.
        probs: (B, A, K) their class probabilities.
        boxes_xyxy: (B, N, 4) in the same frame.
    """
    best = probs.amax(dim=-1)
    found_probs, found_boxes = [], []
    for image, given in enumerate(boxes_xyxy.float()):
        overlap = box_iou(given, own_xyxy[image].float())
        fit, row = (overlap.pow(6) * best[image].sqrt()).max(dim=1)
        met = (fit > 0)[:, None]
        found_probs.append(probs[image, row] * met)
        found_boxes.append(torch.where(met, own_xyxy[image, row].float(), given))
    return RoIPredictions(torch.stack(found_probs), torch.stack(found_boxes))
