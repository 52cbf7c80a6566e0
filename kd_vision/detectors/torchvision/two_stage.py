"""Two-stage heads: Faster R-CNN.

Shapes: B images, A anchors of all levels, N proposals or given boxes, n rows of one image, K classes, H W input
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
from torchvision.ops import box_iou

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import (
    IGNORED,
    UNMATCHED,
    AssignResult,
    BatchDetections,
    DetectorOutput,
    PredictOptions,
    RawPredictions,
    RoIPredictions,
    Signal,
)
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import freeze
from kd_vision.detectors.boxes import centres
from kd_vision.detectors.postprocess import nms
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
    """Outputs of the first stage.

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
        """Return the outputs of some images."""
        maps = {level: each[images] for level, each in self.maps.items()}
        return ForwardState(maps, self.objectness[images], self.deltas[images], self.anchors, self.counts, self.size)


class FasterRcnnDetector(TorchvisionDetector):
    """Faster R-CNN; see `TorchvisionDetector` for the arguments."""

    def _describe(self) -> DetectorSpec:
        # The pyramid of a MobileNet has two maps of stride 32; the second is that of the deepest layer.
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
        with_boxes, with_regions = "detections" in signals, "regions" in signals
        return DetectorOutput(
            task_losses={} if targets is None else self._task_losses(state, targets, labelled),
            features=state.maps if "features" in signals else {},
            postprocess=partial(self._postprocess, state) if with_boxes else None,
            assign=partial(self._assign, state) if with_boxes else None,
            raw_predictions=partial(self._raw_predictions, state) if with_regions else None,
            refine_regions=partial(self._refine_regions, state) if with_regions else None,
        )

    def raw_outputs(self, images: Tensor) -> Any:
        """See `Detector.raw_outputs`: without the box head, which has one width in all models."""
        return self.net.rpn.head(list(self._maps(images).values()))

    def export_module(self, nms_free: bool | None = None) -> nn.Module:
        """See `Detector.export_module`.

        A row is a proposal together with a class: the box regressed for the class, its probability, and 0 for all
        other classes; so A is N * K. NMS of the proposals is part of the module, NMS of the rows is not.
        """
        twin = copy.deepcopy(self).float().cpu()
        freeze(twin)
        return _Dense(twin)

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes before NMS, (B, N, K, 4) corners, and scores, (B, N, K), by steps that export."""
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
        """Compute torchvision's own losses over the labelled images; sampling uses torch's global generator."""
        kept = labelled_images(labelled, len(state.objectness), state.objectness.device)
        if not len(kept):
            return {}
        state, truth = state.of(kept), family_targets(targets, kept)
        rpn, anchors = self.net.rpn, [state.anchors] * len(truth)
        proposals = self._training_proposals(state)
        labels, matched = rpn.assign_targets_to_anchors(anchors, truth)
        targets_rpn = rpn.box_coder.encode(matched, anchors)
        objectness, rpn_box = rpn.compute_loss(
            state.objectness.reshape(-1, 1), state.deltas.reshape(-1, 4), labels, targets_rpn
        )
        regions, _, labels, targets_roi = self.net.roi_heads.select_training_samples(proposals, truth)
        logits, deltas = self._second_stage(state, regions)
        classifier, box = fastrcnn_loss(logits, deltas.flatten(1), labels, targets_roi)
        return {"classifier": classifier, "box_reg": box, "objectness": objectness, "rpn_box_reg": rpn_box}

    @torch.no_grad()
    def _training_proposals(self, state: ForwardState) -> list[Tensor]:
        """Return the proposals of each image by torchvision's own NMS, as many as its mode sets."""
        boxes = decode_deltas(state.deltas, state.anchors, self.net.rpn.box_coder)
        shapes = [state.size] * len(boxes)
        proposals: list[Tensor] = self.net.rpn.filter_proposals(boxes, state.objectness, shapes, list(state.counts))[0]
        return proposals

    @torch.no_grad()
    def _proposals(self, state: ForwardState, kept: int | None = None, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Return (B, N, 4) and (B, N) bool, see `propose`, by the settings of inference in either mode."""
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
        return self._predict_regions(pooled)

    def _predict_regions(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.net.roi_heads.box_predictor(self.net.roi_heads.box_head(pooled))
        return logits.float(), deltas.float().reshape(-1, len(self.spec.classes) + 1, 4)

    def _table(self, state: ForwardState, boxes_xyxy: Tensor, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Return logits (B, N, K + 1) and boxes (B, N, K + 1, 4) of regions (B, N, 4)."""
        if fixed:
            pooler, strides = self.net.roi_heads.box_roi_pool, list(self.spec.level_strides.values())[:-1]
            maps = list(state.maps.values())[:-1]
            pooled = pool_levels(maps, boxes_xyxy, strides, pooler.output_size[0], pooler.sampling_ratio)
            logits, deltas = self._predict_regions(pooled)
        else:
            logits, deltas = self._second_stage(state, boxes_xyxy.unbind())
        count, columns = int(boxes_xyxy.shape[1]), len(self.spec.classes) + 1
        if count == 0:  # a size of -1 cannot be inferred from no values
            return logits.reshape(len(boxes_xyxy), 0, columns), deltas.reshape(len(boxes_xyxy), 0, columns, 4)
        shaped = deltas.reshape(-1, count, columns, 4)
        boxes = decode_deltas(shaped, boxes_xyxy[:, :, None], self.net.roi_heads.box_coder)
        return logits.reshape(-1, count, columns), boxes

    def _final(self, state: ForwardState, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """Return (B, N, K, 4) boxes within the image and (B, N, K) probabilities, 0 for padding and slivers."""
        proposals, real = self._proposals(state, fixed=fixed)
        logits, boxes = self._table(state, proposals, fixed)
        boxes = clipped(boxes[:, :, 1:], *state.size)
        large = (boxes[..., 2:] - boxes[..., :2] >= _LEAST_SIDE).all(dim=-1)
        scores = logits.softmax(dim=-1)[..., 1:]
        return boxes, scores * (real[..., None] & large)

    @torch.no_grad()
    def _postprocess(self, state: ForwardState, options: PredictOptions) -> BatchDetections:
        return nms(*self._final(state), options, max_candidates=None)

    @torch.no_grad()
    def _refine_regions(self, state: ForwardState, boxes_xyxy: Tensor) -> RoIPredictions:
        logits, boxes = self._table(state, clipped(boxes_xyxy.float(), *state.size))
        probs = logits.softmax(dim=-1)[..., 1:]
        return RoIPredictions(probs, _of_class(boxes, probs.argmax(dim=-1) + 1))

    def _raw_predictions(self, state: ForwardState) -> RawPredictions:
        """Return the best proposals, as many for every image, each with the box of its likeliest class."""
        proposals, _ = self._proposals(state, _ROWS)
        logits, boxes = self._table(state, proposals)
        classes = logits[..., 1:]
        best = _of_class(boxes, classes.argmax(dim=-1) + 1)
        return RawPredictions(classes, best, centres(proposals), background=logits[..., 0])

    def _assign(self, state: ForwardState, pseudo_labels: PseudoLabels) -> tuple[AssignResult, ...]:
        """Assign boxes to the rows of both stages as torchvision does in training, sampling included."""
        return self._assign_anchors(state, pseudo_labels), self._assign_regions(state, pseudo_labels)

    def _assign_anchors(self, state: ForwardState, pseudo_labels: PseudoLabels) -> AssignResult:
        rpn = self.net.rpn
        matched = torch.stack(
            [
                _match_and_sample(state.anchors, pseudo_labels, image, rpn.proposal_matcher, rpn.fg_bg_sampler)
                for image in range(len(state.objectness))
            ]
        )
        boxes = decode_deltas(state.deltas, state.anchors, rpn.box_coder)
        raw = RawPredictions(state.objectness[..., None], boxes, centres(state.anchors)[None])
        return AssignResult(raw, matched, torch.ones_like(boxes[..., 0].detach()), PROPOSALS, 0.5, class_agnostic=True)

    def _assign_regions(self, state: ForwardState, pseudo_labels: PseudoLabels) -> AssignResult:
        heads = self.net.roi_heads
        regions, index = [], []
        for image, proposals in enumerate(self._training_proposals(state)):
            candidates = torch.cat((proposals, pseudo_labels.boxes_xyxy[pseudo_labels.image_index == image].float()))
            matched = _match_and_sample(candidates, pseudo_labels, image, heads.proposal_matcher, heads.fg_bg_sampler)
            sampled = matched != IGNORED
            regions.append(candidates[sampled])
            index.append(matched[sampled])
        logits, deltas = self._second_stage(state, regions)
        flat_regions, flat_index = torch.cat(regions), torch.cat(index)
        boxes = decode_deltas(deltas, flat_regions[:, None], heads.box_coder)
        column = logits[:, 1:].argmax(dim=1) + 1
        if len(pseudo_labels):
            column = torch.where(flat_index >= 0, pseudo_labels.labels[flat_index.clamp(min=0)] + 1, column)
        counts = [len(each) for each in regions]
        raw = RawPredictions(
            _pad_images(logits[:, 1:], counts),
            _pad_images(_of_class(boxes, column), counts),
            _pad_images(centres(flat_regions), counts),
            background=_pad_images(logits[:, 0], counts),
        )
        matched = pad_sequence(index, batch_first=True, padding_value=IGNORED)
        return AssignResult(raw, matched, torch.ones(matched.shape, device=matched.device), REGIONS, 0.5)


class _Dense(nn.Module):
    """Images to (B, 4 + K, N * K), ready to trace."""

    one_hot: Tensor

    def __init__(self, detector: FasterRcnnDetector) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("one_hot", torch.eye(len(detector.spec.classes)))

    def forward(self, images: Tensor) -> Tensor:
        boxes, scores = self.detector.dense(images)
        count, classes = int(boxes.shape[1]), int(boxes.shape[2])
        spread = scores[..., None] * self.one_hot
        return dense_layout(boxes.reshape(-1, count * classes, 4), spread.reshape(-1, count * classes, classes))


@torch.no_grad()
def _match_and_sample(rows_xyxy: Tensor, pseudo_labels: PseudoLabels, image: int, matcher: Any, sampler: Any) -> Tensor:
    """Match the rows of one image with its boxes and draw the rows that the loss uses.

    Args:
        rows_xyxy: (n, 4) anchors or regions.
        pseudo_labels: boxes of the batch.
        image: position of the image in the batch.
        matcher: of torchvision; its codes for no box are `UNMATCHED` and `IGNORED`.
        sampler: of torchvision.

    Returns:
        (n,) position in the whole of `pseudo_labels`; `UNMATCHED`; `IGNORED` for rows not drawn.
    """
    of_image = (pseudo_labels.image_index == image).nonzero()[:, 0]
    if len(of_image):
        matched = matcher(box_iou(pseudo_labels.boxes_xyxy[of_image].float(), rows_xyxy))
        matched = torch.where(matched >= 0, of_image[matched.clamp(min=0)], matched)
    else:
        matched = torch.full((len(rows_xyxy),), UNMATCHED, dtype=torch.int64, device=rows_xyxy.device)
    classes = torch.where(matched >= 0, 1, torch.where(matched == UNMATCHED, 0, -1))
    positive, negative = sampler([classes])
    return matched.masked_fill(~(positive[0] | negative[0]).bool(), IGNORED)


def _of_class(boxes: Tensor, column: Tensor) -> Tensor:
    """Return (..., 4): of (..., K + 1, 4) boxes the one of each row's column."""
    return boxes.gather(-2, column[..., None, None].expand(*column.shape, 1, 4))[..., 0, :]


def _pad_images(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Turn the rows of all images, one after the other, into a table (B, most, ...) padded with zeros."""
    return pad_sequence(list(torch.split(values, list(counts))), batch_first=True)
