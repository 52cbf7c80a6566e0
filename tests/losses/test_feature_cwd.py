from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.feature_cwd import FeatureCWD, FeatureCWDConfig, channel_wise_divergence

Wave = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.692187033039), (4.0, 0.735506531612)])
def test_reference_values(temperature: float, expected: float, wave: Wave) -> None:
    value = channel_wise_divergence(*wave(2, 4, 3, 5), temperature)
    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_blind_to_shifts_but_not_to_scale(wave: Wave) -> None:
    s, t = wave(2, 4, 3, 5)
    shift = torch.arange(8, dtype=torch.float64).view(2, 4, 1, 1)
    value = float(channel_wise_divergence(s, t))
    assert float(channel_wise_divergence(s + shift, t - shift)) == pytest.approx(value, abs=1e-12)
    assert abs(float(channel_wise_divergence(2 * s, t)) - value) > 0.1
    assert float(channel_wise_divergence(2 * s, 2 * t, 2.0)) == pytest.approx(4 * value, abs=1e-12)
    assert float(channel_wise_divergence(s, s)) == 0.0


def test_smooth(wave: Wave) -> None:
    s, t = wave(2, 4, 3, 5)
    assert torch.autograd.gradcheck(lambda x: channel_wise_divergence(x, t, 2.0), (s.requires_grad_(),))


def test_standardising_takes_the_scale_away(wave: Wave, row_spec: DetectorSpec, no_targets: Targets) -> None:
    s, t = wave(2, 4, 3, 5)

    def value(student: Tensor, **settings: float | bool) -> float:
        config = FeatureCWDConfig.model_validate(settings)
        loss = FeatureCWD(config, row_spec, row_spec)
        return float(loss(Signals({"P3": student}), Signals({"P3": t}), no_targets))

    assert value(5 * s + 3) == pytest.approx(value(s), abs=1e-5)
    s_unit, t_unit = (x / (x.std(dim=(0, 2, 3), keepdim=True) + 1e-6) for x in (s, t))
    assert value(s) == pytest.approx(float(channel_wise_divergence(s_unit, t_unit)), abs=1e-12)
    raw = value(s, standardise=False, temperature=4.0)
    assert raw == pytest.approx(0.735506531612, abs=1e-6)
