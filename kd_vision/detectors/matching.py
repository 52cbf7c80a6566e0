"""Hungarian matching of the queries of DETR-like heads with pseudo labels.

Shapes: S stages of the head, B images, A queries, K classes, M boxes, N the most of them in one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kd_vision.core.batch import PseudoLabels
from kd_vision.core.predictions import UNMATCHED
from kd_vision.detectors.boxes import iou_and_giou, normalized_cxcywh

_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class MatchWeights:
    """Weights of the three costs, and the focal parameters of the first; the defaults are those of RT-DETR.

    Attributes:
        classes: of the focal classification cost.
        l1: of the distance between the boxes, as shares of the input.
        giou: of 1 - GIoU.
        alpha: weight of positives in the focal loss.
        gamma: exponent of the focal loss.
    """

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@torch.no_grad()
def hungarian_match(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    pseudo_labels: PseudoLabels,
    size: tuple[int, int],
    weights: MatchWeights = MatchWeights(),
) -> tuple[Tensor, Tensor]:
    """Match queries with boxes one to one, at the least total cost of each image and stage.

    ``cost(q, m) = 2 sum_k p_mk (pos_qk - neg_qk) + 5 |b_q - b_m|_1 + 2 (1 - GIoU(b_q, b_m))`` with
    ``pos = 0.25 (1 - s)^2 (-log s)``, ``neg = 0.75 s^2 (-log(1 - s))``, s the class probabilities of the query, p those
    of the pseudo label, b centre, width and height as shares of the input. The first term is the focal cross-entropy
    that the match would save. For one-hot p all three are the costs of RT-DETR's own matcher.

    Source: DETR (arXiv 2005.12872), eq. 1; DETRDistill (arXiv 2211.10156), which matches with all predictions of the
    teacher by the same three kinds of cost. Differs: p may be soft.

    Args:
        logits: (S, B, A, K).
        boxes_cxcywh: (S, B, A, 4) as shares of the input.
        pseudo_labels: boxes in pixels.
        size: height and width of the input.
        weights: of the costs.

    Returns:
        (S, B, A) index into `pseudo_labels`, `UNMATCHED` for queries without a box, and (S, B, A) IoU with the matched
        box, the target score in RT-DETR's own loss; 0 elsewhere.
    """
    stages, images = logits.shape[:2]
    index = torch.full(logits.shape[:3], UNMATCHED, dtype=torch.int64)
    quality = boxes_cxcywh.new_zeros(boxes_cxcywh.shape[:3])
    if len(pseudo_labels) == 0:
        return index.to(logits.device), quality
    position, mask = pad_by_image(pseudo_labels.image_index, images)
    targets = normalized_cxcywh(pseudo_labels.boxes_xyxy, size)
    cost = match_costs(logits, boxes_cxcywh, pseudo_labels.class_probs[position], targets[position], weights)
    costs, position, counts = cost.cpu().numpy(), position.cpu(), mask.sum(dim=1).tolist()
    for stage, image in product(range(stages), range(images)):
        query, slot = linear_sum_assignment(costs[stage, image, :, : counts[image]])
        index[stage, image, torch.from_numpy(query)] = position[image, torch.from_numpy(slot)]
    index = index.to(logits.device)
    matched = index != UNMATCHED
    iou, _ = iou_and_giou(boxes_cxcywh[matched], targets[index[matched]])
    quality[matched] = iou.to(quality.dtype).clamp(0.0, 1.0)
    return index, quality


def match_costs(
    logits: Tensor, boxes_cxcywh: Tensor, target_probs: Tensor, targets_cxcywh: Tensor, weights: MatchWeights
) -> Tensor:
    """Return (S, B, A, N) cost of each match, 0 where it is not finite; see `hungarian_match`.

    Args:
        logits: (S, B, A, K).
        boxes_cxcywh: (S, B, A, 4) as shares of the input.
        target_probs: (B, N, K).
        targets_cxcywh: (B, N, 4) as shares of the input.
        weights: of the costs.
    """
    scores = logits.float().sigmoid()
    positive = weights.alpha * (1 - scores) ** weights.gamma * -(scores + _EPSILON).log()
    negative = (1 - weights.alpha) * scores**weights.gamma * -(1 - scores + _EPSILON).log()
    with torch.autocast(logits.device.type, enabled=False):  # half precision would decide near ties differently
        by_class = (positive - negative) @ target_probs.float().transpose(1, 2)
    queries, targets = boxes_cxcywh.float()[..., :, None, :], targets_cxcywh[:, None]
    distance = (queries - targets).abs().sum(dim=-1)
    _, giou = iou_and_giou(queries, targets)
    cost = weights.classes * by_class + weights.l1 * distance + weights.giou * (1 - giou)
    return cost.nan_to_num(0.0, 0.0, 0.0)


def pad_by_image(image_index: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Turn a flat list of boxes into a table with a row for each image.

    Args:
        image_index: (M,) which image a box belongs to.
        images: B.

    Returns:
        (B, N) position of each box in the flat list, N the most boxes of an image, and (B, N) bool, False for padding.
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
