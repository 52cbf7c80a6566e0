"""Cuts an image into tiles, and makes one answer of what was found on each.

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

_TOUCH = 0.01
"""A box that ends closer to a tile's border than this share of the tile may go on beyond it."""
_COVERED = 0.7
"""Share of a cut box that a whole one must cover to replace it."""
_AS_SURE = 0.3
"""How sure a box must be to speak for another one, as a share of the other's score."""
_SAME_PIECE = 0.5
"""IoU, within the band that two tiles share, from which two cut boxes are parts of one object."""


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
        tile: side of a tile; where the image is smaller, the tile goes on beyond it.
        overlap: least share of a tile that its neighbour sees too.
    """
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            yield Window(left, top, left + tile, top + tile)


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    step = max(1, int(tile * (1 - overlap)))
    last = max(side - tile, 0)
    return [*range(0, last, step), last]


def cut_out(images: Tensor, window: Window, tile: int) -> Tensor:
    """Return the pixels of a window, (B, C, tile, tile), gray where it goes on beyond the image."""
    return filled(images[..., window.top : window.bottom, window.left : window.right], tile, tile)


def filled(images: Tensor, height: int, width: int) -> Tensor:
    """Add gray below and to the right."""
    below, beside = height - images.shape[-2], width - images.shape[-1]
    return functional.pad(images, (0, beside, 0, below), value=PAD_VALUE / 255) if below or beside else images


@dataclass(frozen=True, slots=True)
class TileDetections:
    """What one look found, in pixels of the whole image.

    Attributes:
        found: the boxes.
        cut: (M,) bool, the object may go on beyond the look.
        window: what the look saw.
    """

    found: Detections
    cut: npt.NDArray[np.bool_]
    window: Window

    @staticmethod
    def through(window: Window, found: Detections, height: int, width: int) -> TileDetections:
        """Put boxes in pixels of a tile back, and see which are cut by a border that is not the image's."""
        offset = np.array([window.left, window.top] * 2, np.float32)
        boxes = found.boxes_xyxy + offset
        near = _TOUCH * (window.right - window.left)
        cut = (window.left > 0) & (boxes[:, 0] <= window.left + near)
        cut |= (window.top > 0) & (boxes[:, 1] <= window.top + near)
        cut |= (window.right < width) & (boxes[:, 2] >= window.right - near)
        cut |= (window.bottom < height) & (boxes[:, 3] >= window.bottom - near)
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        inside = _areas(boxes) > 0
        return TileDetections(replace(found, boxes_xyxy=boxes).take(inside), cut[inside], window)


def merge_tiles(seen: Sequence[TileDetections], options: PredictOptions) -> Detections:
    """Make one answer of what several looks at an image found.

    A cut box goes where another look saw the object whole; cut boxes that agree where their looks overlap become
    one; what is left passes through NMS. All this among boxes of one class; those to be ignored are one of their own.

    Args:
        seen: one per look.
        options: of NMS, and how many boxes to keep.
    """
    found = _joined([each.found for each in seen])
    if not len(found):
        return found
    cut = np.concatenate([each.cut for each in seen])
    look = np.repeat(np.arange(len(seen)), [len(each.found) for each in seen])
    keep = ~_truncated_duplicates(found, cut)
    found, cut, look = found.take(keep), cut[keep], look[keep]
    frames = np.array([[w.left, w.top, w.right, w.bottom] for w in (each.window for each in seen)], np.float32)
    found = _join_truncated(found, np.flatnonzero(cut), frames, look)
    groups = _nms_groups(found)
    return found.take(nms(found.boxes_xyxy, found.scores, options.nms_iou, options.max_detections, groups))


def _nms_groups(found: Detections) -> npt.NDArray[np.int64]:
    """Return (M,) the class of each box, or -1: boxes to be ignored neither hide an object nor are hidden by one."""
    return found.labels if found.ignore is None else np.where(found.ignore, -1, found.labels)


