"""A teacher that cannot learn, whatever is done to the model around it."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_vision.core.predictions import Channel, DetectorOutput
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import Detector


class FrozenTeacher:
    """Holds a detector in eval mode without gradients.

    Deliberately no `nn.Module`: as an attribute of the training step it is in no optimiser, no
    DDP wrapper, no EMA copy and no checkpoint, and a `train()` call cannot reach it.

    Args:
        detector: the teacher.
        channels: what it is asked for on every batch.
    """

    def __init__(self, detector: Detector, channels: frozenset[Channel]) -> None:
        self.detector = detector.eval()
        self.channels = channels
        for parameter in detector.parameters():
            parameter.requires_grad_(False)

    @property
    def spec(self) -> DetectorSpec:
        """Facts about the teacher."""
        return self.detector.spec

    def to(self, device: torch.device | str) -> FrozenTeacher:
        """Move the teacher."""
        self.detector.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> DetectorOutput:
        """Return the channels asked for, for (B, C, H, W) images in [0, 1]."""
        output: DetectorOutput = self.detector(images, channels=self.channels)
        return output
