"""Letterbox: scales an image into the network's square input. Training, evaluation and devices share this one resize.

Shapes: H W pixels, C channels, S side of the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.core.batch import Letterbox

Pixels = npt.NDArray[np.uint8]

PAD_VALUE = 114
"""Gray value of the padding, in 255ths; the one that ultralytics and YOLOX train with."""

INTERPOLATIONS: Mapping[str, int] = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR}
"""OpenCV's flag by which an image is shrunk, for each interpolation that an ONNX file may record."""

INTERPOLATION = "area"
"""The interpolation of training, evaluation and export: a shrunk image keeps no detail that its pixels cannot hold."""


def letterbox_image(
    image: Pixels, image_size: int, pad_value: int = PAD_VALUE, interpolation: str = INTERPOLATION
) -> tuple[Pixels, Letterbox]:
    """Scale an image into a square, aspect ratio kept, centred, padded with one value.

    Args:
        image: (H, W, C) uint8.
        image_size: side S of the square.
        pad_value: value of the padding in every channel, 0 to 255.
        interpolation: a key of `INTERPOLATIONS`.

    Returns:
        (S, S, C) uint8, and the placement of the image in the square.
    """
    height, width = image.shape[:2]
    ratio = min(image_size / height, image_size / width)
    new_width = min(max(round(width * ratio), 1), image_size)
    new_height = min(max(round(height * ratio), 1), image_size)
    left, top = (image_size - new_width) // 2, (image_size - new_height) // 2
    square = np.full((image_size, image_size, image.shape[2]), pad_value, np.uint8)
    square[top : top + new_height, left : left + new_width] = resize(image, new_width, new_height, interpolation)
    placement = Letterbox(height, width, new_width / width, new_height / height, left, top)
    return square, placement


def resize(image: Pixels, width: int, height: int, interpolation: str = INTERPOLATION) -> Pixels:
    """Return an (H, W, C) uint8 image in another size; enlarged images are bilinear.

    Args:
        image: any size.
        width: pixels.
        height: pixels.
        interpolation: of shrunk images, a key of `INTERPOLATIONS`.
    """
    if image.shape[:2] == (height, width):
        return image
    flag = INTERPOLATIONS[interpolation] if width < image.shape[1] else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=flag)
    return np.asarray(resized, np.uint8).reshape(height, width, -1)
