"""What a detector says: final detections, and the channels a loss can learn from.

Shapes: B images, A rows of a head (grid points, anchors, regions, queries), K classes, R bins per box side,
M boxes, N boxes handed in, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from kd_vision.core.batch import PseudoLabels

Signal = Literal["features", "grid", "regions", "detections"]
ONE_TO_MANY = "one_to_many"
ONE_TO_ONE = "one_to_one"
UNMATCHED, IGNORED = -1, -2


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How dense predictions become final boxes; the defaults are those of COCO evaluation.

    Attributes:
        score_threshold: boxes below are dropped.
        nms_iou: overlap above which the weaker box of a class is dropped (heads that need NMS).
        max_detections: boxes kept per image, best first.
    """

    score_threshold: float = 0.001
    nms_iou: float = 0.7
    max_detections: int = 300


@dataclass(frozen=True, slots=True)
class Detections:
    """Final boxes of one image, best score first.

    Attributes:
        boxes_xyxy: (M, 4) float32; the frame (original or input pixels) is the producer's promise.
        scores: (M,) float32 in [0, 1].
        labels: (M,) int64, 0-based contiguous class.
        class_probs: (M, K) float32 where the detector has them.
        ignore: (M,) bool, see `PseudoLabels`; None: no box is to be ignored.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_probs: npt.NDArray[np.float32] | None = None
    ignore: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes_xyxy.shape != (count, 4) or self.labels.shape != (count,):
            raise ValueError(
                f"detections do not fit: boxes {self.boxes_xyxy.shape}, scores {self.scores.shape}, "
                f"labels {self.labels.shape}"
            )
        for name in ("class_probs", "ignore"):
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{name} {values.shape} do not fit {count} boxes")

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Detections:
        """Return the boxes that `chosen` picks."""
        return Detections(
            self.boxes_xyxy[chosen],
            self.scores[chosen],
            self.labels[chosen],
            None if self.class_probs is None else self.class_probs[chosen],
            None if self.ignore is None else self.ignore[chosen],
        )

    @staticmethod
    def empty() -> Detections:
        """Return detections without any box."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class BatchDetections:
    """Final boxes of a batch on the device of the network, flat over its images.

    Attributes:
        image_index: (M,) int64, which image of the batch a box belongs to, rising.
        boxes_xyxy: (M, 4) float32, pixels of the batch tensor.
        scores: (M,) float32 in [0, 1], falling within an image.
        labels: (M,) int64, 0-based contiguous class.
        class_probs: (M, K) float32 where the detector has them.
        images: B, images without a box included.
    """

    image_index: Tensor
    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    class_probs: Tensor | None
    images: int

    def per_image(self) -> list[Detections]:
        """Move the boxes to the CPU at once and part them by image."""
        counts = np.bincount(self.image_index.cpu().numpy(), minlength=self.images)
        ends = counts.cumsum()[:-1]
        boxes, scores = (np.split(part.float().cpu().numpy(), ends) for part in (self.boxes_xyxy, self.scores))
        labels = np.split(self.labels.cpu().numpy().astype(np.int64), ends)
        probs = (
            [None] * self.images if self.class_probs is None else np.split(self.class_probs.float().cpu().numpy(), ends)
        )
        return [Detections(*parts) for parts in zip(boxes, scores, labels, probs, strict=True)]


def keep_top_class(found: Detections) -> Detections:
    """Keep of boxes with class probabilities those under the name of their likeliest class.

    Dense heads give a box once for every class they think of; as soft targets, which carry all probabilities,
    the second is the same object again.
    """
    if found.class_probs is None:
        return found
    own = found.class_probs[np.arange(len(found)), found.labels]
    first = own >= found.class_probs.max(axis=1, initial=0.0)
    return found.take(first if found.ignore is None else first | found.ignore)


def collate_pseudo_labels(found: Sequence[Detections], classes: int) -> PseudoLabels:
    """Put the detections of the images of a batch, in pixels of its tensor, into one value on the CPU.

    A detector without class probabilities is sure of the class: the score is its label's, the rest 0.

    Args:
        found: one per image.
        classes: K.
    """
    import torch

    from kd_vision.core.batch import PseudoLabels

    counts = [len(one) for one in found]
    boxes = np.concatenate([one.boxes_xyxy for one in found]) if found else np.zeros((0, 4), np.float32)
    probs = [class_probabilities(one, classes) for one in found]
    ignore = [np.zeros(len(one), np.bool_) if one.ignore is None else one.ignore for one in found]
    return PseudoLabels(
        torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        torch.from_numpy(boxes.astype(np.float32)),
        torch.from_numpy(np.concatenate(probs) if probs else np.zeros((0, classes), np.float32)),
        torch.from_numpy(np.concatenate([one.scores for one in found]) if found else np.zeros(0, np.float32)),
        torch.from_numpy(np.concatenate(ignore) if ignore else np.zeros(0, np.bool_)),
    )


def class_probabilities(found: Detections, classes: int) -> npt.NDArray[np.float32]:
    """Return (M, K) probabilities: the detector's own, else its score at its label."""
    if found.class_probs is not None:
        return found.class_probs.astype(np.float32, copy=False)
    probs = np.zeros((len(found), classes), np.float32)
    probs[np.arange(len(found)), found.labels] = found.scores
    return probs


