"""Weighted boxes fusion: merges the boxes of several detectors on one image.

Shapes: M boxes of one member, N boxes of all members, P members, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kd_vision.core.predictions import Detections, PredictOptions, class_probabilities

Floats = npt.NDArray[np.float64]

_TINY = 1e-12
_IGNORED = -1  # group of the ignored boxes of all classes, which are clustered among themselves


def fuse(
    detections: Sequence[Detections],
    iou: float = 0.55,
    weights: Sequence[float] | None = None,
    class_weights: npt.ArrayLike | None = None,
) -> Detections:
    """Fuse the boxes of all members on one image.

    In the order of falling ``w * score`` each box joins the cluster of its class whose fused box it overlaps most,
    if by more than `iou`, else it starts a new one. With the sums over the boxes b of a cluster, ``w_b`` the
    weight of b's member and W the weights of all members together::

        box   = sum_b w_b s_b box_b / sum_b w_b s_b
        score = sum_b w_b s_b / sum_b w_b * min(W, sum_b w_b) / W

    and class probabilities as the score, each class with its own weights. A member without a box of the object
    thus counts as a score of 0.

    Source: Solovyev, Wang, Gabruseva, "Weighted boxes fusion", 2021, section 3. We differ with weights: theirs
    divides by the number of boxes, so that an object with two boxes of a member of high weight can score above 1.

    Args:
        detections: one per member, all in the same frame.
        iou: overlap from which two boxes are the same object.
        weights: (P,) of the members; None: all 1.
        class_weights: (P, K) factors on `weights` for each class, e.g. 0 where a member never learned one;
            None: all 1. A class whose weights are all 0 has no boxes.

    Returns:
        Fused boxes, best first, with class probabilities where a member has them.
    """
    members = len(detections)
    table = np.ones((members, _classes(detections))) if class_weights is None else np.asarray(class_weights, np.float64)
    table = table * (np.ones(members) if weights is None else np.asarray(weights, np.float64))[:, None]
    boxes = _gather(detections, table)
    clusters = _cluster(boxes, iou)
    if not len(clusters):
        return Detections.empty()
    fused = _Sums.over(boxes, clusters, table)
    return fused.detections(boxes, any(one.class_probs is not None for one in detections))


def top_k_detections(detections: Detections, options: PredictOptions) -> Detections:
    """Keep the best boxes above the score threshold."""
    kept = detections.take(detections.scores > options.score_threshold)
    return kept.take(np.arange(min(len(kept), options.max_detections)))


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Boxes of all members, best first.

    Attributes:
        xyxy: (N, 4).
        scores: (N,).
        labels: (N,), also of ignored boxes.
        group: (N,) label, or `_IGNORED`.
        member: (N,) index of the member.
        weight: (N,) weight of the member for the box's class.
        probs: (N, K).
    """

    xyxy: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    member: npt.NDArray[np.int64]
    weight: Floats
    probs: Floats


def _classes(detections: Sequence[Detections]) -> int:
    """Return K, large enough for every label, for a call without class weights."""
    widths = [int(one.class_probs.shape[1]) for one in detections if one.class_probs is not None]
    return max([1, *widths, *(int(one.labels.max()) + 1 for one in detections if len(one))])


def _gather(detections: Sequence[Detections], table: Floats) -> _Boxes:
    ignored = [np.zeros(len(one), np.bool_) if one.ignore is None else one.ignore for one in detections]
    labels = np.concatenate([one.labels for one in detections])
    member = np.repeat(np.arange(len(detections)), [len(one) for one in detections])
    scores = np.concatenate([one.scores for one in detections]).astype(np.float64)
    group = np.where(np.concatenate(ignored), _IGNORED, labels)
    weight = np.where(group == _IGNORED, table.max(axis=1)[member], table[member, labels])
    order = np.argsort(-weight * scores, kind="stable")
    order = order[weight[order] > 0]
    return _Boxes(
        np.concatenate([one.boxes_xyxy for one in detections]).astype(np.float64)[order],
        scores[order],
        labels[order],
        group[order],
        member[order],
        weight[order],
        np.concatenate([class_probabilities(one, table.shape[1]) for one in detections]).astype(np.float64)[order],
    )


