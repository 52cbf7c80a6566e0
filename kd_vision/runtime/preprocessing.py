"""Preprocessing: turns an image into the values that an ONNX graph takes.

Shapes: B images, C channels, H W pixels, S side of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kd_vision.core.batch import Letterbox
from kd_vision.runtime.letterbox import INTERPOLATION, PAD_VALUE, Pixels, letterbox_image

Resize = Literal["letterbox"]
ChannelOrder = Literal["rgb", "bgr"]
ValueRange = Literal["unit", "byte"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The steps from an 8-bit RGB image to the input of a graph.

    Attributes:
        resize: how an image is brought to the input size; `letterbox` keeps its aspect ratio.
        interpolation: of the resize, a key of `letterbox.INTERPOLATIONS`.
        pad_value: of the letterbox, 0 to 255.
        channel_order: of colour images.
        value_range: `unit`: 0 to 1; `byte`: 0 to 255.
        mean, std: of each channel, in that order and range: ``(value - mean) / std``; None: no normalisation.
    """

    resize: Resize = "letterbox"
    interpolation: str = INTERPOLATION
    pad_value: int = PAD_VALUE
    channel_order: ChannelOrder = "rgb"
    value_range: ValueRange = "unit"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def fit(self, image: Pixels, image_size: int) -> tuple[Pixels, Letterbox]:
        """Resize an (H, W, C) uint8 image; return (S, S, C) uint8 and the placement of the image in it."""
        return letterbox_image(image, image_size, self.pad_value, self.interpolation)

    def apply(self, images: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """Convert (B, C, H, W) RGB images in [0, 1] to the graph's channel order, range and normalisation."""
        if self.channel_order == "bgr" and images.shape[1] >= 3:
            order = [2, 1, 0, *range(3, images.shape[1])]
            images = images[:, order]
        if self.value_range == "byte":
            images = images * images.dtype.type(255)
        if self.mean is not None and self.std is not None:
            shape = (1, -1, 1, 1)
            images = (images - np.reshape(self.mean, shape)) / np.reshape(self.std, shape)
        return images
