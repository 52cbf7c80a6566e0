from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.class_bce import ClassBCE, ClassBCEConfig
from kd_vision.losses.divergence import binary_divergence

Wave = Callable[..., tuple[Tensor, Tensor]]


def test_divergence_is_cross_entropy_minus_entropy(wave: Wave) -> None:
    s, t = wave(6, 5)
    p, q = s.sigmoid(), t.sigmoid()
    expected = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    torch.testing.assert_close(binary_divergence(s, t), expected, atol=1e-12, rtol=0)


def test_divergence_is_exactly_zero_at_equality_where_cross_entropy_is_not(wave: Wave) -> None:
    s, _ = wave(6, 5)
    assert float(binary_divergence(s, s).abs().max()) == 0.0
    assert float(functional.binary_cross_entropy_with_logits(s, s.sigmoid())) > 0.4


def test_gradient_is_p_minus_q(wave: Wave) -> None:
    s, t = wave(6, 5)
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(binary_divergence(s, t).sum(), s)
    torch.testing.assert_close(gradient, (s.sigmoid() - t.sigmoid()).detach(), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda x: binary_divergence(x, t), (s,))
    assert torch.autograd.gradcheck(lambda x: binary_divergence(x, s.detach()), (s,))


def test_far_logits_stay_finite() -> None:
    """Certain of the contrary: -log sigmoid(-500) = 500 nats, gradient p - q = -1 or 1."""
    s = torch.tensor([-500.0, 500.0], requires_grad=True)
    value = binary_divergence(s, torch.tensor([500.0, -500.0]))
    (gradient,) = torch.autograd.grad(value.sum(), s)
    assert value.tolist() == [500.0, 500.0]
    assert gradient.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("points", "normaliser"), [(1, 1.0), (4, 3.0)])
def test_sum_over_the_teachers_objects(
    points: int,
    normaliser: float,
    row_spec: DetectorSpec,
    rows_side: Callable[..., Signals],
    no_targets: Targets,
) -> None:
    """s = 0 and q = 3/4 cost ln 2 - H(3/4) = .130812 nats; sum u is .75 or 3, never less than 1 in N_q."""
    teacher = torch.full((points, 3), -300.0, dtype=torch.float64)
    student = teacher.clone()
    teacher[:, 0], student[:, 0] = math.log(3), 0.0
    loss = ClassBCE(ClassBCEConfig(), row_spec, row_spec)
    one = math.log(2) - (0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert one == pytest.approx(0.130812, abs=1e-6)
    value = loss(rows_side(student), rows_side(teacher), no_targets)
    assert float(value) == pytest.approx(points * one / normaliser, abs=1e-12)


def test_temperature_scales_the_gradient_by_t(
    wave: Wave, row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    s, t = wave(7, 3)
    s.requires_grad_()
    loss = ClassBCE(ClassBCEConfig(temperature=3.0), row_spec, row_spec)
    (gradient,) = torch.autograd.grad(loss(rows_side(s), rows_side(t), no_targets), s)
    normaliser = max(float(t.sigmoid().amax(-1).sum()), 1.0)
    expected = 3.0 * ((s / 3).sigmoid() - (t / 3).sigmoid()) / normaliser
    torch.testing.assert_close(gradient, expected.detach(), atol=1e-12, rtol=0)
