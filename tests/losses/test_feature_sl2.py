from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.feature_sl2 import FeatureSL2, FeatureSL2Config, score_weighted_l2

Wave = Callable[..., tuple[Tensor, Tensor]]
Pair = tuple[DetectorSpec, DetectorSpec]


@pytest.fixture
def scores() -> Tensor:
    k = torch.arange(30, dtype=torch.float64)
    return (0.5 * torch.sin(0.31 * k + 0.2)).abs().view(2, 1, 3, 5)


def test_reference_value(wave: Wave, scores: Tensor) -> None:
    value = score_weighted_l2(*wave(2, 4, 3, 5), scores)
    assert float(value) == pytest.approx(1.75652032686, abs=1e-9)


def test_blind_to_the_size_of_scores_and_quadratic_in_features(wave: Wave, scores: Tensor) -> None:
    s, t = wave(2, 4, 3, 5)
    value = float(score_weighted_l2(s, t, scores))
    assert float(score_weighted_l2(s, t, 0.01 * scores)) == pytest.approx(value, rel=1e-8)
    assert float(score_weighted_l2(3 * s, 3 * t, scores)) == pytest.approx(9 * value, rel=1e-12)
    assert float(score_weighted_l2(s, t, torch.zeros_like(scores))) == 0.0
    flat = score_weighted_l2(s, t, torch.ones_like(scores))
    assert float(flat) == pytest.approx(float((s - t).square().mean()), rel=1e-9)


def test_smooth(wave: Wave, scores: Tensor) -> None:
    s, t = wave(2, 4, 3, 5)
    assert torch.autograd.gradcheck(lambda x: score_weighted_l2(x, t, scores), (s.requires_grad_(),))


def test_scores_of_a_level_meet_their_own_positions(
    specs: Pair, make_side: Callable[..., Signals], no_targets: Targets
) -> None:
    """With one confident point, only the teacher's map at that row and column matters."""
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    assert teacher.grid is not None
    logits = torch.full_like(teacher.grid.logits, -600.0)
    logits[1, 64 + 2 * 4 + 3, 1] = 2.0  # P4 starts after the 64 points of P3; row 2, column 3 of 4 x 4
    side = Signals(teacher.features, replace(teacher.grid, logits=logits))
    loss = FeatureSL2(FeatureSL2Config(), *specs).double()
    projected = loss.projectors["P4"](student.features["P4"])
    difference = (projected - teacher.features["P4"])[1, :, 2, 3]
    value = loss(student, side, no_targets)
    assert float(value.detach()) == pytest.approx(float(difference.square().mean().detach()), rel=1e-6)


def test_projector_is_two_layers_at_the_teachers_width(specs: Pair) -> None:
    loss = FeatureSL2(FeatureSL2Config(), *specs)
    projector = loss.projectors["P3"]
    assert isinstance(projector, nn.Sequential)
    assert [type(layer) for layer in projector] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert [tuple(p.shape) for p in projector.parameters()] == [(5, 3, 1, 1), (5,), (5, 5, 1, 1), (5,)]


def test_grid_and_map_must_agree(specs: Pair, make_side: Callable[..., Signals], no_targets: Targets) -> None:
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    loss = FeatureSL2(FeatureSL2Config(levels=("P3",)), *specs).double()
    cut = Signals({"P3": teacher.features["P3"][..., :4]}, teacher.grid)
    with pytest.raises(RequestError) as caught:
        loss(student, cut, no_targets)
    assert caught.value.problems == (
        "FeatureSL2: level P3 of the teacher has 64 grid points and a map of 8 x 4; they must agree",
    )
    with pytest.raises(RequestError, match="the signal 'grid' of the teacher was not computed"):
        loss(student, Signals(teacher.features), no_targets)