def _cluster(boxes: _Boxes, iou: float) -> npt.NDArray[np.int64]:
    """Return (N,) the cluster of each box, numbered from 0."""
    cluster = np.full(len(boxes.scores), -1, np.int64)
    count = 0
    for group in np.unique(boxes.group):
        rows = np.flatnonzero(boxes.group == group)
        within = _cluster_class(boxes.xyxy[rows], (boxes.weight * boxes.scores)[rows], iou)
        cluster[rows] = within + count
        count += int(within.max()) + 1
    return cluster


def _cluster_class(xyxy: Floats, confidence: Floats, iou: float) -> npt.NDArray[np.int64]:
    """Cluster the boxes of one class, (N, 4), by falling weighted confidence, (N,)."""
    # With the low corner negated, both corners of an intersection are minima, and a side is the sum of two.
    signed = np.concatenate((-xyxy[:, :2], xyxy[:, 2:]), axis=1)
    areas = (signed[:, 0] + signed[:, 2]) * (signed[:, 1] + signed[:, 3])
    fused, fused_area = np.empty((4, len(xyxy))), np.empty(len(xyxy))
    mass: list[float] = []
    cluster = np.zeros(len(xyxy), np.int64)
    for row, (box, area, weight) in enumerate(
        zip(signed[:, :, None], areas.tolist(), confidence.tolist(), strict=True)
    ):
        count = len(mass)
        sides = np.minimum(fused[:, :count], box)
        sides = np.maximum(sides[:2] + sides[2:], 0.0)
        intersection = sides[0] * sides[1]
        overlap = intersection / (fused_area[:count] + (area + _TINY) - intersection)
        best = int(overlap.argmax()) if count else 0
        if not count or overlap[best] <= iou:
            best = count
            mass.append(weight)
            fused[:, best : best + 1] = box
            fused_area[best] = area
        elif weight > 0:
            mass[best] += weight
            mean = fused[:, best]
            mean += (box[:, 0] - mean) * (weight / mass[best])
            left, top, right, bottom = mean.tolist()
            fused_area[best] = (left + right) * (top + bottom)
        cluster[row] = best
    return cluster


@dataclass(frozen=True, slots=True)
class _Sums:
    """Fused boxes, one for each of C clusters.

    Attributes:
        leader: (C,) index of the box of the highest weighted score.
        xyxy: (C, 4).
        scores: (C,).
        probs: (C, K).
    """

    leader: npt.NDArray[np.int64]
    xyxy: Floats
    scores: Floats
    probs: Floats

    @staticmethod
    def over(boxes: _Boxes, cluster: npt.NDArray[np.int64], table: Floats) -> _Sums:
        """Apply the equations of `fuse`."""
        count = int(cluster.max()) + 1
        leader = np.full(count, -1, np.int64)
        leader[cluster[::-1]] = np.arange(len(cluster))[::-1]  # the last write, of the first box, remains

        by_cluster = np.argsort(cluster, kind="stable")
        starts = np.searchsorted(cluster[by_cluster], np.arange(count))

        def summed(values: Floats) -> Floats:
            result: Floats = np.add.reduceat(values[by_cluster], starts, axis=0)
            return result

        def averaged(weight: Floats, values: Floats, all_members: Floats) -> Floats:
            weights = summed(weight)
            share = np.minimum(all_members, weights) / np.maximum(all_members, _TINY)
            return summed(weight * values) / np.maximum(weights, _TINY) * share

        all_members = np.where(
            boxes.group[leader] == _IGNORED, table.max(axis=1).sum(), table.sum(axis=0)[boxes.labels[leader]]
        )
        confidence = boxes.weight * boxes.scores
        confidence = np.where(summed(confidence)[cluster] > 0, confidence, 1.0)  # all scores 0: a plain mean
        return _Sums(
            leader,
            summed(confidence[:, None] * boxes.xyxy) / summed(confidence)[:, None],
            averaged(boxes.weight, boxes.scores, all_members),
            averaged(table[boxes.member], boxes.probs, table.sum(axis=0)[None]),
        )

    def detections(self, boxes: _Boxes, with_probs: bool) -> Detections:
        """Return the clusters as boxes, best first."""
        order = np.argsort(-self.scores, kind="stable")
        ignore = boxes.group[self.leader][order] == _IGNORED
        return Detections(
            self.xyxy[order].astype(np.float32),
            self.scores[order].astype(np.float32),
            boxes.labels[self.leader][order],
            self.probs[order].astype(np.float32) if with_probs else None,
            ignore if ignore.any() else None,
        )
