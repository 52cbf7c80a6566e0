"""From anchors to proposals and pooled regions, in steps whose sizes do not depend on the data, so that they export.

Shapes: B images, A anchors of all levels, n anchors of a level, N proposals, C channels, R side of a pooled map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import roi_align

from kd_vision.detectors.boxes import intersection

_ROUNDS = 32
_CANONICAL_SIDE, _CANONICAL_LEVEL, _LEVEL_MARGIN = 224, 4, 1e-6


@dataclass(frozen=True, slots=True)
class ProposalRule:
    """Settings that choose proposals among anchors.

    Attributes:
        candidates: best anchors of each level that enter NMS.
        kept: proposals of all levels after NMS.
        nms_iou: overlap above which the weaker anchor of a level is dropped.
        least_score: objectness probability below which anchors are dropped.
        least_side: in pixels; anchors with a smaller side are dropped.
    """

    candidates: int
    kept: int
    nms_iou: float
    least_score: float
    least_side: float


def propose(
    objectness: Tensor, boxes_xyxy: Tensor, counts: Sequence[int], rule: ProposalRule, fixed: bool = False
) -> tuple[Tensor, Tensor]:
    """Pick the proposals of each image, best first.

    Args:
        objectness: (B, A) logits.
        boxes_xyxy: (B, A, 4) decoded anchors within the image.
        counts: anchors of each level.
        rule: settings.
        fixed: run the same steps for any data; the result is the same.

    Returns:
        (B, N, 4) boxes and (B, N) bool, False for padding with boxes that NMS has dropped.
    """
    scores, boxes = [], []
    for level_scores, level_boxes in zip(
        torch.split(objectness, list(counts), dim=1), torch.split(boxes_xyxy, list(counts), dim=1), strict=True
    ):
        best, place = level_scores.topk(min(rule.candidates, int(level_scores.shape[1])), dim=1)
        candidates = take_rows(level_boxes, place)
        sides = candidates[..., 2:] - candidates[..., :2]
        allowed = (sides >= rule.least_side).all(dim=-1) & (best.sigmoid() >= rule.least_score)
        kept = keep_best(candidates, allowed, rule.nms_iou, fixed)
        scores.append(best.masked_fill(~kept, float("-inf")))
        boxes.append(candidates)
    all_scores = torch.cat(scores, dim=1)
    best, place = all_scores.topk(min(rule.kept, int(all_scores.shape[1])), dim=1)
    return take_rows(torch.cat(boxes, dim=1), place), best > float("-inf")


def take_rows(values: Tensor, place: Tensor) -> Tensor:
    """Return (B, N, 4) rows of (B, A, 4) at (B, N)."""
    return values.gather(1, place[..., None].expand(-1, -1, 4))


def keep_best(boxes_xyxy: Tensor, allowed: Tensor, iou: float, fixed: bool = False) -> Tensor:
    """Run greedy NMS on boxes sorted best first, as rounds over a matrix.

    A box is kept if no kept box before it overlaps it. Starting from all that are allowed, each round settles one
    further link of every chain of boxes that drop each other, so the rounds converge to the greedy result. 1000 boxes
    at random or in clusters took 8 rounds at most; a chain longer than the rounds gives wrong decisions at its end.

    Args:
        boxes_xyxy: (B, n, 4).
        allowed: (B, n) bool, boxes that may be kept and may drop others.
        iou: overlap above which the later box is dropped.
        fixed: run all rounds, even if nothing changes any more.

    Returns:
        (B, n) bool.
    """
    shared = intersection(boxes_xyxy[:, :, None], boxes_xyxy[:, None])
    area = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).prod(dim=-1)
    overlap = shared > iou * (area[:, :, None] + area[:, None] - shared)
    rank = torch.arange(int(boxes_xyxy.shape[1]), device=boxes_xyxy.device)
    drops = (overlap & (rank[:, None] < rank)).to(boxes_xyxy.dtype)
    kept = allowed
    for _ in range(_ROUNDS):
        dropped = (kept[:, None].to(drops.dtype) @ drops)[:, 0] > 0
        now = allowed & ~dropped
        if not fixed and bool((now == kept).all()):
            break
        kept = now
    return kept


def pool_levels(maps: Sequence[Tensor], boxes_xyxy: Tensor, strides: Sequence[int], side: int, sampling: int) -> Tensor:
    """Pool regions from a pyramid, each from the level for its size, by pooling all regions from every level.

    The level is floor(4 + log2(sqrt(area) / 224)), as in torchvision's pooler, which pools each region once but in an
    order that depends on the data.

    Args:
        maps: (B, C, H_l, W_l), fine to coarse.
        boxes_xyxy: (B, N, 4) input pixels.
        strides: of the maps.
        side: R.
        sampling: points per cell and direction.

    Returns:
        (B * N, C, R, R).
    """
    # The index of the image as a running sum: in the traced graph it holds for any number of images.
    image = torch.ones_like(boxes_xyxy[..., :1]).cumsum(dim=0) - 1
    regions = torch.cat((image, boxes_xyxy), dim=-1).reshape(-1, 5)
    area = (regions[:, 3:] - regions[:, 1:3]).prod(dim=-1)
    finest, coarsest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    level = (_CANONICAL_LEVEL + (area.sqrt() / _CANONICAL_SIDE).log2() + _LEVEL_MARGIN).floor()
    level = level.clamp(min=finest, max=coarsest)
    pooled: Tensor | None = None
    for number in range(finest, coarsest + 1):
        of_level = roi_align(maps[number - finest], regions, (side, side), 1 / 2**number, sampling)
        pooled = of_level if pooled is None else torch.where((level == number)[:, None, None, None], of_level, pooled)
    assert pooled is not None
    return pooled
