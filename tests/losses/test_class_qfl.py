from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import validate
from kd_vision.losses.class_qfl import ClassQFL, ClassQFLConfig, quality_focal

Wave = Callable[..., tuple[Tensor, Tensor]]


def test_reference_value_of_bckd_and_crosskd(wave: Wave) -> None:
    weights = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    value = (quality_focal(*wave(6, 5)).sum(-1) * weights).sum() / 3
    assert float(value) == pytest.approx(0.902823223994, abs=1e-6)


def test_by_hand() -> None:
    """s = 0, q = 3/4: |1/2 - 3/4| * ln 2, or squared."""
    s, t = torch.zeros(1, dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64).log()
    assert float(quality_focal(s, t, 1.0)) == pytest.approx(0.25 * math.log(2), abs=1e-12)
    assert float(quality_focal(s, t, 2.0)) == pytest.approx(0.0625 * math.log(2), abs=1e-12)


def test_kink_at_equality_with_beta_one() -> None:
    """One-sided slopes +-H(q) q (1 - q), .12828 at q = .3: the modulating factor carries gradient."""
    t = torch.tensor(0.3 / 0.7, dtype=torch.float64).log()
    step = 1e-7
    assert float(quality_focal(t, t)) == 0.0
    up = float(quality_focal(t + step, t)) / step
    down = float(quality_focal(t - step, t)) / -step
    expected = (-0.3 * math.log(0.3) - 0.7 * math.log(0.7)) * 0.3 * 0.7
    assert expected == pytest.approx(0.12828, abs=1e-5)
    assert up == pytest.approx(expected, abs=1e-5)
    assert down == pytest.approx(-expected, abs=1e-5)


def test_gradient_is_exact_away_from_equality_and_smooth_with_beta_two(wave: Wave) -> None:
    s, t = wave(6, 5)
    s.requires_grad_()
    assert float((s - t).abs().min().detach()) > 1e-3
    assert torch.autograd.gradcheck(lambda x: quality_focal(x, t), (s,))
    assert torch.autograd.gradcheck(lambda x: quality_focal(x, t, 2.0), (s,))
    equal = t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(quality_focal(equal, t, 2.0).sum(), equal)
    assert float(gradient.abs().max()) == 0.0


def test_sum_over_the_teachers_objects(
    row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    teacher = torch.full((4, 3), -300.0, dtype=torch.float64)
    student = teacher.clone()
    teacher[:, 2], student[:, 2] = math.log(3), 0.0
    value = ClassQFL(ClassQFLConfig(), row_spec, row_spec)(rows_side(student), rows_side(teacher), no_targets)
    assert float(value) == pytest.approx(4 * 0.25 * math.log(2) / 3.0, abs=1e-12)


def test_powers_below_one_are_refused_for_their_slope_at_equality() -> None:
    with pytest.raises(RequestError, match=r"beta: input should be greater than or equal to 1"):
        validate(ClassQFLConfig, {"beta": 0.5}, "test")
    s = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(quality_focal(s, torch.zeros(3)).sum(), s)
    assert gradient.tolist() == [0.0, 0.0, 0.0]
