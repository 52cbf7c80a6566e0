"""Outputs of a detector: final detections, and the signals that distillation losses use.

Shapes: B images, A rows of a head (grid points, anchors, regions, queries), K classes, R bins per box side,
M boxes, N given boxes, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
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
        boxes_xyxy: (M, 4) float32; each producer documents the frame (original or input pixels).
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
        ignore: (M,) bool, see `PseudoLabels`; None: no box is to be ignored.
    """

    image_index: Tensor
    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    class_probs: Tensor | None
    images: int
    ignore: Tensor | None = None

    @classmethod
    def of(cls, detections: Sequence[Detections]) -> BatchDetections:
        """Gather the detections of images into one value on the CPU; one box list per image.

        Where some images have class probabilities, boxes of the others get their score at their label.
        """
        import torch

        def gathered(parts: Sequence[npt.NDArray[Any]], empty: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts) if parts else empty)

        counts = [len(one) for one in detections]
        classes = max((one.class_probs.shape[1] for one in detections if one.class_probs is not None), default=0)
        probs = [class_probabilities(one, classes) for one in detections] if classes else []
        marks = [one.ignore if one.ignore is not None else np.zeros(len(one), np.bool_) for one in detections]
        return cls(
            torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            gathered([one.boxes_xyxy.astype(np.float32) for one in detections], np.zeros((0, 4), np.float32)),
            gathered([one.scores for one in detections], np.zeros(0, np.float32)),
            gathered([one.labels for one in detections], np.zeros(0, np.int64)),
            gathered(probs, np.zeros(0)) if probs else None,
            len(counts),
            gathered(marks, np.zeros(0, np.bool_)) if any(one.ignore is not None for one in detections) else None,
        )

    def to(self, device: torch.device | str) -> BatchDetections:
        """Return the same boxes on `device`."""
        moved = {name: getattr(self, name) for name in ("image_index", "boxes_xyxy", "scores", "labels")}
        moved |= {name: value for name in ("class_probs", "ignore") if (value := getattr(self, name)) is not None}
        return replace(self, **{name: tensor.to(device) for name, tensor in moved.items()})

    def take(self, chosen: Tensor) -> BatchDetections:
        """Return the boxes that `chosen`, (M,) bool or (m,) int64, picks."""
        probs = None if self.class_probs is None else self.class_probs[chosen]
        ignore = None if self.ignore is None else self.ignore[chosen]
        return BatchDetections(
            self.image_index[chosen],
            self.boxes_xyxy[chosen],
            self.scores[chosen],
            self.labels[chosen],
            probs,
            self.images,
            ignore,
        )

    def per_image(self) -> list[Detections]:
        """Return the boxes of each image on the CPU, moved there all at once."""
        ends = np.bincount(self.image_index.cpu().numpy(), minlength=self.images).cumsum()

        def split(values: Tensor) -> list[npt.NDArray[Any]]:
            return np.split(values.cpu().numpy(), ends)[: self.images]

        none = [None] * self.images
        boxes, scores = split(self.boxes_xyxy.float()), split(self.scores.float())
        probs = none if self.class_probs is None else split(self.class_probs.float())
        marks = none if self.ignore is None else split(self.ignore)
        rows = zip(boxes, scores, split(self.labels.long()), probs, marks, strict=True)
        return [Detections(*parts) for parts in rows]

    def probabilities(self, classes: int) -> Tensor:
        """Return (M, K) class probabilities; of a detector without them, the score at the label."""
        if self.class_probs is not None:
            return self.class_probs
        dense = self.scores.new_zeros((len(self.scores), classes))
        return dense.scatter_(1, self.labels[:, None], self.scores[:, None])


