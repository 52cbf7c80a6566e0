"""Two-stage heads: Faster R-CNN.

Shapes: B images, A anchors of all levels, N proposals or boxes handed in, n rows of one image, K classes, H W input
pixels. The second stage has K + 1 columns, column 0 for background, and a box for each.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import batched_nms, box_iou

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import (
    IGNORED,
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
from kd_vision.detectors.base import freeze
from kd_vision.detectors.postprocess import to_detections
from kd_vision.detectors.torchvision.common import (
    TorchvisionDetector,
    clipped,
    decode_deltas,
    dense_layout,
    family_targets,
    labelled_images,
)
from kd_vision.detectors.torchvision.proposals import ProposalRule, pool_levels, propose

PROPOSALS, REGIONS = "proposals", "regions"
_ROWS = 100
_LEAST_SIDE = 1e-2


@dataclass(frozen=True, slots=True)
class ForwardState:
    """What the first stage gave.

    Attributes:
        maps: the pyramid by level.
        objectness: (B, A) logits.
        deltas: (B, A, 4) offsets.
        anchors: (A, 4) corners in input pixels.
        counts: anchors of each level.
        size: H and W.
    """

    maps: dict[str, Tensor]
    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    counts: tuple[int, ...]
    size: tuple[int, int]

    def of(self, images: Tensor) -> ForwardState:
        """Return the same of some images."""
        maps = {level: each[images] for level, each in self.maps.items()}
        return ForwardState(maps, self.objectness[images], self.deltas[images], self.anchors, self.counts, self.size)


class FasterRcnnDetector(TorchvisionDetector):
    """Faster R-CNN; see `TorchvisionDetector` for the arguments."""

    def _describe(self) -> DetectorSpec:
        # The pyramid of a MobileNet has two maps of one stride; the second is of the deepest layer.
        strides = {"P5a": 32, "P5": 32, "P6": 64} if self.arch.parts.mobile else {f"P{n}": 2**n for n in range(2, 7)}
        return DetectorSpec(
            family="torchvision",
            name=self.arch.model,
            classes=self.arch.classes,
            level_channels=dict.fromkeys(strides, self.net.backbone.out_channels),
            level_strides=strides,
            provides=frozenset({"features", "regions", "detections"}),
            parameters=sum(p.numel() for p in self.net.parameters()),
        )

    @property
    def _generator(self) -> Any:
        return self.net.rpn.anchor_generator

    def forward(
        self,
        images: Tensor,
        targets: Targets | None = None,
        labelled: Tensor | None = None,
        signals: frozenset[Signal] = frozenset(),
    ) -> DetectorOutput:
        """See `Detector.forward`."""
        state = self._run(images)
        wants_boxes, wants_regions = "detections" in signals, "regions" in signals
        return DetectorOutput(
            task_losses={} if targets is None else self._task_losses(state, targets, labelled),
            features=state.maps if "features" in signals else {},
            postprocess=partial(self._postprocess, state) if wants_boxes else None,
            assign=partial(self._assign, state) if wants_boxes else None,
            raw_predictions=partial(self._best_rows, state) if wants_regions else None,
            refine_regions=partial(self._grade, state) if wants_regions else None,
        )

    def export_module(self, nms_free: bool | None = None) -> nn.Module:
        """See `Detector.export_module`.

        A row is a proposal together with a class: the box that is regressed for the class, its probability, and 0
        for all other classes; so A is N * K. NMS among the proposals is inside, that among the rows is not.
        """
        twin = copy.deepcopy(self).float().cpu()
        freeze(twin)
        return _Dense(twin)

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what inference chooses from, by steps that export: (B, N, K, 4) corners and (B, N, K) scores."""
        return self._final(self._run(images), fixed=True)

    def _run(self, images: Tensor) -> ForwardState:
        maps = self._maps(images)
        anchors = self._anchors(images, maps)
        scores, deltas = self.net.rpn.head(list(maps.values()))
        counts = tuple(int(each.shape[1]) * int(each.shape[2]) * int(each.shape[3]) for each in scores)
        flat_scores, flat_deltas = concat_box_prediction_layers(scores, deltas)
        total = len(anchors)
        size = int(images.shape[-2]), int(images.shape[-1])
        objectness = flat_scores.reshape(-1, total).float()
        return ForwardState(maps, objectness, flat_deltas.reshape(-1, total, 4).float(), anchors, counts, size)

    def _task_losses(self, state: ForwardState, targets: Targets, labelled: Tensor | None) -> dict[str, Tensor]:
        """The family's own losses over the labelled images, samples drawn from torch's global generator."""
        kept = labelled_images(labelled, len(state.objectness), state.objectness.device)
        if not len(kept):
            return {}
        state, truth = state.of(kept), family_targets(targets, kept)
        rpn, anchors = self.net.rpn, [state.anchors] * len(truth)
        proposals = self._training_proposals(state)
        labels, matched = rpn.assign_targets_to_anchors(anchors, truth)
        goals = rpn.box_coder.encode(matched, anchors)
        objectness, rpn_box = rpn.compute_loss(
            state.objectness.reshape(-1, 1), state.deltas.reshape(-1, 4), labels, goals
        )
        regions, _, labels, goals = self.net.roi_heads.select_training_samples(proposals, truth)
        logits, deltas = self._second_stage(state, regions)
        classifier, box = fastrcnn_loss(logits, deltas.flatten(1), labels, goals)
        return {"classifier": classifier, "box_reg": box, "objectness": objectness, "rpn_box_reg": rpn_box}

    @torch.no_grad()
    def _training_proposals(self, state: ForwardState) -> list[Tensor]:
        """Proposals of each image by the family's own NMS, as many as its mode asks for."""
        boxes = decode_deltas(state.deltas, state.anchors, self.net.rpn.box_coder)
        shapes = [state.size] * len(boxes)
        found: list[Tensor] = self.net.rpn.filter_proposals(boxes, state.objectness, shapes, list(state.counts))[0]
        return found

    @torch.no_grad()
    def _proposals(self, state: ForwardState, kept: int | None = None, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Return (B, N, 4) and (B, N) bool, see `propose`; by the settings of inference, whatever the mode."""
        rpn = self.net.rpn
        rule = ProposalRule(
            rpn._pre_nms_top_n["testing"],
            kept or self.arch.proposals or rpn._post_nms_top_n["testing"],
            rpn.nms_thresh,
            rpn.score_thresh,
            rpn.min_size,
        )
        boxes = clipped(decode_deltas(state.deltas, state.anchors, rpn.box_coder), *state.size)
        return propose(state.objectness, boxes, state.counts, rule, fixed)

    def _second_stage(self, state: ForwardState, regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (rows, K + 1) and offsets (rows, K + 1, 4) of regions, a table (n, 4) per image."""
        maps = {str(number): each for number, each in enumerate(list(state.maps.values())[:-1])}
        pooled = self.net.roi_heads.box_roi_pool(maps, list(regions), [state.size] * len(regions))
        return self._judged(pooled)

    def _judged(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.net.roi_heads.box_predictor(self.net.roi_heads.box_head(pooled))
        return logits.float(), deltas.float().reshape(-1, len(self.spec.classes) + 1, 4)

    def _table(self, state: ForwardState, boxes_xyxy: Tensor, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Return logits (B, N, K + 1) and boxes (B, N, K + 1, 4) of regions (B, N, 4)."""
        if fixed:
            pooler, strides = self.net.roi_heads.box_roi_pool, list(self.spec.level_strides.values())[:-1]
            maps = list(state.maps.values())[:-1]
            pooled = pool_levels(maps, boxes_xyxy, strides, pooler.output_size[0], pooler.sampling_ratio)
            logits, deltas = self._judged(pooled)
        else:
            logits, deltas = self._second_stage(state, boxes_xyxy.unbind())
        count, columns = int(boxes_xyxy.shape[1]), len(self.spec.classes) + 1
        if count == 0:  # -1 would have nothing to go by
            return logits.reshape(len(boxes_xyxy), 0, columns), deltas.reshape(len(boxes_xyxy), 0, columns, 4)
        shaped = deltas.reshape(-1, count, columns, 4)
        boxes = decode_deltas(shaped, boxes_xyxy[:, :, None], self.net.roi_heads.box_coder)
        return logits.reshape(-1, count, columns), boxes

    def _final(self, state: ForwardState, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Return (B, N, K, 4) boxes within the image and (B, N, K) probabilities, 0 where there is no box."""
        proposals, real = self._proposals(state, fixed=fixed)
        logits, boxes = self._table(state, proposals, fixed)
        boxes = clipped(boxes[:, :, 1:], *state.size)
        large = (boxes[..., 2:] - boxes[..., :2] >= _LEAST_SIDE).all(dim=-1)
        scores = logits.softmax(dim=-1)[..., 1:]
        return boxes, scores * (real[..., None] & large)

    @torch.no_grad()
    def _postprocess(self, state: ForwardState, options: PredictOptions) -> list[Detections]:
        return [_chosen(boxes, scores, options) for boxes, scores in zip(*self._final(state), strict=True)]

    @torch.no_grad()
    def _grade(self, state: ForwardState, boxes_xyxy: Tensor) -> RoIPredictions:
        logits, boxes = self._table(state, clipped(boxes_xyxy.float(), *state.size))
        probs = logits.softmax(dim=-1)[..., 1:]
        return RoIPredictions(probs, _of_class(boxes, probs.argmax(dim=-1) + 1))

    def _best_rows(self, state: ForwardState) -> RawPredictions:
        """The best proposals, as many for every image, each with the box of its likeliest class."""
        proposals, _ = self._proposals(state, _ROWS)
        logits, boxes = self._table(state, proposals)
        centres = (proposals[..., :2] + proposals[..., 2:]) / 2
        classes = logits[..., 1:]
        return RawPredictions(classes, _of_class(boxes, classes.argmax(dim=-1) + 1), centres, background=logits[..., 0])

    def _assign(self, state: ForwardState, pseudo_labels: PseudoLabels) -> tuple[AssignResult, ...]:
        """Pair both stages' rows with boxes as the family does in training, samples and all."""
        return self._answer_anchors(state, pseudo_labels), self._answer_regions(state, pseudo_labels)

    def _answer_anchors(self, state: ForwardState, pseudo_labels: PseudoLabels) -> AssignResult:
        rpn = self.net.rpn
        index = [
            _sampled(state.anchors, pseudo_labels, image, rpn.proposal_matcher, rpn.fg_bg_sampler)
            for image in range(len(state.objectness))
        ]
        boxes = decode_deltas(state.deltas, state.anchors, rpn.box_coder)
        centres = (state.anchors[:, :2] + state.anchors[:, 2:]) / 2
        rows = RawPredictions(state.objectness[..., None], boxes, centres[None])
        paired = torch.stack(index)
        return AssignResult(rows, paired, torch.ones_like(boxes[..., 0].detach()), PROPOSALS, 0.5, class_agnostic=True)

    def _answer_regions(self, state: ForwardState, pseudo_labels: PseudoLabels) -> AssignResult:
        heads = self.net.roi_heads
        regions, index = [], []
        for image, proposals in enumerate(self._training_proposals(state)):
            offered = torch.cat((proposals, pseudo_labels.boxes_xyxy[pseudo_labels.image_index == image].float()))
            paired = _sampled(offered, pseudo_labels, image, heads.proposal_matcher, heads.fg_bg_sampler)
            looked_at = paired != IGNORED
            regions.append(offered[looked_at])
            index.append(paired[looked_at])
        logits, deltas = self._second_stage(state, regions)
        together, own = torch.cat(regions), torch.cat(index)
        boxes = decode_deltas(deltas, together[:, None], heads.box_coder)
        column = logits[:, 1:].argmax(dim=1) + 1
        if len(pseudo_labels):
            column = torch.where(own >= 0, pseudo_labels.labels[own.clamp(min=0)] + 1, column)
        counts = [len(each) for each in regions]
        rows = RawPredictions(
            _padded(logits[:, 1:], counts),
            _padded(_of_class(boxes, column), counts),
            _padded((together[:, :2] + together[:, 2:]) / 2, counts),
            background=_padded(logits[:, 0], counts),
        )
        paired = pad_sequence(index, batch_first=True, padding_value=IGNORED)
        return AssignResult(rows, paired, torch.ones(paired.shape, device=paired.device), REGIONS, 0.5)


class _Dense(nn.Module):
    """Images to (B, 4 + K, N * K), ready to trace."""

    own_column: Tensor

    def __init__(self, detector: FasterRcnnDetector) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("own_column", torch.eye(len(detector.spec.classes)))

    def forward(self, images: Tensor) -> Tensor:
        boxes, scores = self.detector.dense(images)
        count, classes = int(boxes.shape[1]), int(boxes.shape[2])
        spread = scores[..., None] * self.own_column
        return dense_layout(boxes.reshape(-1, count * classes, 4), spread.reshape(-1, count * classes, classes))


@torch.no_grad()
def _sampled(rows_xyxy: Tensor, pseudo_labels: PseudoLabels, image: int, matcher: Any, sampler: Any) -> Tensor:
    """Pair the rows of one image with its boxes and draw those that the loss looks at.

    Args:
        rows_xyxy: (n, 4) anchors or regions.
        pseudo_labels: boxes of the batch.
        image: which.
        matcher: of the family; its marks for no box are ours.
        sampler: of the family.

    Returns:
        (n,) position in the whole of `pseudo_labels`; `UNMATCHED`; `IGNORED` for rows not drawn.
    """
    own = (pseudo_labels.image_index == image).nonzero()[:, 0]
    if len(own):
        place = matcher(box_iou(pseudo_labels.boxes_xyxy[own].float(), rows_xyxy))
        place = torch.where(place >= 0, own[place.clamp(min=0)], place)
    else:
        place = torch.full((len(rows_xyxy),), UNMATCHED, dtype=torch.int64, device=rows_xyxy.device)
    marks = torch.where(place >= 0, 1, torch.where(place == UNMATCHED, 0, -1))
    positive, negative = sampler([marks])
    return place.masked_fill(~(positive[0] | negative[0]).bool(), IGNORED)


def _chosen(boxes: Tensor, scores: Tensor, options: PredictOptions) -> Detections:
    """Final boxes of one image by NMS within each class; (N, K, 4) and (N, K)."""
    region, label = (scores > options.score_threshold).nonzero(as_tuple=True)
    score, box = scores[region, label], boxes[region, label]
    keep = batched_nms(box, score, label, options.nms_iou)[: options.max_detections]
    return to_detections(box[keep], score[keep], label[keep], scores[region[keep]])


def _of_class(boxes: Tensor, column: Tensor) -> Tensor:
    """Return (..., 4): of (..., K + 1, 4) boxes those of one column each."""
    return boxes.gather(-2, column[..., None, None].expand(*column.shape, 1, 4))[..., 0, :]


def _padded(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Turn rows of all images, one after the other, into a table (B, most, ...) filled up with zeros."""
    return pad_sequence(list(torch.split(values, list(counts))), batch_first=True)
