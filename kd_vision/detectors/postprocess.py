"""From the scores of a head to the final boxes of a batch, on the device that the network is on.

Shapes: B images, A rows of a head (grid points, anchors, queries, regions), K classes, M final boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from kd_vision.core.predictions import BatchDetections, PredictOptions

MAX_CANDIDATES = 30_000
"""Pairs of row and class that NMS of a dense head compares in one image, best first."""


@torch.no_grad()
def nms(
    boxes_xyxy: Tensor, scores: Tensor, options: PredictOptions, max_candidates: int | None = MAX_CANDIDATES
) -> BatchDetections:
    """Keep the best boxes of each image by NMS within each class.

    A row is a candidate for every class whose score is above the threshold, as in COCO evaluation of dense detectors.

    Args:
        boxes_xyxy: (B, A, 4) input pixels, or (B, A, K, 4) where each class has a box of its own.
        scores: (B, A, K) in [0, 1].
        options: thresholds.
        max_candidates: of an image, best first; None: all above the threshold.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    # Image by image: an offset for each image would round the coordinates and turn near ties of the IoU threshold.
    for image_boxes, image_scores in zip(boxes_xyxy.float(), scores.float(), strict=True):
        row, label = (image_scores > options.score_threshold).nonzero(as_tuple=True)
        score = image_scores[row, label]
        if max_candidates is not None and len(score) > max_candidates:
            score, order = score.topk(max_candidates)
            row, label = row[order], label[order]
        candidates = image_boxes[row] if image_boxes.ndim == 2 else image_boxes[row, label]
        keep = batched_nms(candidates, score, label, options.nms_iou)[: options.max_detections]
        kept.append((row[keep], label[keep]))
    image = torch.cat([torch.full_like(row, number) for number, (row, _) in enumerate(kept)])
    return _gather(boxes_xyxy, scores, image, *(torch.cat(parts) for parts in zip(*kept, strict=True)))


@torch.no_grad()
def top_k(boxes_xyxy: Tensor, scores: Tensor, options: PredictOptions, limit: int | None = None) -> BatchDetections:
    """Keep the best pairs of row and class of each image, for heads that need no NMS.

    Args:
        boxes_xyxy: (B, A, 4) input pixels.
        scores: (B, A, K) in [0, 1].
        options: thresholds.
        limit: boxes of an image besides `options.max_detections`; None: no other limit.
    """
    flat, classes = scores.flatten(1), scores.shape[-1]
    count = min(options.max_detections, flat.shape[1], flat.shape[1] if limit is None else limit)
    best, index = flat.topk(count, dim=1)
    image, slot = (best > options.score_threshold).nonzero(as_tuple=True)
    pair = index[image, slot]
    return _gather(boxes_xyxy, scores, image, pair // classes, pair % classes)


def _gather(boxes_xyxy: Tensor, scores: Tensor, image: Tensor, row: Tensor, label: Tensor) -> BatchDetections:
    boxes = boxes_xyxy[image, row] if boxes_xyxy.ndim == 3 else boxes_xyxy[image, row, label]
    probs = scores[image, row].float()
    return BatchDetections(image, boxes.float(), scores[image, row, label].float(), label, probs, len(scores))
