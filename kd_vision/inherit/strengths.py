"""How strong each channel of a teacher is: which ones a narrower student keeps.

Shapes: B images, C channels, H W pixels of a map.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_vision.detectors.base import Detector
from kd_vision.detectors.inherit_config import Strength
from kd_vision.inherit.channels import ChannelGraph
from kd_vision.inherit.matching import Strengths
from kd_vision.inherit.observe import BATCH, observe


def channel_strengths(
    teacher: Detector, graph: ChannelGraph, kind: Strength, images: Tensor, scores: Tensor | None
) -> Strengths:
    """Return (classes,) the strength of each class of channels, indexed by class.

    Each layer's values are divided by their mean, so that layers of one class count alike; a class has the sum.

    Args:
        teacher: in evaluation mode.
        graph: its channels.
        kind: see `InheritConfig.strength`.
        images: (B, C, H, W) in [0, 1]; used by the two kinds that measure activations.
        scores: (B, 1, H / 4, W / 4) of `score_map`; used by `score`.
    """
    strengths = np.zeros(len(graph.classes), np.float64)

    def add(classes: Any, values: Tensor) -> None:
        share = (values.double() / values.double().mean().clamp(min=1e-12)).cpu().numpy()
        known = classes >= 0
        np.add.at(strengths, classes[known], share[known])

    if kind in ("activation", "score"):
        for name, energy in _energies(teacher, graph, images, scores if kind == "score" else None).items():
            add(graph.inputs(name), energy)
        return strengths
    for name, layer in graph.layers.items():
        module = teacher.get_submodule(name)
        if kind == "batchnorm" and layer.outputs is layer.inputs and getattr(module, "weight", None) is not None:
            add(graph.outputs(name), cast(Tensor, module.weight).detach().abs())
        if kind == "l1" and isinstance(module, nn.Conv2d):
            add(graph.outputs(name), module.weight.detach().abs().flatten(1).sum(dim=1))
    return strengths


@torch.no_grad()
def _energies(teacher: Detector, graph: ChannelGraph, images: Tensor, scores: Tensor | None) -> dict[str, Tensor]:
    """Return the mean squared input of each convolution, (C_in,) by name, weighted by scores if given."""
    totals: dict[str, Tensor] = {}

    def record(name: str, first: int, inputs: Tensor, output: Tensor) -> None:
        square = inputs.float().pow(2)
        if scores is not None:
            here = scores[first : first + len(square)]
            square = square * functional.interpolate(here, square.shape[-2:], mode="area")
        totals[name] = totals.get(name, torch.zeros(())) + square.sum(dim=(0, 2, 3)) / square[0, 0].numel()

    convolutions = [name for name in graph.layers if isinstance(teacher.get_submodule(name), nn.Conv2d)]
    observe(teacher, images, {name: partial(record, name) for name in convolutions})
    return totals


def score_map(teacher: Detector, images: Tensor) -> Tensor:
    """Return (B, 1, H / 4, W / 4): the score of the surest box that covers each place.

    Args:
        teacher: gives the boxes.
        images: (B, C, H, W) in [0, 1].
    """
    height, width = (side // 4 for side in images.shape[-2:])
    score = torch.zeros(len(images), 1, height, width)
    found = [boxes for batch in torch.split(images, BATCH) for boxes in teacher.detect(batch)]
    for one, boxes in zip(score, found, strict=True):
        for (x1, y1, x2, y2), sure in zip((boxes.boxes_xyxy / 4).tolist(), boxes.scores.tolist(), strict=True):
            part = one[0, int(max(y1, 0)) : int(max(y2, 0)) + 1, int(max(x1, 0)) : int(max(x2, 0)) + 1]
            part.clamp_(min=sure)
    return score
