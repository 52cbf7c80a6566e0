"""Brings an image to the square that a network sees: one resize for training, evaluation and the device.

Shapes: H W pixels, C channels, S the side of the network's input.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.core.batch import Letterbox

Pixels = npt.NDArray[np.uint8]

GRAY = 114


def letterbox_image(image: Pixels, image_size: int) -> tuple[Pixels, Letterbox]:
    """Scale an image into a square, centred, the rest gray.

    Args:
        image: (H, W, C) uint8.
        image_size: side S of the square.

    Returns:
        (S, S, C) uint8, and where the image lies in it.
    """
    height, width = image.shape[:2]
    ratio = min(image_size / height, image_size / width)
    new_width = min(max(round(width * ratio), 1), image_size)
    new_height = min(max(round(height * ratio), 1), image_size)
    left, top = (image_size - new_width) // 2, (image_size - new_height) // 2
    square = np.full((image_size, image_size, image.shape[2]), GRAY, np.uint8)
    square[top : top + new_height, left : left + new_width] = resize(image, new_width, new_height)
    box = Letterbox(height, width, new_width / width, new_height / height, left, top)
    return square, box


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Return (H, W, C) uint8 in another size, bilinear."""
    if image.shape[:2] == (height, width):
        return image
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8).reshape(height, width, -1)