def _truncated_duplicates(found: Detections, cut: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return (M,) bool: a cut box that lies within a whole one of its class that is about as sure."""
    result = np.zeros(len(found), np.bool_)
    group = _nms_groups(found)
    for label in np.unique(group[cut]):
        of_class = group == label
        parts, wholes = np.flatnonzero(of_class & cut), np.flatnonzero(of_class & ~cut)
        inner, outer = found.boxes_xyxy[parts], found.boxes_xyxy[wholes]
        shared = _sides(
            np.maximum(inner[:, None, :2], outer[None, :, :2]), np.minimum(inner[:, None, 2:], outer[None, :, 2:])
        )
        covered = shared >= _COVERED * _areas(inner)[:, None]
        covered &= found.scores[wholes][None] >= _AS_SURE * found.scores[parts][:, None]
        result[parts] = covered.any(axis=1)
    return result


def _join_truncated(
    found: Detections,
    parts: npt.NDArray[np.int64],
    frames: npt.NDArray[np.float32],
    look: npt.NDArray[np.int64],
) -> Detections:
    """Join the parts of one large object: cut boxes that agree where both their looks see.

    Args:
        found: (M,) boxes.
        parts: positions of the cut ones.
        frames: (looks, 4) what each look saw.
        look: (M,) whose box it is.
    """
    boxes, labels, scores, look = found.boxes_xyxy[parts], _nms_groups(found)[parts], found.scores[parts], look[parts]
    # For every two parts the band that both looks see, and the first part within it.
    low = np.maximum(frames[look][:, None, :2], frames[look][None, :, :2])
    high = np.minimum(frames[look][:, None, 2:], frames[look][None, :, 2:])
    own = np.concatenate((np.maximum(boxes[:, None, :2], low), np.minimum(boxes[:, None, 2:], high)), axis=-1)
    other = own.transpose(1, 0, 2)
    shared = _sides(np.maximum(own[..., :2], other[..., :2]), np.minimum(own[..., 2:], other[..., 2:]))
    same = shared >= _SAME_PIECE * np.maximum(_areas(own) + _areas(other) - shared, 1e-6)
    same &= (labels[:, None] == labels[None]) & (look[:, None] != look[None])
    same &= np.minimum(scores[:, None], scores[None]) >= _AS_SURE * np.maximum(scores[:, None], scores[None])
    return _joined_parts(found, parts, same)


def _joined_parts(found: Detections, parts: npt.NDArray[np.int64], same: npt.NDArray[np.bool_]) -> Detections:
    """Replace each connected set of parts by its hull, under the surest part's name."""
    boxes, keep = found.boxes_xyxy.copy(), np.ones(len(found), np.bool_)
    left = set(range(len(parts)))
    while left:
        group = _connected(left.pop(), same)
        left -= group
        members = parts[sorted(group)]
        leader = members[found.scores[members].argmax()]
        boxes[leader, :2] = found.boxes_xyxy[members, :2].min(axis=0)
        boxes[leader, 2:] = found.boxes_xyxy[members, 2:].max(axis=0)
        keep[members] = False
        keep[leader] = True
    return replace(found, boxes_xyxy=boxes).take(keep)


def _connected(start: int, same: npt.NDArray[np.bool_]) -> set[int]:
    group, border = {start}, [start]
    while border:
        near = set(np.flatnonzero(same[border.pop()]).tolist()) - group
        group |= near
        border += near
    return group


def _joined(parts: Sequence[Detections]) -> Detections:
    """Put the boxes of several looks into one value; the looks are of one detector, so all alike."""
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


def _areas(boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return _sides(boxes[..., :2], boxes[..., 2:])


def _sides(low: npt.NDArray[np.floating], high: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    sides = np.maximum(high - low, 0)
    area: npt.NDArray[np.floating] = sides[..., 0] * sides[..., 1]
    return area
