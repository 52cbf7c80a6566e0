"""The rule by which the family pairs grid points with boxes (task-aligned assignment), for boxes of a teacher.

Shapes: B images, A grid points, M boxes, P pairs of a box and a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_vision.core.batch import PseudoLabels
from kd_vision.core.predictions import UNMATCHED, RawPredictions


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Boxes and points that may belong together.

    Attributes:
        box: (P,) position among the boxes.
        point: (P,) position in the grid.
        cell: (P,) image and point as one number.
        overlap: (P,) CIoU of the box and the point's own, not below 0.
        metric: (P,) how well they are aligned: ``score^alpha * overlap^beta``.
    """

    box: Tensor
    point: Tensor
    cell: Tensor
    overlap: Tensor
    metric: Tensor

    def take(self, chosen: Tensor) -> _Pairs:
        """Return the pairs that `chosen` picks."""
        parts = (self.box, self.point, self.cell, self.overlap, self.metric)
        return _Pairs(*(part[chosen] for part in parts))


@torch.no_grad()
def assign_aligned(assigner: Any, rows: RawPredictions, pseudo_labels: PseudoLabels) -> tuple[Tensor, Tensor]:
    """Pair grid points with boxes by the rule of a task-aligned assigner.

    The family's code compares every box of a padded table with every point; only points inside a box can be its
    own, so that a list of those pairs costs a fraction of it, at every step.

    Args:
        assigner: of the family; its settings are used.
        raw_predictions: predictions, (B, A).
        pseudo_labels: (M,) boxes; each counts as of its likeliest class.

    Returns:
        (B, A) index into `pseudo_labels`, `UNMATCHED` where there is none, and (B, A) alignment in [0, 1].

    Source: Feng et al., TOOD (arXiv:2108.07755), with the tie-breaks of ultralytics' `TaskAlignedAssigner`: points
    of several boxes go to the one they overlap most; the best of a box's points has its best overlap as alignment.
    """
    images, points = rows.logits.shape[:2]
    index = torch.full((images * points,), UNMATCHED, dtype=torch.int64, device=rows.logits.device)
    quality = rows.boxes_xyxy.new_zeros(images * points)
    if len(pseudo_labels):
        near = _candidates(assigner, rows, pseudo_labels)
        own = _undisputed(near, _best(near, assigner.topk, len(pseudo_labels), points), images * points)
        if assigner.topk2 != assigner.topk:
            own = own.take(_best(own, assigner.topk2, len(pseudo_labels), points))
        index[own.cell] = own.box
        most = own.metric.new_zeros(2, len(pseudo_labels))
        most[0].scatter_reduce_(0, own.box, own.metric, "amax")
        most[1].scatter_reduce_(0, own.box, own.overlap, "amax")
        quality[own.cell] = own.metric * most[1, own.box] / (most[0, own.box] + assigner.eps)
    return index.reshape(images, points), quality.reshape(images, points)


def _candidates(assigner: Any, rows: RawPredictions, pseudo_labels: PseudoLabels) -> _Pairs:
    """Pair every box with the points inside it; a box shorter than the second level's stride counts as that long."""
    boxes, centres = pseudo_labels.boxes_xyxy.float(), rows.centres_xy[0].T.contiguous()
    low, high = boxes[:, :2], boxes[:, 2:]
    reach = (high - low).clamp(min=assigner.stride_val) / 2
    middle = (low + high) / 2
    low, high = middle - reach, middle + reach
    inside = centres[0] > low[:, :1]
    for found in (centres[1] > low[:, 1:], centres[0] < high[:, :1], centres[1] < high[:, 1:]):
        inside &= found
    box, point = inside.nonzero(as_tuple=True)
    image = pseudo_labels.image_index[box]
    score = rows.logits[image, point, pseudo_labels.labels[box]].float().sigmoid()
    overlap = assigner.iou_calculation(boxes[box], rows.boxes_xyxy[image, point])
    metric = score.pow(assigner.alpha) * overlap.pow(assigner.beta)
    return _Pairs(box, point, image * rows.logits.shape[1] + point, overlap, metric)


def _best(pairs: _Pairs, count: int, boxes: int, points: int) -> Tensor:
    """Return the positions of each box's best-aligned pairs, `count` at most.

    As in the family's code, a point outside the box is as good as one inside with an alignment of 0.
    """
    table = pairs.metric.new_zeros((boxes, points))
    table[pairs.box, pairs.point] = pairs.metric
    place = torch.full((boxes, points), -1, dtype=torch.int32, device=table.device)
    place[pairs.box, pairs.point] = torch.arange(len(pairs.box), dtype=torch.int32, device=table.device)
    found = place.gather(1, table.topk(min(count, points), dim=1).indices).long()
    return found[found >= 0]


def _undisputed(near: _Pairs, chosen: Tensor, cells: int) -> _Pairs:
    """Give points that several boxes chose to the box, of all they lie in, that they overlap most."""
    claims = near.cell[chosen].bincount(minlength=cells)
    disputed = (claims[near.cell] > 1).nonzero()[:, 0]
    cell, overlap = near.cell[disputed], near.overlap[disputed]
    most = near.overlap.new_zeros(cells).scatter_reduce_(0, cell, overlap, "amax")
    winners = disputed[overlap == most[cell]]
    # Of equals the first, as `max` would find it: pairs are in the order of their boxes.
    first = torch.full((cells,), len(near.box), device=chosen.device)
    first.scatter_reduce_(0, near.cell[winners], winners, "amin")
    winners = winners[first[near.cell[winners]] == winners]
    return near.take(torch.cat((chosen[claims[near.cell[chosen]] == 1], winners)))
