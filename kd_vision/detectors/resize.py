"""Resizes batches on their device exactly as `runtime.letterbox.resize` does images on the CPU, but for rounding.

Shapes: B images, C channels, H W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional


def resize_batch(images: Tensor, height: int, width: int) -> Tensor:
    """Return (B, C, H, W) float images in another size: averaged over areas where they shrink, else bilinear."""
    if images.shape[-2:] == (height, width):
        return images
    if width >= images.shape[-1]:
        return functional.interpolate(images, (height, width), mode="bilinear")
    rows = _area_weights(int(images.shape[-2]), height).to(images)
    columns = _area_weights(int(images.shape[-1]), width).to(images)
    return rows @ images @ columns.T


@lru_cache(maxsize=16)
def _area_weights(before: int, after: int) -> Tensor:
    """Return (after, before): the share of each old pixel in each new one; rows sum to 1."""
    edges = torch.arange(after + 1, dtype=torch.float64) * before / after
    old = torch.arange(before, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], old + 1) - torch.maximum(edges[:-1, None], old)
    return (overlap.clamp(min=0) * after / before).float()
