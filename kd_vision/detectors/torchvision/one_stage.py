"""One-stage heads: RetinaNet, FCOS, SSD and SSDLite.

Shapes: B images, A rows (anchors or points of all levels), K classes, M boxes, H W input pixels. The heads of
torchvision have K + 1 columns; column 0 is background, which sigmoid heads do not use.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import (
    IGNORED,
    ONE_TO_MANY,
    UNMATCHED,
    AssignResult,
    BatchDetections,
    DetectorOutput,
    GridPredictions,
    PredictOptions,
    RawPredictions,
    Signal,
)
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import freeze
from kd_vision.detectors.boxes import centres
from kd_vision.detectors.dense import raw_predictions_of, refine_by_grid
from kd_vision.detectors.postprocess import nms
from kd_vision.detectors.torchvision.common import (
    TorchvisionDetector,
    clipped,
    decode_deltas,
    dense_layout,
    family_targets,
    labelled_images,
)

_SMALLEST_LOGARITHM = -1e-30
_SMALLEST_SSD = 268
"""Least side for which the last map of SSD300, whose convolutions have no padding, has a pixel."""


@dataclass(frozen=True, slots=True)
class ForwardState:
    """Outputs of one run of the network.

    Attributes:
        maps: the pyramid by level.
        outputs: of the head in float32, by torchvision's names, (B, A, ...).
        anchors: (A, 4) corners in input pixels.
        counts: rows of each level.
        strides: (A,) nominal stride of each row's level.
        size: H and W.
    """

    maps: dict[str, Tensor]
    outputs: dict[str, Tensor]
    anchors: Tensor
    counts: tuple[int, ...]
    strides: Tensor
    size: tuple[int, int]

    @property
    def centres(self) -> Tensor:
        """(A, 2) centre of each anchor."""
        return centres(self.anchors)


class OneStageDetector(TorchvisionDetector):
    """A dense head; see `TorchvisionDetector` for the arguments."""

    _first_level = 3
    _size_multiple = 32

    def _describe(self) -> DetectorSpec:
        widths = self._widths()
        levels = [f"P{self._first_level + step}" for step in range(len(widths))]
        return DetectorSpec(
            family="torchvision",
            name=self.arch.model,
            classes=self.arch.classes,
            level_channels=dict(zip(levels, widths, strict=True)),
            level_strides={level: 2 ** (self._first_level + step) for step, level in enumerate(levels)},
            provides=frozenset({"features", "grid", "regions", "detections"}),
            size_multiple=self._size_multiple,
            parameters=sum(p.numel() for p in self.net.parameters()),
            level_anchors=dict(zip(levels, self._generator.num_anchors_per_location(), strict=True)),
        )

    @property
    def _generator(self) -> Any:
        return self.net.anchor_generator

    def _widths(self) -> list[int]:
        """Channels of each level."""
        return [self.net.backbone.out_channels] * len(self.net.anchor_generator.sizes)

    @abstractmethod
    def _boxes(self, state: ForwardState) -> Tensor:
        """Return the decoded boxes, (B, A, 4)."""

    @abstractmethod
    def _scores(self, state: ForwardState) -> Tensor:
        """Return the scores by which inference ranks, (B, A, K) in [0, 1]."""

    @abstractmethod
    def _logits(self, state: ForwardState) -> Tensor:
        """Return (B, A, K) whose sigmoid are the scores, differentiable."""

    @abstractmethod
    def _match(self, state: ForwardState, boxes_xyxy: Tensor) -> Tensor:
        """Return (A,) index of each row's box among (M, 4), M above 0; `UNMATCHED` or `IGNORED` for rows without."""

    def _compute_loss(
        self, state: ForwardState, outputs: dict[str, Tensor], truth: list[dict[str, Tensor]], matched: list[Tensor]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.net.head.compute_loss(truth, outputs, [state.anchors] * len(truth), matched)
        return losses

    def _raw_predictions(self, state: ForwardState) -> RawPredictions:
        return raw_predictions_of(self._grid(state))

    def _quality(self, state: ForwardState, index: Tensor, pseudo_labels: PseudoLabels) -> Tensor:
        """Return (B, A) quality of each match; 1 for rules that do not define one."""
        return torch.ones(index.shape, device=index.device)

    def _hard_negatives(self, state: ForwardState, index: Tensor) -> Tensor:
        """Return (B, A) matches in which the rows that the loss leaves out are `IGNORED`."""
        return index

    def forward(
        self,
        images: Tensor,
        targets: Targets | None = None,
        labelled: Tensor | None = None,
        signals: frozenset[Signal] = frozenset(),
    ) -> DetectorOutput:
        """See `Detector.forward`."""
        state = self._run(images)
        grid = cache(partial(self._grid, state))
        with_boxes, with_regions = "detections" in signals, "regions" in signals
        return DetectorOutput(
            task_losses={} if targets is None else self._task_losses(state, targets, labelled),
            features=state.maps if "features" in signals else {},
            grids={ONE_TO_MANY: grid()} if "grid" in signals else {},
            branch_weights={ONE_TO_MANY: 1.0},
            postprocess=partial(self._postprocess, state) if with_boxes else None,
            assign=partial(self._assign, state) if with_boxes else None,
            raw_predictions=partial(self._raw_predictions, state) if with_regions else None,
            refine_regions=(lambda boxes: refine_by_grid(grid(), boxes)) if with_regions else None,
        )

    def raw_outputs(self, images: Tensor) -> Any:
        """See `Detector.raw_outputs`."""
        return self.net.head(list(self._maps(images).values()))

    def export_module(self, nms_free: bool | None = None) -> nn.Module:
        """See `Detector.export_module`; the boxes are clipped to the image, as torchvision's are."""
        twin = copy.deepcopy(self).float().cpu()
        freeze(twin)
        return _Dense(twin)

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return final boxes before NMS, (B, A, 4) corners within the image, and scores, (B, A, K)."""
        state = self._run(images)
        return clipped(self._boxes(state), *state.size), self._scores(state)

    def _run(self, images: Tensor) -> ForwardState:
        maps = self._maps(images)
        outputs = {name: value.float() for name, value in self.net.head(list(maps.values())).items()}
        anchors = self._anchors(images, maps)
        each = self.spec.level_anchors
        counts = tuple(int(f.shape[-2]) * int(f.shape[-1]) * each[level] for level, f in maps.items())
        strides = [anchors.new_full((n,), s) for n, s in zip(counts, self.spec.level_strides.values(), strict=True)]
        size = int(images.shape[-2]), int(images.shape[-1])
        return ForwardState(maps, outputs, anchors, counts, torch.cat(strides), size)

    def _grid(self, state: ForwardState) -> GridPredictions:
        return GridPredictions(self._logits(state), self._boxes(state), state.centres, state.strides)

    @torch.no_grad()
    def _postprocess(self, state: ForwardState, options: PredictOptions) -> BatchDetections:
        return nms(clipped(self._boxes(state), *state.size), self._scores(state), options)

    def _task_losses(self, state: ForwardState, targets: Targets, labelled: Tensor | None) -> dict[str, Tensor]:
        """Compute torchvision's own losses over the labelled images."""
        kept = labelled_images(labelled, len(state.outputs["cls_logits"]), state.anchors.device)
        if not len(kept):
            return {}
        truth = family_targets(targets, kept)
        matched = [self._match_or_none(state, each["boxes"]) for each in truth]
        outputs = {name: value[kept] for name, value in state.outputs.items()}
        return self._compute_loss(state, outputs, truth, matched)

    def _assign(self, state: ForwardState, pseudo_labels: PseudoLabels) -> tuple[AssignResult, ...]:
        """Assign boxes to rows by the rule of the head's own loss."""
        images = range(len(state.outputs["cls_logits"]))
        with torch.no_grad():
            index = torch.stack([self._match_image(state, pseudo_labels, image) for image in images])
            index = self._hard_negatives(state, index)
            quality = self._quality(state, index, pseudo_labels)
        return (AssignResult(self._raw_predictions(state), index, quality),)

    def _match_image(self, state: ForwardState, pseudo_labels: PseudoLabels, image: int) -> Tensor:
        """Return (A,): index in the whole of `pseudo_labels` of each row's box in one image."""
        of_image = (pseudo_labels.image_index == image).nonzero()[:, 0]
        matched = self._match_or_none(state, pseudo_labels.boxes_xyxy[of_image])
        return torch.where(matched >= 0, of_image[matched.clamp(min=0)], matched) if len(of_image) else matched

    @torch.no_grad()
    def _match_or_none(self, state: ForwardState, boxes_xyxy: Tensor) -> Tensor:
        if not len(boxes_xyxy):
            return torch.full((len(state.anchors),), UNMATCHED, dtype=torch.int64, device=state.anchors.device)
        return self._match(state, boxes_xyxy.float())


class RetinaNetDetector(OneStageDetector):
    """RetinaNet: nine anchors at each point, a sigmoid for each class, focal loss."""

    def _boxes(self, state: ForwardState) -> Tensor:
        return decode_deltas(state.outputs["bbox_regression"], state.anchors, self.net.box_coder)

    def _logits(self, state: ForwardState) -> Tensor:
        return state.outputs["cls_logits"][..., 1:]

    def _scores(self, state: ForwardState) -> Tensor:
        return self._logits(state).sigmoid()

    def _match(self, state: ForwardState, boxes_xyxy: Tensor) -> Tensor:
        """Match by IoU with the anchors; torchvision's codes for no box are `UNMATCHED` and `IGNORED`."""
        matched: Tensor = self.net.proposal_matcher(box_iou(boxes_xyxy, state.anchors))
        return matched


class FcosDetector(OneStageDetector):
    """FCOS: points instead of anchors, a sigmoid for each class, and one for the centre-ness.

    The score of a class is sqrt(sigmoid(class) * sigmoid(centre-ness)); the logits of the grid are those with this
    sigmoid. The points are torchvision's: multiples of the stride, half a stride up and left of those of other
    implementations.
    """

    def _boxes(self, state: ForwardState) -> Tensor:
        boxes: Tensor = self.net.box_coder.decode(state.outputs["bbox_regression"], state.anchors)
        return boxes

    def _logits(self, state: ForwardState) -> Tensor:
        return geometric_mean_logit(state.outputs["cls_logits"][..., 1:], state.outputs["bbox_ctrness"])

    def _scores(self, state: ForwardState) -> Tensor:
        return (state.outputs["cls_logits"][..., 1:].sigmoid() * state.outputs["bbox_ctrness"].sigmoid()).sqrt()

    def _match(self, state: ForwardState, boxes_xyxy: Tensor) -> Tensor:
        return sample_centres(state.anchors, state.counts, boxes_xyxy, self.net.center_sampling_radius)

    def _quality(self, state: ForwardState, index: Tensor, pseudo_labels: PseudoLabels) -> Tensor:
        """Return the root of the centre-ness: the score of a perfect head at a point of a box of score 1."""
        quality = torch.zeros(index.shape, device=index.device)
        image, row = (index >= 0).nonzero(as_tuple=True)
        boxes = pseudo_labels.boxes_xyxy[index[image, row]].float()
        points = state.centres[row]
        near, far = points - boxes[:, :2], boxes[:, 2:] - points
        quality[image, row] = (torch.minimum(near, far) / torch.maximum(near, far)).prod(dim=1).pow(0.25)
        return quality


class SsdDetector(OneStageDetector):
    """SSD and SSDLite: default boxes in several shapes, a softmax over the classes and background.

    Map sizes do not halve exactly from level to level; the names and strides of the levels are nominal.
    """

    def _describe(self) -> DetectorSpec:
        # SSDLite starts at half the resolution; SSD300's first poolings halve a side of 300 twice.
        self._first_level, self._size_multiple = (3, 4) if self.arch.parts.kind == "ssd" else (4, 32)
        return super()._describe()

    def _widths(self) -> list[int]:
        blocks = self.net.head.classification_head.module_list
        return [next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d)) for block in blocks]

    def _run(self, images: Tensor) -> ForwardState:
        if self.arch.parts.kind == "ssd" and min(images.shape[-2:]) < _SMALLEST_SSD:
            raise RequestError(
                f"{self.arch.model}: images of {images.shape[-1]}x{images.shape[-2]} pixels are too small for its "
                f"last level; use an image_size of {_SMALLEST_SSD} or more (it is designed for 300)"
            )
        return super()._run(images)

    def _boxes(self, state: ForwardState) -> Tensor:
        return decode_deltas(state.outputs["bbox_regression"], state.anchors, self.net.box_coder)

    def _scores(self, state: ForwardState) -> Tensor:
        return state.outputs["cls_logits"].softmax(dim=-1)[..., 1:]

    def _logits(self, state: ForwardState) -> Tensor:
        return one_against_rest(state.outputs["cls_logits"])[..., 1:]

    def _raw_predictions(self, state: ForwardState) -> RawPredictions:
        logits = state.outputs["cls_logits"]
        return RawPredictions(logits[..., 1:], self._boxes(state), state.centres[None], background=logits[..., 0])

    def _match(self, state: ForwardState, boxes_xyxy: Tensor) -> Tensor:
        """Match by IoU with the default boxes; each box is matched with at least its best fitting one."""
        matched: Tensor = self.net.proposal_matcher(box_iou(boxes_xyxy, state.anchors))
        return matched

    def _compute_loss(
        self, state: ForwardState, outputs: dict[str, Tensor], truth: list[dict[str, Tensor]], matched: list[Tensor]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.net.compute_loss(truth, outputs, [state.anchors] * len(truth), matched)
        return losses

    def _hard_negatives(self, state: ForwardState, index: Tensor) -> Tensor:
        """Keep the background rows of highest loss, three for each row with a box; the rest are `IGNORED`."""
        background_loss = -state.outputs["cls_logits"].log_softmax(dim=-1)[..., 0]
        loss = background_loss.masked_fill(index != UNMATCHED, float("-inf"))
        rank = loss.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        count = self.net.neg_to_pos_ratio * (index >= 0).sum(dim=1, keepdim=True)
        return index.masked_fill((index == UNMATCHED) & (rank >= count), IGNORED)


class _Dense(nn.Module):
    """Images to (B, 4 + K, A), ready to trace."""

    def __init__(self, detector: OneStageDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        return dense_layout(*self.detector.dense(images))


def geometric_mean_logit(first: Tensor, second: Tensor) -> Tensor:
    """Return the logit of sqrt(sigmoid(first) * sigmoid(second)), computed in log space.

    With l = (log sigmoid(first) + log sigmoid(second)) / 2 it is l - log(1 - e^l).
    """
    mean = (functional.logsigmoid(first) + functional.logsigmoid(second)) / 2
    return mean - _log_complement(mean)


def one_against_rest(logits: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of each column's softmax p, z_c - logsumexp of the others; (..., K) to (..., K).

    For p near 1, 1 - p would be lost in rounding: for the largest column the others are summed instead.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    top = logits.argmax(dim=-1, keepdim=True)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, top, True)
    rest = logits.masked_fill(is_top, float("-inf")).logsumexp(dim=-1, keepdim=True)
    log_prob = (logits - total).masked_fill(is_top, -1.0)  # any value that keeps the branch not taken finite
    return torch.where(is_top, logits - rest, log_prob - _log_complement(log_prob))


def _log_complement(logarithm: Tensor) -> Tensor:
    """Return log(1 - e^l) of l below 0."""
    return torch.log(-torch.expm1(logarithm.clamp(max=_SMALLEST_LOGARITHM)))


@torch.no_grad()
def sample_centres(anchors: Tensor, counts: Sequence[int], boxes_xyxy: Tensor, radius: float) -> Tensor:
    """Assign boxes to points by the rule of FCOS.

    A point of stride s is matched with a box if it lies in it, closer than radius * s to its centre in both directions,
    and the farthest side is between 4 s and 8 s away (no lower bound on the finest level, no upper on the coarsest).
    Of several boxes the smallest is taken.

    Args:
        anchors: (A, 4) squares of the stride's size around the points.
        counts: points of each level, fine to coarse.
        boxes_xyxy: (M, 4), M above 0.
        radius: in strides.

    Returns:
        (A,) index of the box, `UNMATCHED` for points without one.

    Source: Tian et al., FCOS (arXiv:2006.09214), with the ranges of the torchvision package.
    """
    points = centres(anchors)[:, None]
    stride = (anchors[:, 2] - anchors[:, 0])[:, None]
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    sides = torch.cat((points - low, high - points), dim=-1)
    is_central = (points - centres(boxes_xyxy)).abs().amax(dim=-1) < radius * stride
    least, most = 4.0 * stride, 8.0 * stride
    least[: counts[0]] = 0.0
    most[len(most) - counts[-1] :] = float("inf")
    farthest = sides.amax(dim=-1)
    fits = is_central & (sides.amin(dim=-1) > 0) & (farthest > least) & (farthest < most)
    area = (high - low).prod(dim=-1).expand_as(farthest).masked_fill(~fits, float("inf"))
    smallest, box = area.min(dim=1)
    return box.masked_fill(smallest.isinf(), UNMATCHED)
