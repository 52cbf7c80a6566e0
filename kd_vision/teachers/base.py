"""What a teacher is, and what every black box has in common.

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
    """What gives signals about a batch, in the student's classes and pixels."""

    @property
    def spec(self) -> DetectorSpec:
        """Facts about the teacher, as the student meets it; `provides` are the signals it can give."""
        ...

    @property
    def image_size(self) -> int | None:
        """Side of the square it is run on; None: that of the images it is given, or none at all."""
        ...

    @property
    def score_threshold(self) -> float:
        """Least score of its boxes: where it has none above, it may well have seen something."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move what can be moved."""
        ...

    def signals(self, batch: ImageBatch, wanted: frozenset[Signal]) -> DetectorOutput:
        """Return the signals that are wanted, in pixels of `batch.images`; nothing else is computed."""
        ...


class BlackBoxDetector(ABC):
    """A detector that gives final boxes and nothing else: an ONNX file, an ensemble, tiles around another.

    Attributes:
        spec: facts about it.
        fixed_size: the only height and width it takes; None: any multiple of `spec.size_multiple`.
        score_floor: no box below this score is ever given.
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
        """Return what a loss can learn from: final boxes; see `Detector.forward`."""

        def postprocess(options: PredictOptions) -> BatchDetections:
            return BatchDetections.of(self.detect(images, options)).to(images.device)

        return DetectorOutput(postprocess=postprocess)

    def resolve_input_size(self, given: int | None) -> int | None:
        """Return the side of the square that it needs where nobody names one; None: that of any image will do.

        Args:
            given: side of the images that are there anyhow, for those of its parts that name no size, which are run
                on that from now on; None: not known, they are run on the whole square.
        """
        return self.fixed_size

    def to(self, device: torch.device | str) -> BlackBoxDetector:
        """Move what can be moved; a file run by another library stays where it is."""
        return self
