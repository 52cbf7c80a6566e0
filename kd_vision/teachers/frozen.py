"""An online teacher whose weights cannot change.

Shapes: B images, C channels, H W pixels, K classes, N boxes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch, PseudoLabels, to_channels
from kd_vision.core.label_map import LabelMap
from kd_vision.core.predictions import (
    BatchDetections,
    Detections,
    DetectorOutput,
    GridPredictions,
    PredictOptions,
    RefineRegions,
    RoIPredictions,
    Signal,
)
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import Detector, freeze
from kd_vision.detectors.resize import resize_batch
from kd_vision.teachers.base import BlackBoxDetector
from kd_vision.teachers.options import DEFAULT_TEACHER_POSTPROCESS
from kd_vision.teachers.pseudo_labels import classwise_nms, drop_outside, to_pseudo_labels


class FrozenTeacher:
    """A detector in eval mode without gradients; its signals are in the student's classes and pixels.

    Deliberately no `nn.Module`: as an attribute of the training step it is in no optimiser, DDP wrapper, EMA copy
    or checkpoint, and `train()` does not reach it.

    Args:
        source: the detector.
        labels: from the source's classes to the student's; None: they are the same.
        image_size: side of the source's square input; None: that of the given images.
        options: which of its boxes become pseudo labels.
    """

    def __init__(
        self,
        source: Detector | BlackBoxDetector,
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
        """Facts about the teacher, in the student's classes."""
        spec, labels = self.source.spec, self.labels
        if labels is None:
            return spec
        ignored = frozenset(labels.teacher[position] for position in labels.ignored)
        return replace(spec, classes=labels.student, missing_classes=labels.missing_classes, ignored=ignored)

    @property
    def score_threshold(self) -> float:
        """See `Teacher.score_threshold`."""
        return max(self.options.score_threshold, self.source.score_floor)

    def follow(self, source: Detector) -> None:
        """Replace the detector by another of the same architecture (the moving average of the student)."""
        self.source = source

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the teacher; a file run by another library stays where it is."""
        self.source.to(device)
        return self

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `Predictor.predict`; boxes of ignored classes are left out."""
        detections = self._in_student_classes(self.source.predict(batch, options), options)
        return [one if one.ignore is None else one.take(~one.ignore) for one in detections]

    @torch.no_grad()
    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `BlackBoxDetector.detect`."""
        detections = self._in_student_classes(self.source.detect(self._resized(images), options), options)
        factor = np.float32(images.shape[-1] / (self.image_size or images.shape[-1]))
        return [replace(one, boxes_xyxy=one.boxes_xyxy * factor) for one in detections]

    @torch.no_grad()
    def signals(self, batch: ImageBatch, wanted: frozenset[Signal]) -> DetectorOutput:
        """Run the source once on the teacher's view of a batch.

        Args:
            batch: images in [0, 1], square.
            wanted: no other signals are computed.

        Returns:
            Signals in the student's classes, in pixels of `batch.images`.
        """
        view = batch.images if batch.teacher_images is None else batch.teacher_images
        images = self._resized(to_channels(view, self.spec.input_channels))
        factor = batch.images.shape[-1] / images.shape[-1]
        output = self.source(images, signals=wanted)
        return replace(
            output,
            grids={branch: self._grid(grid, factor) for branch, grid in output.grids.items()},
            pseudo_labels=self._pseudo_labels(output, images, factor) if "detections" in wanted else None,
            refine_regions=None if output.refine_regions is None else self._refined(output.refine_regions, factor),
            postprocess=None,
            assign=None,
            raw_predictions=None,
        )

    def _resized(self, images: Tensor) -> Tensor:
        """Return the images at the input size of the source."""
        side = self.image_size or int(images.shape[-1])
        return resize_batch(images, side, side)

    def _pseudo_labels(self, output: DetectorOutput, images: Tensor, factor: float) -> PseudoLabels | None:
        if output.postprocess is None:
            return None
        height, width = images.shape[-2:]
        detections = drop_outside(output.postprocess(self.options), height, width)
        boxes = to_pseudo_labels(detections, self.labels, len(self.spec.classes), self.options.nms_iou)
        return boxes.scaled(factor)

    def _in_student_classes(self, detections: list[Detections], options: PredictOptions) -> list[Detections]:
        """Map the classes of boxes; unlike in pseudo labels, a box may be there once for each of several classes."""
        if self.labels is None:
            return detections
        mapped = self.labels.detections(BatchDetections.of(detections))
        return (classwise_nms(mapped, options.nms_iou) if self.labels.merges else mapped).per_image()

    def _grid(self, grid: GridPredictions, factor: float) -> GridPredictions:
        logits = grid.logits if self.labels is None else self.labels.logits(grid.logits)
        if factor == 1.0:
            return replace(grid, logits=logits)
        return GridPredictions(
            logits, grid.boxes_xyxy * factor, grid.points_xy * factor, grid.strides * factor, grid.box_bins
        )

    def _refined(self, refine_regions: RefineRegions, factor: float) -> RefineRegions:
        labels = self.labels

        @torch.no_grad()
        def refined(boxes_xyxy: Tensor) -> RoIPredictions:
            regions = refine_regions(boxes_xyxy / factor)
            probs = regions.class_probs if labels is None else labels.probabilities(regions.class_probs)
            return RoIPredictions(probs, regions.boxes_xyxy * factor)

        return refined
