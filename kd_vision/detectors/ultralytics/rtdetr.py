"""The transformer head of ultralytics: RT-DETR, a fixed number of queries that need no NMS.

Shapes: B images, A queries, K classes, M pseudo labels, C channels, H W input pixels, S stages: the proposals of the
encoder, and the output of each decoder layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.nn import tasks

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import (
    AssignResult,
    BatchDetections,
    DetectorOutput,
    PredictOptions,
    RawPredictions,
    RoIPredictions,
    Signal,
)
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.boxes import centres, cxcywh_to_xyxy
from kd_vision.detectors.dense import refine_by_rows
from kd_vision.detectors.matching import MatchWeights, hungarian_match
from kd_vision.detectors.postprocess import top_k
from kd_vision.detectors.ultralytics.common import FamilyDetector, FamilyTargets, family_targets

ENCODER = "encoder"
_PROBE = 128
"""Side in pixels of the blank image that measures the strides."""


@dataclass(frozen=True, slots=True)
class _Queries:
    """Outputs of one forward pass, with the denoising queries apart.

    Attributes:
        logits: (S, B, A, K).
        boxes: (S, B, A, 4) centre, width and height as shares of the input.
        stages: names of the S stages.
        final: position of the stage that inference uses.
        size: height and width of the input.
        most: boxes that inference returns for an image.
        noisy_logits: of the denoising queries, without the encoder's stage; None: there are none.
        noisy_boxes: likewise.
        noise: how ultralytics matched the denoising queries with ground truth.
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
        """Return the predictions of a stage, each query at the centre of its box."""
        boxes = self.pixels(stage)
        return RawPredictions(self.logits[stage], boxes, centres(boxes).detach())

    def pixels(self, stage: int) -> Tensor:
        """Return the boxes of a stage as corners in input pixels, (B, A, 4)."""
        height, width = self.size
        boxes = self.boxes[stage]
        return cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])


class RtdetrDetector(FamilyDetector):
    """A detection model whose head is `RTDETRDecoder`; see `FamilyDetector` for the arguments.

    In evaluation mode the decoder returns its last layer only, so that there are two stages then.
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
        """Measure the strides by running a blank image: ultralytics does not record them."""
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
        with_boxes, with_regions = "detections" in signals, "regions" in signals
        return DetectorOutput(
            task_losses={} if truth is None else self._task_losses(queries, truth, labelled),
            features=dict(zip(self.spec.level_strides, maps, strict=True)) if "features" in signals else {},
            postprocess=partial(_postprocess, queries) if with_boxes else None,
            assign=partial(self._assign, queries) if with_boxes else None,
            raw_predictions=partial(queries.raw_predictions, queries.final) if with_regions else None,
            refine_regions=partial(_refine_regions, queries) if with_regions else None,
        )

    def raw_outputs(self, images: Tensor) -> Any:
        """See `Detector.raw_outputs`: backbone and encoder, as the decoder has one width in all models."""
        return self._maps(images)

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
        """Run all layers before the decoder; return the maps that it takes, fine to coarse."""
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
            head.shapes = []  # drops cached anchors of another precision or device
        batch = None if truth is None else _family_batch(truth, maps[0].shape[0])
        output = head(maps, batch)
        boxes, logits, first_boxes, first_logits, noise = output if self.training else output[1]
        boxes, logits = boxes.float(), logits.float()
        noisy_boxes = noisy_logits = None
        if noise is not None:
            noisy_boxes, boxes = boxes.split(noise["dn_num_split"], dim=2)
            noisy_logits, logits = logits.split(noise["dn_num_split"], dim=2)
        final = head.decoder.eval_idx
        layers = range(head.num_decoder_layers) if self.training else [final]
        return _Queries(
            torch.cat((first_logits.float()[None], logits)),
            torch.cat((first_boxes.float()[None], boxes)),
            (ENCODER, *(f"layer {number}" for number in layers)),
            1 + layers.index(final),
            size,
            head.num_queries,
            noisy_logits,
            noisy_boxes,
            noise,
        )

    def _task_losses(self, queries: _Queries, truth: FamilyTargets, labelled: Tensor | None) -> dict[str, Tensor]:
        """Compute ultralytics' own losses on the labelled images.

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
        values = self._criterion((boxes, logits), batch, noisy_boxes, noisy_logits, noise)
        losses = {"class": values["loss_class"], "l1": values["loss_bbox"], "giou": values["loss_giou"]}
        losses["earlier"] = torch.stack([value for name, value in values.items() if name.endswith("_aux")]).sum()
        losses["denoising"] = torch.stack([value for name, value in values.items() if name.endswith("_dn")]).sum()
        return losses

    def _assign(self, queries: _Queries, pseudo_labels: PseudoLabels) -> tuple[AssignResult, ...]:
        """Match the queries of each stage with boxes one to one, by the costs of ultralytics' own loss."""
        matcher = self._criterion.matcher
        gain = matcher.cost_gain
        weights = MatchWeights(gain["class"], gain["bbox"], gain["giou"], matcher.alpha, matcher.gamma)
        index, quality = hungarian_match(queries.logits, queries.boxes, pseudo_labels, queries.size, weights)
        weight = 1.0 / len(queries.stages)
        return tuple(
            AssignResult(queries.raw_predictions(number), index[number], quality[number], stage, weight)
            for number, stage in enumerate(queries.stages)
        )


class _InPixels(nn.Module):
    """The network in export mode with its boxes as corners in input pixels: (B, N, 6)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        height, width = int(images.shape[-2]), int(images.shape[-1])
        rows = self.net(images)
        boxes = cxcywh_to_xyxy(rows[..., :4]) * rows.new_tensor([width, height, width, height])
        return torch.cat((boxes, rows[..., 4:]), dim=-1)


@torch.no_grad()
def _postprocess(queries: _Queries, options: PredictOptions) -> BatchDetections:
    """Return the best pairs of query and class in input pixels, at most as many as there are queries."""
    scores = queries.logits[queries.final].sigmoid()
    return top_k(queries.pixels(queries.final), scores, options, limit=queries.most)


def _refine_regions(queries: _Queries, boxes_xyxy: Tensor) -> RoIPredictions:
    probs = queries.logits[queries.final].detach().sigmoid()
    return refine_by_rows(queries.pixels(queries.final), probs, boxes_xyxy)


def _family_batch(truth: FamilyTargets, images: int) -> dict[str, Any]:
    return {
        "cls": truth.labels,
        "bboxes": truth.boxes_cxcywh,
        "batch_idx": truth.image_index,
        "gt_groups": torch.bincount(truth.image_index, minlength=images).tolist(),
    }
