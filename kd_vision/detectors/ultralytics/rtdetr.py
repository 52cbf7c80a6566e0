"""The transformer head of the family: RT-DETR, a fixed number of queries that need no NMS.

Shapes: B images, A queries, K classes, M boxes handed in, N the most of them in one image, C channels,
H W input pixels, S stages: what the encoder proposes, and what each layer of the decoder makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.models.utils.ops import HungarianMatcher
from ultralytics.nn import tasks
from ultralytics.utils.metrics import bbox_iou

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import (
    UNMATCHED,
    AssignResult,
    Detections,
    DetectorOutput,
    PredictOptions,
    RawPredictions,
    RoIPredictions,
    Signal,
)
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.dense import padded, refine_by_rows
from kd_vision.detectors.postprocess import cxcywh_to_xyxy, top_k_boxes
from kd_vision.detectors.ultralytics.common import FamilyDetector, FamilyTargets, family_targets, shares_cxcywh

ENCODER = "encoder"
_PROBE = 128
_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class _Queries:
    """What one forward pass says of a batch; the denoising queries apart.

    Attributes:
        logits: (S, B, A, K).
        boxes: (S, B, A, 4) centre, width and height as shares of the input.
        stages: names of the S stages.
        final: position of the stage that inference reads.
        size: height and width of the input.
        most: boxes that inference gives of an image.
        noisy_logits: of the denoising queries, without the encoder's stage; None: there are none.
        noisy_boxes: likewise.
        noise: how the family paired the denoising queries with ground truth.
    """

    logits: Tensor
    boxes: Tensor
    stages: tuple[str, ...]
    final: int
    size: tuple[int, int]
    most: int
    noisy_logits: Tensor | None = None
    noisy_boxes: Tensor | None = None
    noise: dict[str, Any] | None = None

    def raw_predictions(self, stage: int) -> RawPredictions:
        """Return the queries of a stage, each where its box is."""
        boxes = self.pixels(stage)
        centres = ((boxes[..., :2] + boxes[..., 2:]) / 2).detach()
        return RawPredictions(self.logits[stage], boxes, centres)

    def pixels(self, stage: int) -> Tensor:
        """Return the boxes of a stage as corners in input pixels, (B, A, 4)."""
        height, width = self.size
        boxes = self.boxes[stage]
        return cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])


class RtdetrDetector(FamilyDetector):
    """A detection model whose head is `RTDETRDecoder`; see `FamilyDetector` for the arguments.

    In evaluation mode the family's decoder answers with its last layer only, so that the stages are then two.
    """

    def __init__(self, net: tasks.DetectionModel, classes: Sequence[str], name: str) -> None:
        super().__init__(net, classes, name)
        self._criterion = RTDETRDetectionLoss(nc=len(classes), use_vfl=True)

    def _describe(self, classes: tuple[str, ...], name: str) -> DetectorSpec:
        widths = [projection[0].in_channels for projection in self.head.input_proj]
        strides = self._strides()
        levels = [f"P{stride.bit_length() - 1}" for stride in strides]
        return DetectorSpec(
            family="ultralytics",
            name=name,
            classes=classes,
            level_channels=dict(zip(levels, widths, strict=True)),
            level_strides=dict(zip(levels, strides, strict=True)),
            provides=frozenset({"features", "regions", "detections"}),
            input_channels=int(self.net.yaml.get("channels", 3)),
            size_multiple=max(int(self.net.stride.max()), *strides),
            end_to_end=True,
            lowest_opset=16,  # GridSample
            parameters=sum(p.numel() for p in self.net.parameters()),
        )

    @torch.no_grad()
    def _strides(self) -> list[int]:
        """Run the layers before the decoder on a small image: the family does not record their strides."""
        weight = next(self.net.parameters())
        was_training = self.net.training
        self.net.eval()
        maps = self._maps(weight.new_zeros((1, int(self.net.yaml.get("channels", 3)), _PROBE, _PROBE)))
        self.net.train(was_training)
        return [_PROBE // int(each.shape[-1]) for each in maps]

    def forward(
        self,
        images: Tensor,
        targets: Targets | None = None,
        labelled: Tensor | None = None,
        signals: frozenset[Signal] = frozenset(),
    ) -> DetectorOutput:
        """See `Detector.forward`; with targets in training, denoising queries are drawn from torch's global RNG."""
        height, width = images.shape[-2:]
        if labelled is not None and bool(labelled.all()):
            labelled = None
        if labelled is not None and not bool(labelled.any()):
            targets = None
        truth = None if targets is None else family_targets(targets, labelled, (height, width))
        maps = self._maps(images)
        queries = self._queries(maps, truth, (height, width))
        wants_boxes, wants_regions = "detections" in signals, "regions" in signals
        return DetectorOutput(
            task_losses={} if truth is None else self._task_losses(queries, truth, labelled),
            features=dict(zip(self.spec.level_strides, maps, strict=True)) if "features" in signals else {},
            postprocess=partial(_postprocess, queries) if wants_boxes else None,
            assign=partial(self._assign, queries) if wants_boxes else None,
            raw_predictions=(lambda: queries.raw_predictions(queries.final)) if wants_regions else None,
            refine_regions=partial(_grade, queries) if wants_regions else None,
        )

    def export_module(self, nms_free: bool | None = None) -> nn.Module:
        """See `Detector.export_module`; there is one branch, which needs no NMS."""
        net = self._frozen_copy()
        net.model[-1].export, net.model[-1].format = True, "onnx"
        return _InPixels(net.fuse(verbose=False))

    def _frozen_copy(self) -> tasks.DetectionModel:
        net = super()._frozen_copy()
        net.model[-1].shapes = []  # anchors of the last forward pass: of its size, precision and device
        net.model[-1].anchors = net.model[-1].valid_mask = torch.empty(0)
        return net

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Run everything before the decoder; the maps it takes, fine to coarse."""
        kept: dict[int, Tensor] = {}
        latest = images
        for layer in self.net.model[:-1]:
            several = isinstance(layer.f, list)
            given = [latest if s == -1 else kept[s % layer.i] for s in (layer.f if several else [layer.f])]
            latest = layer(given if several else given[0])
            if layer.i in self.net.save:
                kept[layer.i] = latest
        return [kept[source] for source in self.head.f]

    def _queries(self, maps: list[Tensor], truth: FamilyTargets | None, size: tuple[int, int]) -> _Queries:
        head = self.head
        if (head.anchors.dtype, head.anchors.device) != (maps[0].dtype, maps[0].device):
            head.shapes = []  # else anchors of half precision or of another device would be used again
        batch = None if truth is None else _family_batch(truth, maps[0].shape[0])
        said = head(maps, batch)
        boxes, logits, first_boxes, first_logits, noise = said if self.training else said[1]
        boxes, logits = boxes.float(), logits.float()
        noisy_boxes = noisy_logits = None
        if noise is not None:
            noisy_boxes, boxes = boxes.split(noise["dn_num_split"], dim=2)
            noisy_logits, logits = logits.split(noise["dn_num_split"], dim=2)
        read = head.decoder.eval_idx
        layers = range(head.num_decoder_layers) if self.training else [read]
        return _Queries(
            torch.cat((first_logits.float()[None], logits)),
            torch.cat((first_boxes.float()[None], boxes)),
            (ENCODER, *(f"layer {number}" for number in layers)),
            1 + layers.index(read),
            size,
            head.num_queries,
            noisy_logits,
            noisy_boxes,
            noise,
        )

    def _task_losses(self, queries: _Queries, truth: FamilyTargets, labelled: Tensor | None) -> dict[str, Tensor]:
        """The family's own losses on the labelled images.

        Each is a sum over queries (and classes) divided by the boxes of the batch, for every stage, so that
        it does not grow with the batch and needs no division by images. ``class``, ``l1`` and ``giou`` are those of
        the last layer, ``earlier`` sums all three over the other stages, ``denoising`` all of the denoising queries.
        """
        batch = _family_batch(truth, queries.logits.shape[1])
        parts = [queries.boxes, queries.logits, queries.noisy_boxes, queries.noisy_logits]
        noise = queries.noise
        if labelled is not None:
            parts = [part if part is None else part[:, labelled] for part in parts]
            chosen = labelled.nonzero().flatten().tolist()
            batch["gt_groups"] = [batch["gt_groups"][image] for image in chosen]
            if noise is not None:
                noise = {
                    **noise,
                    **{key: [noise[key][image] for image in chosen] for key in ("dn_pos_idx", "dn_gt_idx")},
                }
        boxes, logits, noisy_boxes, noisy_logits = parts
        found = self._criterion((boxes, logits), batch, noisy_boxes, noisy_logits, noise)
        losses = {"class": found["loss_class"], "l1": found["loss_bbox"], "giou": found["loss_giou"]}
        losses["earlier"] = torch.stack([v for k, v in found.items() if k.endswith("_aux")]).sum()
        losses["denoising"] = torch.stack([v for k, v in found.items() if k.endswith("_dn")]).sum()
        return losses

    def _assign(self, queries: _Queries, pseudo_labels: PseudoLabels) -> tuple[AssignResult, ...]:
        """Pair the queries of each stage with boxes, one to one, by the matcher of the family's own loss."""
        index, quality = assign_hungarian(
            self._criterion.matcher, queries.logits, queries.boxes, pseudo_labels, queries.size
        )
        weight = 1.0 / len(queries.stages)
        return tuple(
            AssignResult(queries.raw_predictions(number), index[number], quality[number], stage, weight)
            for number, stage in enumerate(queries.stages)
        )


