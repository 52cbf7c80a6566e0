from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_vision.losses.feature_pkd import pearson_distance

Wave = Callable[..., tuple[Tensor, Tensor]]


def correlations(s: Tensor, t: Tensor) -> list[float]:
    """Pearson correlation of each channel, by numpy."""
    rows = zip(s.movedim(1, 0).flatten(1).numpy(), t.movedim(1, 0).flatten(1).numpy(), strict=True)
    return [float(np.corrcoef(a, b)[0, 1]) for a, b in rows]


def test_reference_value(wave: Wave) -> None:
    assert float(pearson_distance(*wave(2, 4, 3, 5))) == pytest.approx(0.873032442276, abs=1e-9)


def test_is_one_minus_the_correlation(wave: Wave) -> None:
    s, t = wave(2, 4, 3, 5)
    expected = 29 / 30 * (1 - np.mean(correlations(s, t)))
    assert expected == pytest.approx(0.873034385, abs=1e-8)
    assert float(pearson_distance(s, t)) == pytest.approx(expected, abs=3e-6)


def test_blind_to_scale_and_offset_of_channels_and_worst_at_negation(wave: Wave) -> None:
    s, t = wave(2, 4, 3, 5)
    scale = torch.tensor([0.5, 2.0, 3.0, 10.0], dtype=torch.float64)[:, None, None]
    assert float(pearson_distance(scale * s + 7, t)) == pytest.approx(float(pearson_distance(s, t)), abs=1e-5)
    assert float(pearson_distance(t, t)) == pytest.approx(0.0, abs=1e-12)
    assert float(pearson_distance(3 * t - 1, t)) < 1e-10
    assert float(pearson_distance(-t, t)) == pytest.approx(2 * 29 / 30, abs=1e-5)


def test_smooth(wave: Wave) -> None:
    s, t = wave(2, 4, 3, 5)
    assert torch.autograd.gradcheck(lambda x: pearson_distance(x, t), (s.requires_grad_(),))


def test_dead_channels_of_the_teacher_are_left_out(wave: Wave) -> None:
    s, t = wave(2, 4, 3, 5)
    alive = float(pearson_distance(s[:, 1:], t[:, 1:]))
    t[:, 0] = 1.0 + 1e-5 * t[:, 0]
    assert float(pearson_distance(s, t)) == pytest.approx(alive, abs=1e-12)
    assert float(pearson_distance(s, torch.ones_like(t))) == 0.0


def test_dead_channel_of_the_student_has_a_bounded_gradient(wave: Wave) -> None:
    """1 / 1e-6 without a floor under its deviation; 1 / 1e-3 with it, shared by 120 values."""
    s, t = wave(2, 4, 3, 5)
    s[:, 0] = 0.25
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(pearson_distance(s, t), s)
    assert 0.1 < float(gradient[:, 0].abs().max()) < 1e3 * 3 / 120


def test_a_single_position_costs_nothing() -> None:
    lone = torch.ones(1, 2, 1, 1, requires_grad=True)
    value = pearson_distance(lone, torch.zeros(1, 2, 1, 1))
    (gradient,) = torch.autograd.grad(value, lone)
    assert float(value.detach()) == 0.0
    assert bool(torch.isfinite(gradient).all())
