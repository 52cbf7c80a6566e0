"""Non-maximum suppression (NMS) in numpy.

Shapes: M candidate boxes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_FEW = 300


def nms(
    boxes_xyxy: Boxes,
    scores: npt.NDArray[np.float32],
    iou_threshold: float,
    max_detections: int | None = None,
    groups: Indices | None = None,
) -> Indices:
    """Keep the best of the boxes that overlap: greedy NMS.

    Gives the boxes of ``torchvision.ops.batched_nms`` cut at `max_detections`, with torchvision's rules: a box is
    suppressed by a better one of its group where their float32 IoU is greater than the threshold; equal scores keep
    their order; boxes without area suppress nothing.

    Args:
        boxes_xyxy: (M, 4).
        scores: (M,).
        iou_threshold: overlap above which the weaker box is dropped.
        max_detections: boxes kept at most; None: all that are left.
        groups: (M,) only boxes of the same group suppress each other, e.g. the classes; None: class-agnostic.

    Returns:
        Index of each kept box, best first.
    """
    order = np.argsort(-scores, kind="stable")
    corners = np.ascontiguousarray(boxes_xyxy[order].T, np.float32)
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    group_of = np.zeros(len(order), np.int64) if groups is None else np.unique(groups[order], return_inverse=True)[1]
    if len(order) <= _FEW:
        return order[_keep_of_few(corners, areas, group_of, iou_threshold)][:max_detections]
    candidates = _split_by_group(group_of)
    is_alive = np.ones(len(order), np.bool_)
    kept: list[int] = []
    for best in range(len(order)):
        if len(kept) == max_detections:
            break
        if not is_alive[best]:
            continue
        kept.append(best)
        rest = candidates[group_of[best]][1:]  # the best of a group stands first
        overlaps = _iou(corners, areas, best, rest).astype(np.float64) > iou_threshold
        is_alive[rest[overlaps]] = False
        candidates[group_of[best]] = rest[~overlaps]
    return order[kept]


def _keep_of_few(
    corners: Boxes, areas: npt.NDArray[np.float32], group_of: Indices, iou_threshold: float
) -> npt.NDArray[np.bool_]:
    """Return (M,) bool: the box is kept. All overlaps at once are quicker than one call for each kept box."""
    every = np.arange(len(areas))
    suppresses = _iou(corners, areas, every[:, None], every).astype(np.float64) > iou_threshold
    suppresses &= group_of[:, None] == group_of
    is_alive = np.ones(len(areas), np.bool_)
    for best in every:
        if is_alive[best]:
            is_alive[best + 1 :] &= ~suppresses[best, best + 1 :]
    return is_alive


def _split_by_group(group_of: Indices) -> list[Indices]:
    """Return the positions of each group's boxes, in ascending order; groups are numbered from 0."""
    positions = np.argsort(group_of, kind="stable")
    return np.split(positions, np.cumsum(np.bincount(group_of))[:-1])


def _iou(
    corners: Boxes, areas: npt.NDArray[np.float32], one: int | Indices, others: Indices
) -> npt.NDArray[np.float32]:
    """Return the IoU of a box, or of a column of them, with others; `corners` is (4, M). NaN: neither has an area."""
    left, top, right, bottom = corners[:, others]
    width = np.minimum(right, corners[2, one]) - np.maximum(left, corners[0, one])
    height = np.minimum(bottom, corners[3, one]) - np.maximum(top, corners[1, one])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou: npt.NDArray[np.float32] = intersection / (areas[one] + areas[others] - intersection)
    return iou
