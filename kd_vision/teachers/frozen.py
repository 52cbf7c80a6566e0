"""A teacher that cannot learn, whatever is done to the model around it.

Shapes: B images, C channels, H W pixels, K classes, N boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kd_vision.core.batch import ImageBatch
from kd_vision.core.label_map import LabelMap
from kd_vision.core.predictions import (
    Detections,
    DetectorOutput,
    GridPredictions,
    PredictOptions,
    RefineRegions,
    RoIPredictions,
    Signal,
    collate_pseudo_labels,
)
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import Detector, PixelPredictor, freeze
from kd_vision.detectors.postprocess import classwise_nms, drop_outside, to_pseudo_labels
from kd_vision.teachers.base import move_to

DEFAULT_TEACHER_POSTPROCESS = PredictOptions(score_threshold=0.05, nms_iou=0.6, max_detections=300)
"""What counts as said: below, a box is rather a guess, and costs the student time."""


class FrozenTeacher:
    """Whatever knows something, in eval mode without gradients, answering in the student's classes and frame.

    Deliberately no `nn.Module`: as an attribute of the training step it is in no optimiser, no
    DDP wrapper, no EMA copy and no checkpoint, and a `train()` call cannot reach it.

    Args:
        source: a detector, or a black box that looks at pixels.
        labels: from the source's classes to the student's; None: they are the same.
        image_size: side of the square that the source is shown; None: the one of the images it is given.
        options: what of its boxes counts as said.
    """

    def __init__(
        self,
        source: Detector | PixelPredictor,
        labels: LabelMap | None = None,
        image_size: int | None = None,
        options: PredictOptions = DEFAULT_TEACHER_POSTPROCESS,
    ) -> None:
        self.source = source
        self.labels = None if labels is None or labels.is_identity else labels
        self.image_size = image_size
        self.options = options
        if isinstance(source, Detector):
            freeze(source)

    @property
    def spec(self) -> DetectorSpec:
        """Facts about the teacher, as the student meets it."""
        own = self.source.spec
        if self.labels is None:
            return own
        ignored = frozenset(self.labels.teacher[position] for position in self.labels.ignored)
        return replace(own, classes=self.labels.student, missing_classes=self.labels.missing_classes, ignored=ignored)

    def follow(self, source: Detector) -> None:
        """Answer by another detector of the same kind from now on (the student's moving average)."""
        self.source = source

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the teacher; a file that another library runs stays where it is."""
        move_to(self.source, device)
        return self

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `Predictor.predict`; without the boxes of ignored classes, which claim nothing."""
        found = [self._mapped(one, options) for one in self.source.predict(batch, options)]
        return [one if one.ignore is None else one.take(~one.ignore) for one in found]

    @torch.no_grad()
    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `PixelPredictor.detect`."""
        found = [self._mapped(one, options) for one in self.source.detect(self._shown(images), options)]
        factor = np.float32(images.shape[-1] / (self.image_size or images.shape[-1]))
        return [replace(one, boxes_xyxy=one.boxes_xyxy * factor) for one in found]

    @torch.no_grad()
    def __call__(self, images: Tensor, signals: frozenset[Signal], frame: int | None = None) -> DetectorOutput:
        """Say what is asked for.

        Args:
            images: (B, C, H, W) in [0, 1], square.
            signals: nothing else is computed.
            frame: side of the square whose pixels the answers are in; None: that of `images`.
        """
        frame = frame or int(images.shape[-1])
        images = self._shown(images)
        side = int(images.shape[-1])
        if isinstance(self.source, Detector):
            output: DetectorOutput = self.source(images, signals=signals)
            postprocess = output.postprocess
        else:
            output, postprocess = DetectorOutput(), lambda options: self.source.detect(images, options)
        return self._translated(output, postprocess, signals, images, frame / side)

    def _shown(self, images: Tensor) -> Tensor:
        """Return the images at the side that the source is shown."""
        side = self.image_size or int(images.shape[-1])
        if images.shape[-1] == side:
            return images
        return functional.interpolate(images, (side, side), mode="bilinear", antialias=True)

    def _translated(
        self,
        output: DetectorOutput,
        postprocess: Callable[[PredictOptions], list[Detections]] | None,
        signals: frozenset[Signal],
        images: Tensor,
        factor: float,
    ) -> DetectorOutput:
        soft = None
        if "detections" in signals and postprocess is not None:
            height, width = images.shape[-2:]
            seen = [drop_outside(one, height, width) for one in postprocess(self.options)]
            found = [to_pseudo_labels(one, self.labels, self.options.nms_iou) for one in seen]
            soft = collate_pseudo_labels(found, len(self.spec.classes)).to(images.device).scaled(factor)
        return replace(
            output,
            grids={branch: self._grid(grid, factor) for branch, grid in output.grids.items()},
            pseudo_labels=soft,
            refine_regions=None if output.refine_regions is None else self._grade(output.refine_regions, factor),
            postprocess=None,
            assign=None,
            raw_predictions=None,
        )

    def _mapped(self, found: Detections, options: PredictOptions) -> Detections:
        """Return boxes in the student's words, every opinion kept, as a measurement wants them."""
        if self.labels is None:
            return found
        mapped = self.labels.detections(found)
        return classwise_nms(mapped, options.nms_iou) if self.labels.merges else mapped

    def _grid(self, grid: GridPredictions, factor: float) -> GridPredictions:
        logits = grid.logits if self.labels is None else self.labels.logits(grid.logits)
        if factor == 1.0:
            return replace(grid, logits=logits)
        return GridPredictions(
            logits, grid.boxes_xyxy * factor, grid.points_xy * factor, grid.strides * factor, grid.box_bins
        )

    def _grade(self, grade: RefineRegions, factor: float) -> RefineRegions:
        labels = self.labels

        @torch.no_grad()
        def graded(boxes_xyxy: Tensor) -> RoIPredictions:
            found = grade(boxes_xyxy / factor)
            probs = found.class_probs if labels is None else labels.probabilities(found.class_probs)
            return RoIPredictions(probs, found.boxes_xyxy * factor)

        return graded
