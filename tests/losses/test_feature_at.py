from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.feature_at import FeatureAT, FeatureATConfig, attention_map

Wave = Callable[..., tuple[Tensor, Tensor]]


def build(spec: DetectorSpec) -> FeatureAT:
    return FeatureAT(FeatureATConfig(), spec, spec)


def test_reference_value(wave: Wave, row_spec: DetectorSpec, no_targets: Targets) -> None:
    s, t = wave(2, 4, 3, 5)
    value = build(row_spec)(Signals({"P3": s}), Signals({"P3": t}), no_targets)
    assert float(value) == pytest.approx(0.0175774343713, abs=1e-9)


def test_attention_by_hand() -> None:
    """Channel means of squares 1 and 7 (of 1, 1 and 1 + 0, 13 + 1 over 2) make (1, 7) / sqrt(50)."""
    maps = torch.tensor([[1.0, 1.0], [1.0, 13.0**0.5]], dtype=torch.float64).view(1, 2, 1, 2)
    expected = torch.tensor([[1.0, 7.0]], dtype=torch.float64) / 50**0.5
    torch.testing.assert_close(attention_map(maps), expected)


def test_blind_to_scale_sign_and_order_of_channels(wave: Wave, row_spec: DetectorSpec) -> None:
    s, t = wave(2, 4, 3, 5)
    loss = build(row_spec)
    same = -3.0 * s[:, [2, 0, 3, 1]]
    assert float(loss.level_loss(same, t)) == pytest.approx(float(loss.level_loss(s, t)), abs=1e-12)
    assert float(loss.level_loss(same, s)) == pytest.approx(0.0, abs=1e-15)


def test_smooth_and_finite_on_maps_of_zeros(wave: Wave, row_spec: DetectorSpec) -> None:
    s, t = wave(2, 4, 3, 5)
    loss = build(row_spec)
    assert torch.autograd.gradcheck(lambda x: loss.level_loss(x, t), (s.requires_grad_(),))
    zeros = torch.zeros(2, 4, 3, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss.level_loss(zeros, t.float()), zeros)
    assert bool(torch.isfinite(gradient).all())


def test_widths_may_differ_without_an_adapter(row_spec: DetectorSpec, no_targets: Targets) -> None:
    wide = replace(row_spec, level_channels={"P3": 9})
    loss = FeatureAT(FeatureATConfig(), row_spec, wide)
    maps = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sides = (Signals({"P3": maps.expand(1, 4, 4, 4)}), Signals({"P3": maps.expand(1, 9, 4, 4)}))
    assert not list(loss.parameters())
    assert float(loss(*sides, no_targets)) == pytest.approx(0.0, abs=1e-12)