class _InPixels(nn.Module):
    """The family's decoder in export mode with its boxes as corners in input pixels: (B, N, 6)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        height, width = int(images.shape[-2]), int(images.shape[-1])
        found = self.net(images)
        boxes = cxcywh_to_xyxy(found[..., :4]) * found.new_tensor([width, height, width, height])
        return torch.cat((boxes, found[..., 4:]), dim=-1)


@torch.no_grad()
def assign_hungarian(
    matcher: HungarianMatcher, logits: Tensor, boxes: Tensor, pseudo_labels: PseudoLabels, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Pair queries with boxes one to one, at the least total cost of each image and stage.

    ``cost(q, m) = 2 sum_k p_mk (pos_qk - neg_qk) + 5 |b_q - b_m|_1 + 2 (1 - GIoU(b_q, b_m))`` with
    ``pos = 0.25 (1 - s)^2 (-log s)``, ``neg = 0.75 s^2 (-log(1 - s))``, s the query's class probabilities, p those
    handed in, b centre, width and height as shares of the input. The first term is the focal cross-entropy
    that a query would save by the pairing. For a box of one sure class all three are the costs of the family's
    matcher, whose gains are read from it, and so is the result.

    Source: DETR (arXiv 2005.12872), eq. 1; DETRDistill (arXiv 2211.10156), which pairs with all predictions of the
    teacher by the same three kinds of cost. Differs: p may be soft.

    Args:
        matcher: of the family.
        logits: (S, B, A, K).
        boxes: (S, B, A, 4) centre, width and height as shares of the input.
        pseudo_labels: boxes in pixels.
        size: height and width of the input.

    Returns:
        (S, B, A) index into `pseudo_labels`, `UNMATCHED` where there is none, and (S, B, A) IoU with it, the score that
        the family's own loss asks of a paired query; 0 elsewhere.
    """
    stages, images = logits.shape[:2]
    index = torch.full(logits.shape[:3], UNMATCHED, dtype=torch.int64)
    quality = boxes.new_zeros(boxes.shape[:3])
    if len(pseudo_labels) == 0:
        return index.to(logits.device), quality
    position, mask = padded(pseudo_labels.image_index, images)
    wanted = shares_cxcywh(pseudo_labels.boxes_xyxy, size)
    costs = _costs(matcher, logits, boxes, pseudo_labels.class_probs[position], wanted[position]).cpu().numpy()
    own, counts = position.cpu(), mask.sum(dim=1).tolist()
    for stage, image in product(range(stages), range(images)):
        query, slot = linear_sum_assignment(costs[stage, image, :, : counts[image]])
        index[stage, image, torch.from_numpy(query)] = own[image, torch.from_numpy(slot)]
    index = index.to(logits.device)
    paired = index != UNMATCHED
    overlap = bbox_iou(boxes[paired], wanted[index[paired]], xywh=True).flatten()
    quality[paired] = overlap.to(quality.dtype).clamp(0.0, 1.0)
    return index, quality


