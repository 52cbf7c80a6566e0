"""Moving average of the student's weights; the average is validated, saved and exported."""

from __future__ import annotations

import copy
import math

import torch

from kd_vision.detectors.base import Detector, freeze


class WeightAverage:
    """Exponential moving average over parameters and buffers.

    Args:
        detector: the student; copied.
        decay: decay after the ramp.
        ramp: the decay at update n is ``decay * (1 - exp(-n / ramp))``, so that the first weights, still
            nearly random, soon lose their influence.
    """

    def __init__(self, detector: Detector, decay: float, ramp: float) -> None:
        self.detector = copy.deepcopy(detector)
        freeze(self.detector)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0

    @torch.no_grad()
    def update(self, detector: Detector) -> None:
        """Update the average with the weights after an optimiser step."""
        self.updates += 1
        decay = self.decay * (1.0 - math.exp(-self.updates / self.ramp))
        average, new = self.detector.state_dict(), detector.state_dict()
        floating = [name for name, value in average.items() if value.is_floating_point()]
        torch._foreach_lerp_([average[n] for n in floating], [new[n] for n in floating], 1.0 - decay)
        for name, value in average.items():
            if not value.is_floating_point():
                value.copy_(new[name])
