"""Signals that every head with a grid or with queries gives: raw predictions, and refined boxes.

Shapes: B images, A rows (grid points, anchors, queries), K classes, N given boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from kd_vision.core.predictions import GridPredictions, RawPredictions, RoIPredictions


def raw_predictions_of(grid: GridPredictions) -> RawPredictions:
    """Return the raw predictions of a grid."""
    return RawPredictions(
        grid.logits,
        grid.boxes_xyxy,
        grid.points_xy[None],
        box_bins=grid.box_bins,
        strides=None if grid.box_bins is None else grid.strides,
    )


def refine_by_grid(grid: GridPredictions, boxes_xyxy: Tensor) -> RoIPredictions:
    """Refine boxes, (B, N, 4) in the pixels of the grid, by the grid's best fitting rows; see `refine_by_rows`."""
    return refine_by_rows(grid.boxes_xyxy, grid.logits.float().sigmoid(), boxes_xyxy)


@torch.no_grad()
def refine_by_rows(rows_xyxy: Tensor, probs: Tensor, boxes_xyxy: Tensor) -> RoIPredictions:
    """Classify and refine given boxes by the predicted row that fits each best.

    The row has the highest ``IoU^6 * sqrt(best class probability)``, the metric by which task-aligned heads assign
    rows to objects. A box that overlaps no row gets probabilities of 0 and is returned as it is.

    Args:
        rows_xyxy: (B, A, 4) predicted boxes.
        probs: (B, A, K) their class probabilities.
        boxes_xyxy: (B, N, 4) given boxes in the same pixels.
    """
    confidence = probs.amax(dim=-1).sqrt()
    refined_probs, refined_boxes = [], []
    for image, boxes in enumerate(boxes_xyxy.float()):
        overlap = box_iou(boxes, rows_xyxy[image].float())
        fit, row = (overlap.pow(6) * confidence[image]).max(dim=1)
        overlaps = (fit > 0)[:, None]
        refined_probs.append(probs[image, row] * overlaps)
        refined_boxes.append(torch.where(overlaps, rows_xyxy[image, row].float(), boxes))
    return RoIPredictions(torch.stack(refined_probs), torch.stack(refined_boxes))
