"""Boxes as numpy arrays: conversions between formats, area, IoU and greedy one-to-one matching.

Formats: xyxy is left, top, right, bottom; xywh is left, top, width, height; cxcywh is centre x, centre y, width,
height. Conversions keep the float type of their input; areas and overlaps are float64.

Shapes: N and M boxes, P pairs.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Float = TypeVar("Float", bound=np.floating[Any])
AnyFloats = npt.NDArray[np.floating[Any]]


def cxcywh_to_xyxy(boxes: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Convert (N, 4) centre boxes to corner boxes."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def xywh_to_xyxy(boxes: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Convert (N, 4) boxes of left-top corner and size to corner boxes."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_xywh(boxes: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Convert (N, 4) corner boxes to boxes of left-top corner and size."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def box_area(boxes_xyxy: AnyFloats) -> npt.NDArray[np.float64]:
    """Return the (N,) areas; a box with crossed sides has area 0."""
    boxes = boxes_xyxy.astype(np.float64)
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None)
    return sides[:, 0] * sides[:, 1]


def box_iou(first_xyxy: AnyFloats, second_xyxy: AnyFloats) -> npt.NDArray[np.float64]:
    """Return the (N, M) IoU of each of N boxes with each of M; 0 where either box has no area."""
    first, second = first_xyxy.astype(np.float64)[:, None], second_xyxy.astype(np.float64)[None]
    sides = np.clip(np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2]), 0, None)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_area(first_xyxy)[:, None] + box_area(second_xyxy)[None] - intersection
    iou: npt.NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return iou


def greedy_match(
    similarity: AnyFloats, allowed: npt.NDArray[np.bool_], scores: AnyFloats | None = None
) -> npt.NDArray[np.int64]:
    """Pair rows with columns one to one, greedily.

    With `scores` the rows choose one after the other, highest score first, each the most similar column that is free.
    Without, the most similar pair of the whole matrix is taken first. At a tie the lower index comes first.

    Args:
        similarity: (N, M), for example IoU.
        allowed: (N, M), the pairs that may be made.
        scores: (N,) of the rows.

    Returns:
        (P, 2) row and column of each pair, in the order in which the pairs were made.
    """
    rows, columns = np.nonzero(allowed)
    turn = np.zeros(len(similarity), np.int64)
    if scores is not None:
        turn[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    order = np.lexsort((-similarity[rows, columns], turn[rows]))
    row_is_free, column_is_free = (np.ones(size, np.bool_) for size in allowed.shape)
    pairs = []
    for row, column in zip(rows[order], columns[order], strict=True):
        if row_is_free[row] and column_is_free[column]:
            row_is_free[row] = column_is_free[column] = False
            pairs.append((row, column))
    return np.array(pairs, np.int64).reshape(-1, 2)