@dataclass(frozen=True, slots=True)
class GridPredictions:
    """Dense predictions, one row per grid point (or anchor), levels concatenated fine to coarse.

    Attributes:
        logits: (B, A, K) before the sigmoid. Softmax heads give log(p / (1 - p)) of each class, with the
            background in the sum.
        boxes_xyxy: (B, A, 4) decoded, in input pixels, differentiable.
        points_xy: (A, 2) centres of the grid points in input pixels.
        strides: (A,) stride of each point's level.
        box_bins: (B, A, 4, R) logits over distances of left, top, right, bottom, in units of the
            stride; None for heads that regress directly.
    """

    logits: Tensor
    boxes_xyxy: Tensor
    points_xy: Tensor
    strides: Tensor
    box_bins: Tensor | None = None


@dataclass(frozen=True, slots=True)
class RawPredictions:
    """A head's own predictions before any selection, whatever a row stands for.

    Attributes:
        logits: (B, A, K) of the classes, before activation.
        boxes_xyxy: (B, A, 4) decoded, in input pixels; `boxes_at` has the differentiable ones.
        centres_xy: (B, A, 2) or (1, A, 2) where the row sits (grid point, centre of anchor, region or
            predicted box), in input pixels, without gradient.
        background: (B, A) logit of "no object" for softmax heads; None: sigmoid heads.
        box_bins: see `GridPredictions`; None where there are none.
        strides: (A,), with `box_bins` alone.
        decode: gives the boxes of some rows with gradient, where decoding all of them with it would cost more;
            None: `boxes_xyxy` carry the gradient.
    """

    logits: Tensor
    boxes_xyxy: Tensor
    centres_xy: Tensor
    background: Tensor | None = None
    box_bins: Tensor | None = None
    strides: Tensor | None = None
    decode: Callable[[Tensor, Tensor], Tensor] | None = None

    def boxes_at(self, image: Tensor, row: Tensor) -> Tensor:
        """Return the boxes of rows `row` of images `image`, (..., 4), differentiable."""
        return self.boxes_xyxy[image, row] if self.decode is None else self.decode(image, row)


@dataclass(frozen=True, slots=True)
class AssignResult:
    """Rows paired with boxes handed in, by the head's own rule of training.

    Attributes:
        raw_predictions: the predictions.
        matched_idx: (B, A) int64: position of the row's box among those handed in; `UNMATCHED`: none is its
            own; `IGNORED`: the rule leaves the row out (not sampled, or between the thresholds).
        quality: (B, A) float in [0, 1], how well row and box fit; scales the row's class target. 1 where
            the head's rule knows no such thing.
        stage: of the head: `one_to_many`, `proposals`, `layer 5`, ...
        weight: share of this stage in the head's own loss; those of all stages sum to 1.
        class_agnostic: the stage tells objects from background only; its K is 1.
    """

    raw_predictions: RawPredictions
    matched_idx: Tensor
    quality: Tensor
    stage: str = ONE_TO_MANY
    weight: float = 1.0
    class_agnostic: bool = False


@dataclass(frozen=True, slots=True)
class RoIPredictions:
    """What a detector makes of boxes that were handed to it.

    Attributes:
        class_probs: (B, N, K) probability of each class, without background.
        boxes_xyxy: (B, N, 4) the boxes as the detector would mend them, in input pixels.
    """

    class_probs: Tensor
    boxes_xyxy: Tensor


Postprocess = Callable[[PredictOptions], "list[Detections]"]
Assign = Callable[["PseudoLabels"], tuple[AssignResult, ...]]
RefineRegions = Callable[["Tensor"], RoIPredictions]
GetRawPredictions = Callable[[], RawPredictions]


@dataclass(frozen=True, slots=True)
class Signals:
    """What one side of a distillation loss sees.

    Attributes:
        features: pyramid maps by level, ``{"P3": (B, C, H, W)}``.
        grid: dense predictions of one branch of the head.
        pseudo_labels: the teacher's final boxes (signal `detections`).
        assign: pairs the student's rows with boxes handed in (signal `detections`).
        raw_predictions: gives the student's own predictions (signal `regions`).
        refine_regions: the teacher's view of boxes (B, N, 4) handed in (signal `regions`).
    """

    features: Mapping[str, Tensor] = field(default_factory=dict)
    grid: GridPredictions | None = None
    pseudo_labels: PseudoLabels | None = None
    assign: Assign | None = None
    raw_predictions: GetRawPredictions | None = None
    refine_regions: RefineRegions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorOutput(Signals):
    """One forward pass: the task's own losses, and the signals that were asked for.

    Everything that costs more than a view of the pass is a function.

    Attributes:
        task_losses: scalars by name (mean per image), empty without targets.
        grids: dense predictions by branch; `one_to_many` always, `one_to_one` for end-to-end heads.
        branch_weights: how much each branch counts in the detector's own loss at this moment.
        postprocess: gives final boxes per image, in input pixels, best first (signal `detections`).
    """

    task_losses: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[str, GridPredictions] = field(default_factory=dict)
    branch_weights: Mapping[str, float] = field(default_factory=dict)
    postprocess: Postprocess | None = None

    def signals(self, branch: str = ONE_TO_MANY) -> Signals:
        """Return this output with the grid of one branch of the head."""
        return replace(self, grid=self.grids.get(branch))
