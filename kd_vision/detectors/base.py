"""The contract of a detector: what a family's adapter turns a third-party model into.

Shapes: B images, C channels, H W input pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from kd_vision.core.batch import ImageBatch, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Channel, Detections, DetectorOutput
from kd_vision.core.spec import DetectorSpec


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


class Predictor(Protocol):
    """Anything that gives final boxes: a model, an ONNX file, a predictions JSON."""

    spec: DetectorSpec

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image."""
        ...


class Detector(nn.Module, ABC):
    """A torch detector behind one face. The adapter owns normalisation, decoding and labels."""

    spec: DetectorSpec

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        targets: Targets | None = None,
        labelled: Tensor | None = None,
        channels: frozenset[Channel] = frozenset(),
    ) -> DetectorOutput:
        """Run the network once.

        Args:
            images: (B, C, H, W) float RGB in [0, 1].
            targets: ground truth; None: no task losses.
            labelled: (B,) bool; False: the image takes no part in the task losses.
            channels: what to give beside the task losses; nothing else is computed.
        """

    @abstractmethod
    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image.

        Always in evaluation mode, and on the detector's device; the mode is as before afterwards. The
        batch carries a letterbox per image; images are float in [0, 1] or uint8.
        """

    @abstractmethod
    def export_module(self, nms_free: bool | None = None) -> nn.Module:
        """Return a module (B, C, H, W) in [0, 1] -> decoded predictions, ready to trace.

        Layout of dense heads: (B, 4 + K, A), boxes as centre x, centre y, width, height in input
        pixels, then class scores; of end-to-end heads: (B, N, 6) x1 y1 x2 y2 score label.

        Args:
            nms_free: for a head with both branches, which one to export; None: the head's own.
        """

    @abstractmethod
    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the bare detector so that the family's own loader opens it."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return plain values from which the family's `rebuild` makes the same detector, without weights."""

    def set_progress(self, done: float) -> None:
        """Tell the detector how much of training is done, in [0, 1], once an epoch.

        Heads whose own loss changes over training use it; others ignore it.
        """

    def reordered(self, classes: tuple[str, ...]) -> Detector:
        """Return this detector answering in another order of its own classes (a teacher only).

        Raises:
            RequestError: the family cannot do that.
        """
        raise RequestError(
            f"{self.spec.name}: its classes stand in another order than the data's; give the data "
            f"descriptor 'classes: [{', '.join(self.spec.classes)}]'"
        )
