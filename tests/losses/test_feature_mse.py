from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import LossConfig
from kd_vision.losses.feature_mse import FeatureMSE

Wave = Callable[..., tuple[Tensor, Tensor]]


def test_reference_value_without_adapter(wave: Wave, row_spec: DetectorSpec, no_targets: Targets) -> None:
    s, t = wave(2, 4, 3, 5)
    loss = FeatureMSE(LossConfig(), row_spec, row_spec)
    assert not list(loss.parameters())
    value = loss(Signals({"P3": s}), Signals({"P3": t}), no_targets)
    assert float(value) == pytest.approx(1.69672765391, abs=1e-6)


def test_smooth(wave: Wave, row_spec: DetectorSpec) -> None:
    s, t = wave(2, 4, 3, 5)
    loss = FeatureMSE(LossConfig(), row_spec, row_spec)
    assert torch.autograd.gradcheck(lambda x: loss.level_loss(x, t), (s.requires_grad_(),))


def test_adapter_is_linear_with_bias(specs: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """A constant map 2 through weights 1/3 and bias 1 is 3; against 5 it costs 4, the equal level nothing."""
    loss = FeatureMSE(LossConfig(), *specs)
    with torch.no_grad():
        for name, parameter in loss.named_parameters():
            parameter.fill_(1.0 if name.endswith("bias") else 1 / 3)
    same = torch.ones(1, 6, 2, 2)
    student = Signals({"P3": torch.full((1, 3, 4, 4), 2.0), "P4": same})
    teacher = Signals({"P3": torch.full((1, 5, 4, 4), 5.0), "P4": same})
    assert float(loss(student, teacher, no_targets).detach()) == pytest.approx(4.0, abs=1e-5)
