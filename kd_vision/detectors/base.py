"""The contract of a detector: what a family's adapter turns a third-party model into.

Shapes: B images, C channels, H W input pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from kd_vision.core.batch import ImageBatch, Targets
from kd_vision.core.predictions import Detections, DetectorOutput, PredictOptions, Signal
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.postprocess import to_original

__all__ = [
    "Detector",
    "PredictOptions",
    "Predictor",
    "channels_last",
    "contiguous",
    "freeze",
    "recorded_input_size",
]

Net = TypeVar("Net", bound=nn.Module)


class Predictor(Protocol):
    """Anything that gives final boxes: a model, an ONNX file, a predictions JSON."""

    @property
    def spec(self) -> DetectorSpec:
        """Facts about it."""
        ...

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image."""
        ...


class Detector(nn.Module, ABC):
    """A torch detector behind one face. The adapter owns normalisation, decoding and labels.

    Attributes:
        spec: facts about it.
        trained_size: input side that its file says it was trained at; None: it says nothing, or there is no file.
        fixed_size: the only height and width it takes; None: any multiple of `spec.size_multiple`.
        score_floor: no box below this score is ever given.
    """

    spec: DetectorSpec
    trained_size: int | None = None
    fixed_size: int | None = None
    score_floor: float = 0.0

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        targets: Targets | None = None,
        labelled: Tensor | None = None,
        signals: frozenset[Signal] = frozenset(),
    ) -> DetectorOutput:
        """Run the network once.

        Args:
            images: (B, C, H, W) float RGB in [0, 1].
            targets: ground truth; None: no task losses.
            labelled: (B,) bool; False: the image takes no part in the task losses.
            signals: what to give beside the task losses; nothing else is computed. `detections` asks for
                `postprocess` and, of a student, `assign`; `regions` for `refine_regions` and `raw_predictions`.
        """

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image.

        The batch carries a letterbox per image; images are float in [0, 1] or uint8.
        """
        images = replace(batch, teacher_images=None).as_float().images
        found = self.detect(images, options)
        return [to_original(one, letterbox) for one, letterbox in zip(found, batch.letterboxes, strict=True)]

    @torch.no_grad()
    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of `images`, (B, C, H, W) in [0, 1].

        Always in evaluation mode, and on the detector's device; the mode is as before afterwards.
        """
        was_training = self.training
        self.eval()  # a prediction moves no statistics and does not depend on its neighbours in the batch
        images = images.to(next(self.parameters()).device)
        output: DetectorOutput = self(images, signals=frozenset({"detections"}))
        self.train(was_training)
        assert output.postprocess is not None
        return output.postprocess(options)

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

    def fuse(self) -> None:
        """Become as fast as the family allows without saying anything else; it can teach no gradient afterwards.

        Families that have nothing to gain ignore it.
        """

    def resolve_input_size(self, given: int | None) -> int | None:
        """Return the side that it needs where nobody names one; None: that of any image will do."""
        return self.fixed_size

    def set_progress(self, done: float) -> None:
        """Tell the detector how much of training is done, in [0, 1], once an epoch.

        Heads whose own loss changes over training use it; others ignore it.
        """


def recorded_input_size(said: object) -> int | None:
    """Return the input side that a `.pt` file's note gives, a number or its digits; None: it gives none, or two."""
    return int(str(said)) if str(said).isdigit() else None


def freeze(module: nn.Module) -> None:
    """Put a network in eval mode, without gradients of its weights."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def channels_last(net: Net) -> Net:
    """Lay the weights of convolutions out channels last, in which CPUs and GPUs are faster; only rounding differs.

    Left as they are where there is an Apple GPU, on which this was never tried.
    """
    return net if torch.backends.mps.is_available() else net.to(memory_format=torch.channels_last)


def contiguous(net: Net) -> Net:
    """Undo `channels_last`, for files that others read."""
    return net.to(memory_format=torch.contiguous_format)
