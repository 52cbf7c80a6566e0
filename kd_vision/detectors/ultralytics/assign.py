"""Task-aligned assignment, as ultralytics does it, of pseudo labels to grid points.

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
    """Candidate pairs of a box and a grid point.

    Attributes:
        box: (P,) position among the boxes.
        point: (P,) position in the grid.
        cell: (P,) image and point as one number.
        overlap: (P,) CIoU of the box and the one predicted at the point, not below 0.
        metric: (P,) alignment metric ``score^alpha * overlap^beta``.
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
def assign_aligned(assigner: Any, raw: RawPredictions, pseudo_labels: PseudoLabels) -> tuple[Tensor, Tensor]:
    """Assign boxes to grid points by the rule of a task-aligned assigner.

    Ultralytics compares every box of a padded table with every point. Only points inside a box can be assigned to it,
    and a list of those pairs costs a fraction of the table.

    Args:
        assigner: of ultralytics; its settings are used.
        raw: predictions of the grid, (B, A).
        pseudo_labels: (M,) boxes; the class of each is its likeliest one.

    Returns:
        (B, A) index into `pseudo_labels`, `UNMATCHED` for points without a box, and (B, A) alignment in [0, 1].

    Source: Feng et al., TOOD (arXiv:2108.07755), with the tie-breaks of ultralytics' `TaskAlignedAssigner`: a point
    with several boxes goes to the one it overlaps most; alignment is scaled so that the best point of a box has the
    box's best overlap.
    """
    images, points = raw.logits.shape[:2]
    index = torch.full((images * points,), UNMATCHED, dtype=torch.int64, device=raw.logits.device)
    quality = raw.boxes_xyxy.new_zeros(images * points)
    if len(pseudo_labels):
        candidates = _candidates(assigner, raw, pseudo_labels)
        top = _top_k(candidates, assigner.topk, len(pseudo_labels), points)
        pairs = _resolve_conflicts(candidates, top, images * points)
        if assigner.topk2 != assigner.topk:
            pairs = pairs.take(_top_k(pairs, assigner.topk2, len(pseudo_labels), points))
        index[pairs.cell] = pairs.box
        most = pairs.metric.new_zeros(2, len(pseudo_labels))
        most[0].scatter_reduce_(0, pairs.box, pairs.metric, "amax")
        most[1].scatter_reduce_(0, pairs.box, pairs.overlap, "amax")
        quality[pairs.cell] = pairs.metric * most[1, pairs.box] / (most[0, pairs.box] + assigner.eps)
    return index.reshape(images, points), quality.reshape(images, points)


def _candidates(assigner: Any, raw: RawPredictions, pseudo_labels: PseudoLabels) -> _Pairs:
    """Pair every box with the points inside it; sides below the second level's stride are widened to it."""
    boxes, centres = pseudo_labels.boxes_xyxy.float(), raw.centres_xy[0].T.contiguous()
    low, high = boxes[:, :2], boxes[:, 2:]
    reach = (high - low).clamp(min=assigner.stride_val) / 2
    middle = (low + high) / 2
    low, high = middle - reach, middle + reach
    inside = centres[0] > low[:, :1]
    for within in (centres[1] > low[:, 1:], centres[0] < high[:, :1], centres[1] < high[:, 1:]):
        inside &= within
    box, point = inside.nonzero(as_tuple=True)
    image = pseudo_labels.image_index[box]
    score = raw.logits[image, point, pseudo_labels.labels[box]].float().sigmoid()
    overlap = assigner.iou_calculation(boxes[box], raw.boxes_xyxy[image, point])
    metric = score.pow(assigner.alpha) * overlap.pow(assigner.beta)
    return _Pairs(box, point, image * raw.logits.shape[1] + point, overlap, metric)


def _top_k(pairs: _Pairs, count: int, boxes: int, points: int) -> Tensor:
    """Return the positions of the `count` best-aligned pairs of each box.

    As in ultralytics, a point outside the box ranks equal to one inside with an alignment of 0.
    """
    table = pairs.metric.new_zeros((boxes, points))
    table[pairs.box, pairs.point] = pairs.metric
    place = torch.full((boxes, points), -1, dtype=torch.int32, device=table.device)
    place[pairs.box, pairs.point] = torch.arange(len(pairs.box), dtype=torch.int32, device=table.device)
    best = place.gather(1, table.topk(min(count, points), dim=1).indices).long()
    return best[best >= 0]


def _resolve_conflicts(pairs: _Pairs, chosen: Tensor, cells: int) -> _Pairs:
    """Assign each point that several boxes chose to the box, of all it lies in, that it overlaps most."""
    claims = pairs.cell[chosen].bincount(minlength=cells)
    disputed = (claims[pairs.cell] > 1).nonzero()[:, 0]
    cell, overlap = pairs.cell[disputed], pairs.overlap[disputed]
    most = pairs.overlap.new_zeros(cells).scatter_reduce_(0, cell, overlap, "amax")
    winners = disputed[overlap == most[cell]]
    # At a tie the first box wins, as `max` would choose: pairs are in the order of their boxes.
    first = torch.full((cells,), len(pairs.box), device=chosen.device)
    first.scatter_reduce_(0, pairs.cell[winners], winners, "amin")
    winners = winners[first[pairs.cell[winners]] == winners]
    return pairs.take(torch.cat((chosen[claims[pairs.cell[chosen]] == 1], winners)))
