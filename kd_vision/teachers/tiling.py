"""Cuts images into tiles, and merges the detections of the tiles.

Shapes: B images, C channels, H W pixels, M boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.runtime.letterbox import PAD_VALUE
from kd_vision.runtime.nms import nms

_BORDER = 0.01
"""A box that ends closer to a tile's border than this share of the tile may be truncated by it."""
_COVERED = 0.7
"""Share of a truncated box that a whole one must cover to replace it."""
_SCORE_RATIO = 0.3
"""Least score of a box that replaces or joins another, as a share of the other's score."""
_SAME_OBJECT_IOU = 0.5
"""IoU, within the overlap of two tiles, from which two truncated boxes are parts of one object."""


@dataclass(frozen=True, slots=True)
class Window:
    """Part of an image, in its pixels: from `left`, `top` up to `right`, `bottom`."""

    left: int
    top: int
    right: int
    bottom: int


def windows(height: int, width: int, tile: int, overlap: float) -> Iterator[Window]:
    """Cover an image with square tiles, the last of a row and of a column flush with the border.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        tile: side of a tile; it extends beyond a smaller image.
        overlap: least share of a tile that is also in its neighbour.
    """
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            yield Window(left, top, left + tile, top + tile)


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    step = max(1, int(tile * (1 - overlap)))
    last = max(side - tile, 0)
    return [*range(0, last, step), last]


def crop(images: Tensor, window: Window, tile: int) -> Tensor:
    """Return the pixels of a window, (B, C, tile, tile), gray outside the image."""
    return pad(images[..., window.top : window.bottom, window.left : window.right], tile, tile)


def pad(images: Tensor, height: int, width: int) -> Tensor:
    """Pad images to a size with gray at the bottom and the right."""
    bottom, right = height - images.shape[-2], width - images.shape[-1]
    return functional.pad(images, (0, right, 0, bottom), value=PAD_VALUE / 255) if bottom or right else images


@dataclass(frozen=True, slots=True)
class TileDetections:
    """Detections on one tile, or on the whole image, in pixels of the whole image.

    Attributes:
        detections: the boxes.
        truncated: (M,) bool, the object may extend beyond the tile.
        window: place of the tile.
    """

    detections: Detections
    truncated: npt.NDArray[np.bool_]
    window: Window

    @staticmethod
    def of_tile(window: Window, detections: Detections, height: int, width: int) -> TileDetections:
        """Move boxes from pixels of a tile to those of the image; mark those that end at an inner border.

        Args:
            window: place of the tile.
            detections: boxes in pixels of the tile.
            height: of the image.
            width: of the image.
        """
        offset = np.array([window.left, window.top] * 2, np.float32)
        boxes = detections.boxes_xyxy + offset
        near = _BORDER * (window.right - window.left)
        truncated = (window.left > 0) & (boxes[:, 0] <= window.left + near)
        truncated |= (window.top > 0) & (boxes[:, 1] <= window.top + near)
        truncated |= (window.right < width) & (boxes[:, 2] >= window.right - near)
        truncated |= (window.bottom < height) & (boxes[:, 3] >= window.bottom - near)
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        inside = _area(boxes[:, :2], boxes[:, 2:]) > 0
        return TileDetections(replace(detections, boxes_xyxy=boxes).take(inside), truncated[inside], window)


def merge_tiles(tiles: Sequence[TileDetections], options: PredictOptions) -> Detections:
    """Merge the detections of the tiles of one image.

    A truncated box is removed where another tile has the whole object; truncated boxes that agree in the overlap of
    their tiles are joined; NMS removes the other duplicates. Each step compares boxes of one class only; ignored
    boxes count as one class.

    Args:
        tiles: detections of each tile.
        options: threshold of NMS, and number of boxes to keep.
    """
    detections = _concatenated([part.detections for part in tiles])
    if not len(detections):
        return detections
    truncated = np.concatenate([part.truncated for part in tiles])
    tile = np.repeat(np.arange(len(tiles)), [len(part.detections) for part in tiles])
    keep = ~_truncated_duplicates(detections, truncated)
    detections, truncated, tile = detections.take(keep), truncated[keep], tile[keep]
    frames = np.array([[w.left, w.top, w.right, w.bottom] for w in (part.window for part in tiles)], np.float32)
    detections = _join_truncated(detections, np.flatnonzero(truncated), frames, tile)
    groups = _nms_groups(detections)
    boxes, scores = detections.boxes_xyxy, detections.scores
    return detections.take(nms(boxes, scores, options.nms_iou, options.max_detections, groups))


