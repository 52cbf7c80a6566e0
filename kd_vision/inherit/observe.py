"""Runs a detector on images batch by batch and shows what single layers take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kd_vision.detectors.base import Detector

BATCH = 8

Observer = Callable[[int, Tensor, Tensor], None]
"""Receives the number of the batch's first image, the input and the output of a layer."""


def observe(detector: Detector, images: Tensor, observers: Mapping[str, Observer]) -> int:
    """Run a detector once over the images; return the number of batches.

    Args:
        detector: in evaluation mode.
        images: (B, C, H, W) in [0, 1].
        observers: by the name of the layer.
    """
    first = 0

    def hook(observer: Observer) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: observer(first, inputs[0], output)

    batches = torch.split(images, BATCH)
    with ExitStack() as stack:
        for name, observer in observers.items():
            stack.callback(detector.get_submodule(name).register_forward_hook(hook(observer)).remove)
        for batch in batches:
            detector.raw_outputs(batch)
            first += len(batch)
    return len(batches)
