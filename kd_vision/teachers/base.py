"""The protocol of teachers, and the base class of detectors that return final boxes only.

Shapes: B images, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from kd_vision.core.batch import ImageBatch
from kd_vision.core.predictions import BatchDetections, Detections, DetectorOutput, PredictOptions, Signal
from kd_vision.core.spec import DetectorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self


class Teacher(Protocol):
    """Returns signals for a batch, in the student's classes and pixels."""

    @property
    def spec(self) -> DetectorSpec:
        """Facts about the teacher, in the student's classes; `provides` are its signals."""
        ...

    @property
    def image_size(self) -> int | None:
        """Side of its square input; None: that of the given images, or the teacher has no input."""
        ...

    @property
    def score_threshold(self) -> float:
        """Score below which its boxes are dropped; there may be objects of lower scores."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the teacher to a device; a file run by another library stays where it is."""
        ...

    def signals(self, batch: ImageBatch, wanted: frozenset[Signal]) -> DetectorOutput:
        """Return the wanted signals, in pixels of `batch.images`; no others are computed."""
        ...


class BlackBoxDetector(ABC):
    """A detector that returns final boxes only: an ONNX file, an ensemble, or a detector run on tiles.

    Attributes:
        spec: facts about it.
        fixed_size: the only height and width it takes; None: any multiple of `spec.size_multiple`.
        score_floor: boxes below this score are never returned, whatever the options.
    """

    spec: DetectorSpec
    fixed_size: int | None = None
    score_floor: float = 0.0

    @abstractmethod
    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of `images`.

        Args:
            images: (B, C, H, W) float RGB in [0, 1].
            options: thresholds.
        """

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image."""
        detections = self.detect(replace(batch, teacher_images=None).as_float().images, options)
        pairs = zip(detections, batch.letterboxes, strict=True)
        return [replace(one, boxes_xyxy=letterbox.invert(one.boxes_xyxy)) for one, letterbox in pairs]

    def __call__(self, images: Tensor, signals: frozenset[Signal] = frozenset()) -> DetectorOutput:
        """Return the signal `detections`; see `Detector.forward`."""

        def postprocess(options: PredictOptions) -> BatchDetections:
            return BatchDetections.of(self.detect(images, options)).to(images.device)

        return DetectorOutput(postprocess=postprocess)

    def resolve_input_size(self, default_size: int | None) -> int | None:
        """Return the side of its square input where the config has none; None: any size.

        Args:
            default_size: input side, from now on, of those members of an ensemble that have no size; None: not
                known, they run on the ensemble's input.
        """
        return self.fixed_size

    def to(self, device: torch.device | str) -> BlackBoxDetector:
        """Move the detector to a device; a file run by another library stays where it is."""
        return self