def _nms_groups(detections: Detections) -> npt.NDArray[np.int64]:
    """Return (M,) the class of each box, or -1 for ignored boxes, which neither suppress objects nor are suppressed."""
    return detections.labels if detections.ignore is None else np.where(detections.ignore, -1, detections.labels)


def _truncated_duplicates(detections: Detections, truncated: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return (M,) bool: truncated boxes within a whole box of the same class and of a similar score."""
    result = np.zeros(len(detections), np.bool_)
    group = _nms_groups(detections)
    for label in np.unique(group[truncated]):
        of_class = group == label
        parts, wholes = np.flatnonzero(of_class & truncated), np.flatnonzero(of_class & ~truncated)
        inner, outer = detections.boxes_xyxy[parts], detections.boxes_xyxy[wholes]
        intersection = _area(
            np.maximum(inner[:, None, :2], outer[None, :, :2]), np.minimum(inner[:, None, 2:], outer[None, :, 2:])
        )
        covered = intersection >= _COVERED * _area(inner[:, :2], inner[:, 2:])[:, None]
        covered &= detections.scores[wholes][None] >= _SCORE_RATIO * detections.scores[parts][:, None]
        result[parts] = covered.any(axis=1)
    return result


def _join_truncated(
    detections: Detections,
    parts: npt.NDArray[np.int64],
    frames: npt.NDArray[np.float32],
    tile: npt.NDArray[np.int64],
) -> Detections:
    """Join truncated boxes of one large object: those that agree in the overlap of their tiles.

    Args:
        detections: (M,) boxes.
        parts: indices of the truncated ones.
        frames: (tiles, 4) place of each tile.
        tile: (M,) tile of each box.
    """
    boxes, labels, scores = detections.boxes_xyxy[parts], _nms_groups(detections)[parts], detections.scores[parts]
    tile = tile[parts]
    # For every pair of parts: the overlap of their tiles, and the first part cropped to it.
    low = np.maximum(frames[tile][:, None, :2], frames[tile][None, :, :2])
    high = np.minimum(frames[tile][:, None, 2:], frames[tile][None, :, 2:])
    low, high = np.maximum(boxes[:, None, :2], low), np.minimum(boxes[:, None, 2:], high)
    area = _area(low, high)
    intersection = _area(np.maximum(low, low.transpose(1, 0, 2)), np.minimum(high, high.transpose(1, 0, 2)))
    same = intersection >= _SAME_OBJECT_IOU * np.maximum(area + area.T - intersection, 1e-6)
    same &= (labels[:, None] == labels[None]) & (tile[:, None] != tile[None])
    same &= np.minimum(scores[:, None], scores[None]) >= _SCORE_RATIO * np.maximum(scores[:, None], scores[None])
    return _hulls(detections, parts, same)


def _hulls(detections: Detections, parts: npt.NDArray[np.int64], same: npt.NDArray[np.bool_]) -> Detections:
    """Replace each connected set of parts by its hull, with class and score of the part of the highest score."""
    boxes, keep = detections.boxes_xyxy.copy(), np.ones(len(detections), np.bool_)
    remaining = set(range(len(parts)))
    while remaining:
        group = _connected(remaining.pop(), same)
        remaining -= group
        members = parts[sorted(group)]
        leader = members[detections.scores[members].argmax()]
        boxes[leader, :2] = detections.boxes_xyxy[members, :2].min(axis=0)
        boxes[leader, 2:] = detections.boxes_xyxy[members, 2:].max(axis=0)
        keep[members] = False
        keep[leader] = True
    return replace(detections, boxes_xyxy=boxes).take(keep)


def _connected(start: int, same: npt.NDArray[np.bool_]) -> set[int]:
    group, border = {start}, [start]
    while border:
        new = set(np.flatnonzero(same[border.pop()]).tolist()) - group
        group |= new
        border += new
    return group


def _concatenated(parts: Sequence[Detections]) -> Detections:
    """Concatenate detections of one detector: all have class probabilities, or none has."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return Detections.empty()
    probs = [part.class_probs for part in filled if part.class_probs is not None]
    marks = [np.zeros(len(part), np.bool_) if part.ignore is None else part.ignore for part in filled]
    return Detections(
        np.concatenate([part.boxes_xyxy for part in filled]),
        np.concatenate([part.scores for part in filled]),
        np.concatenate([part.labels for part in filled]),
        np.concatenate(probs) if len(probs) == len(filled) else None,
        np.concatenate(marks) if any(part.ignore is not None for part in filled) else None,
    )


def _area(low: npt.NDArray[np.floating], high: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the (...) areas of boxes between the (..., 2) corners `low` and `high`."""
    sides = np.maximum(high - low, 0)
    area: npt.NDArray[np.floating] = sides[..., 0] * sides[..., 1]
    return area
