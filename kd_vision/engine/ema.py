"""Moving average of the student's weights: what is validated, saved and shipped."""

from __future__ import annotations

import copy
import math

import torch

from kd_vision.detectors.base import Detector, freeze


class WeightAverage:
    """Exponential moving average over parameters and buffers.

    Args:
        detector: the student; copied.
        decay: weight of the past once ramped up.
        ramp: the decay at update n is ``decay * (1 - exp(-n / ramp))``, so that the first
            updates, still near random, are soon forgotten.
    """

    def __init__(self, detector: Detector, decay: float, ramp: float) -> None:
        self.detector = copy.deepcopy(detector)
        freeze(self.detector)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0

    @torch.no_grad()
    def update(self, detector: Detector) -> None:
        """Take one optimiser step into the average."""
        self.updates += 1
        decay = self.decay * (1.0 - math.exp(-self.updates / self.ramp))
        own, new = self.detector.state_dict(), detector.state_dict()
        floating = [name for name, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_([own[n] for n in floating], [new[n] for n in floating], 1.0 - decay)
        for name, value in own.items():
            if not value.is_floating_point():
                value.copy_(new[name])
