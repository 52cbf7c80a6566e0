"""What must happen to the values of an image before an ONNX graph sees them.

Shapes: B images, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ChannelOrder = Literal["rgb", "bgr"]
ValueRange = Literal["unit", "byte"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From RGB in [0, 1] to what a graph wants.

    Attributes:
        channel_order: of colour images.
        value_range: `unit`: 0 to 1; `byte`: 0 to 255.
        mean, std: of each channel, in that order and range: ``(value - mean) / std``; None: not done.
    """

    channel_order: ChannelOrder = "rgb"
    value_range: ValueRange = "unit"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def apply(self, images: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """Convert (B, C, H, W) images; RGB in [0, 1]."""
        if self.channel_order == "bgr" and images.shape[1] >= 3:
            order = [2, 1, 0, *range(3, images.shape[1])]
            images = images[:, order]
        if self.value_range == "byte":
            images = images * images.dtype.type(255)
        if self.mean is not None and self.std is not None:
            shape = (1, -1, 1, 1)
            images = (images - np.reshape(self.mean, shape)) / np.reshape(self.std, shape)
        return images
