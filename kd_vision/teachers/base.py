"""What every black box that looks at pixels has in common.

Shapes: B images, C channels, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import Detector, PixelPredictor
from kd_vision.detectors.postprocess import to_original


class BlackBoxDetector(ABC):
    """A `PixelPredictor` that says how it detects; the rest follows.

    Attributes:
        spec: facts about the source.
        fixed_size: the only height and width it takes; None: any multiple of `spec.size_multiple`.
    """

    spec: DetectorSpec
    fixed_size: int | None = None

    @abstractmethod
    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `PixelPredictor.detect`."""

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image."""
        found = self.detect(replace(batch, teacher_images=None).as_float().images, options)
        return [to_original(one, letterbox) for one, letterbox in zip(found, batch.letterboxes, strict=True)]

    def resolve_input_size(self, given: int | None) -> int | None:
        """Return the side of the view that the source needs where nobody names one; None: that of any image will do.

        Args:
            given: side of the images that are there anyhow, for those of its parts that name no size, which are shown
                that from now on; None: not known, they are shown the view.
        """
        return self.fixed_size

    def to(self, device: torch.device | str) -> BlackBoxDetector:
        """Move what can be moved; a file run by another library stays where it is."""
        return self


def move_to(source: Detector | PixelPredictor, device: torch.device | str) -> None:
    """Move a source, and what it is made of, to a device."""
    if isinstance(source, (Detector, BlackBoxDetector)):
        source.to(device)


def resolve_input_size(source: Detector | PixelPredictor, given: int | None) -> int | None:
    """See `BlackBoxDetector.resolve_input_size`; a detector needs none."""
    return source.resolve_input_size(given) if isinstance(source, BlackBoxDetector) else None


def fixed_size(source: Detector | PixelPredictor) -> int | None:
    """Height and width that a source insists on; None: it takes others."""
    return source.fixed_size if isinstance(source, BlackBoxDetector) else None
