"""The contract of a detector: what the adapter of a family makes of a third-party model.

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

__all__ = [
    "Detector",
    "PredictOptions",
    "Predictor",
    "channels_last",
    "contiguous",
    "freeze",
]

Net = TypeVar("Net", bound=nn.Module)


class Predictor(Protocol):
    """Anything that predicts final boxes: a model, an ONNX file, a predictions JSON."""

    @property
    def spec(self) -> DetectorSpec:
        """Facts about it."""
        ...

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image."""
        ...


class Detector(nn.Module, ABC):
    """A torch detector of any family. The adapter does normalisation, decoding and labels.

    Attributes:
        spec: facts about it.
        trained_size: input side that its file records as that of training; None: it records none, or there is no file.
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
            signals: what to return besides the task losses; nothing else is computed. `detections` are `postprocess`
                and, of a student, `assign`; `regions` are `refine_regions` and `raw_predictions`.
        """

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image.

        The batch carries a letterbox per image; images are float in [0, 1] or uint8.
        """
        images = replace(batch, teacher_images=None).as_float().images
        pairs = zip(self.detect(images, options), batch.letterboxes, strict=True)
        return [replace(one, boxes_xyxy=letterbox.invert(one.boxes_xyxy)) for one, letterbox in pairs]

    @torch.no_grad()
    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of `images`, (B, C, H, W) in [0, 1].

        Runs in evaluation mode, on the detector's device; the mode is restored afterwards.
        """
        was_training = self.training
        self.eval()  # BatchNorm: statistics stay, and a prediction does not depend on the rest of the batch
        images = images.to(next(self.parameters()).device)
        output: DetectorOutput = self(images, signals=frozenset({"detections"}))
        self.train(was_training)
        assert output.postprocess is not None
        return output.postprocess(options).per_image()

    @abstractmethod
    def raw_outputs(self, images: Tensor) -> Any:
        """Run the layers with weights on (B, C, H, W) images, without decoding, selection or losses.

        The output is the family's own. Layers that do not run here have the same widths in all models of a family.
        """

    def named_stages(self) -> list[tuple[str, str]]:
        """Return the names of its parts in order, and the kind of each: parts of equal kind may correspond.

        Empty: parts of two models of the family correspond where their names are equal.
        """
        return []

    @abstractmethod
    def export_module(self, nms_free: bool | None = None) -> nn.Module:
        """Return a module (B, C, H, W) in [0, 1] -> decoded predictions, ready to trace.

        Output of dense heads: (B, 4 + K, A), boxes as centre x, centre y, width, height in input
        pixels, then class scores; of end-to-end heads: (B, N, 6) x1 y1 x2 y2 score label.

        Args:
            nms_free: for a head with both branches, whether to export the one without NMS; None: the head's default.
        """

    @abstractmethod
    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the weights so that the package's own loader opens the file."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return plain values from which the family's `rebuild` makes the same detector, without weights."""

    def fuse(self) -> None:
        """Fold layers for faster inference with the same predictions; the detector cannot be trained afterwards.

        Families without such layers ignore it.
        """

    def resolve_input_size(self, default_size: int | None) -> int | None:
        """Return the side of its square input where the config has none; None: any size."""
        return self.fixed_size

    def set_progress(self, done: float) -> None:
        """Set the share of training that is done, in [0, 1], once an epoch.

        Heads whose own loss changes during training use it; others ignore it.
        """


def freeze(module: nn.Module) -> None:
    """Put a network in eval mode and switch off the gradients of its weights."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def channels_last(net: Net) -> Net:
    """Use the channels-last memory format, in which CPUs and GPUs are faster; only rounding differs.

    The format is left as it is on machines with an Apple GPU, where it is untested.
    """
    return net if torch.backends.mps.is_available() else net.to(memory_format=torch.channels_last)


def contiguous(net: Net) -> Net:
    """Undo `channels_last`, for files that others read."""
    return net.to(memory_format=torch.contiguous_format)