def _costs(matcher: HungarianMatcher, logits: Tensor, boxes: Tensor, probs: Tensor, wanted: Tensor) -> Tensor:
    """(S, B, A, N) cost of each pairing; `probs` (B, N, K), `wanted` (B, N, 4)."""
    scores = logits.float().sigmoid()
    positive = matcher.alpha * (1 - scores) ** matcher.gamma * -(scores + _EPSILON).log()
    negative = (1 - matcher.alpha) * scores**matcher.gamma * -(1 - scores + _EPSILON).log()
    with torch.autocast(logits.device.type, enabled=False):  # half precision would decide near ties anew
        by_class = (positive - negative) @ probs.float().transpose(1, 2)
    student_boxes, target_boxes = boxes.float()[..., :, None, :], wanted[:, None]
    distance = (student_boxes - target_boxes).abs().sum(dim=-1)
    apart = 1 - bbox_iou(student_boxes, target_boxes, xywh=True, GIoU=True).squeeze(-1)
    gain = matcher.cost_gain
    cost: Tensor = gain["class"] * by_class + gain["bbox"] * distance + gain["giou"] * apart
    return cost.nan_to_num(0.0, 0.0, 0.0)


@torch.no_grad()
def _postprocess(queries: _Queries, options: PredictOptions) -> list[Detections]:
    """Best pairs of query and class of each image, at most as many as there are queries, in input pixels."""
    found = []
    for boxes, scores in zip(queries.pixels(queries.final), queries.logits[queries.final].sigmoid(), strict=True):
        best, index = scores.flatten().topk(min(options.max_detections, queries.most, scores.numel()))
        query, label = index // scores.shape[-1], index % scores.shape[-1]
        found.append(top_k_boxes(boxes[query], best, label, options, scores[query]))
    return found


def _grade(queries: _Queries, boxes_xyxy: Tensor) -> RoIPredictions:
    probs = queries.logits[queries.final].detach().sigmoid()
    return refine_by_rows(queries.pixels(queries.final), probs, boxes_xyxy)


def _family_batch(truth: FamilyTargets, images: int) -> dict[str, Any]:
    return {
        "cls": truth.labels,
        "bboxes": truth.boxes_cxcywh,
        "batch_idx": truth.image_index,
        "gt_groups": torch.bincount(truth.image_index, minlength=images).tolist(),
    }