def class_probabilities(detections: Detections, classes: int) -> npt.NDArray[np.float32]:
    """Return (M, K) class probabilities; of a detector without them, the score at the label."""
    if detections.class_probs is not None:
        return detections.class_probs.astype(np.float32, copy=False)
    probs = np.zeros((len(detections), classes), np.float32)
    probs[np.arange(len(detections)), detections.labels] = detections.scores
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
    """Predictions of a head before any selection; a row is a grid point, anchor, region or query.

    Attributes:
        logits: (B, A, K) of the classes, before activation.
        boxes_xyxy: (B, A, 4) decoded, in input pixels; `boxes_at` has the differentiable ones.
        centres_xy: (B, A, 2) or (1, A, 2) where the row sits (grid point, centre of anchor, region or
            predicted box), in input pixels, without gradient.
        background: (B, A) logit of "no object" for softmax heads; None: sigmoid heads.
        box_bins: see `GridPredictions`; None where there are none.
        strides: (A,), only with `box_bins`.
        decode: decodes the boxes of some rows with gradient, where decoding all rows would cost more; None:
            `boxes_xyxy` carry the gradient.
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
    """Assignment of given boxes to the rows of a head, by the assigner of the head's own training.

    Attributes:
        raw_predictions: the predictions.
        matched_idx: (B, A) int64: index of the row's box among the given ones; `UNMATCHED`: background;
            `IGNORED`: the assigner leaves the row out (not sampled, or between the thresholds).
        quality: (B, A) float in [0, 1], how well row and box fit; scales the row's class target. 1 where the
            assigner has no such measure.
        stage: of the head: `one_to_many`, `proposals`, `layer 5`, ...
        weight: share of this stage in the head's own loss; those of all stages sum to 1.
        class_agnostic: the stage only separates objects from background; its K is 1.
    """

    raw_predictions: RawPredictions
    matched_idx: Tensor
    quality: Tensor
    stage: str = ONE_TO_MANY
    weight: float = 1.0
    class_agnostic: bool = False


@dataclass(frozen=True, slots=True)
class RoIPredictions:
    """Predictions of the second stage of a detector for given boxes.

    Attributes:
        class_probs: (B, N, K) probability of each class, without background.
        boxes_xyxy: (B, N, 4) the refined boxes, in input pixels.
    """

    class_probs: Tensor
    boxes_xyxy: Tensor


Postprocess = Callable[[PredictOptions], BatchDetections]
Assign = Callable[["PseudoLabels"], tuple[AssignResult, ...]]
RefineRegions = Callable[["Tensor"], RoIPredictions]
GetRawPredictions = Callable[[], RawPredictions]


@dataclass(frozen=True, slots=True)
class Signals:
    """Input of a distillation loss from the student or from the teacher.

    Attributes:
        features: pyramid maps by level, ``{"P3": (B, C, H, W)}``.
        grid: dense predictions of one branch of the head.
        pseudo_labels: the teacher's final boxes (signal `detections`).
        assign: assigns given boxes to the student's rows (signal `detections`).
        raw_predictions: returns the student's predictions (signal `regions`).
        refine_regions: the teacher's class probabilities and refined boxes of given boxes (B, N, 4) (signal
            `regions`).
    """

    features: Mapping[str, Tensor] = field(default_factory=dict)
    grid: GridPredictions | None = None
    pseudo_labels: PseudoLabels | None = None
    assign: Assign | None = None
    raw_predictions: GetRawPredictions | None = None
    refine_regions: RefineRegions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorOutput(Signals):
    """One forward pass: the losses of the task, and the requested signals.

    A signal that needs further computation is a function.

    Attributes:
        task_losses: scalars by name (mean per image), empty without targets.
        grids: dense predictions by branch; `one_to_many` always, `one_to_one` for end-to-end heads.
        branch_weights: current weight of each branch in the detector's own loss.
        postprocess: returns final boxes per image, in input pixels, best first (signal `detections`).
    """

    task_losses: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[str, GridPredictions] = field(default_factory=dict)
    branch_weights: Mapping[str, float] = field(default_factory=dict)
    postprocess: Postprocess | None = None

    def signals(self, branch: str = ONE_TO_MANY) -> Signals:
        """Return this output with the grid of one branch of the head."""
        return replace(self, grid=self.grids.get(branch))
