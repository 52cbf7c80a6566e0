"""Perceptual hash of an image (difference hash), for finding near duplicates.

A hash tells, for a small gray copy of the image, where brightness grows from a pixel to its right neighbour. Similar
images differ in few bits.

Shapes: H W pixels, A and B images, F = side * side bits.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]


def difference_hash(pixels: npt.NDArray[np.uint8], side: int) -> Bits:
    """Return the hash of one image.

    Args:
        pixels: (H, W, 3) RGB or (H, W, 1) gray.
        side: the gray copy has `side` rows and `side` + 1 columns.

    Returns:
        (F,) row by row: True where a pixel is darker than its right neighbour.
    """
    gray = pixels if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (side + 1, side), interpolation=cv2.INTER_AREA).reshape(side, side + 1)
    return np.asarray(small[:, 1:] > small[:, :-1]).reshape(-1)


def hamming_distances(left: Bits, right: Bits) -> npt.NDArray[np.float32]:
    """Return in how many bits the hashes of two sets of images differ, each with each.

    Args:
        left: (A, F) hashes.
        right: (B, F) hashes.

    Returns:
        (A, B) whole numbers, exact up to F = 2^24.
    """
    # |a xor b| = |a| + |b| - 2 a.b: one matrix product instead of A * B comparisons.
    a, b = left.astype(np.float32), right.astype(np.float32)
    return np.asarray(a.sum(1)[:, None] + b.sum(1)[None] - 2 * (a @ b.T))
