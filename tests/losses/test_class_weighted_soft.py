from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.class_weighted_soft import (
    ClassWeightedSoft,
    ClassWeightedSoftConfig,
    teacher_trust,
    weighted_soft,
)
from kd_vision.losses.divergence import binary_divergence

Wave = Callable[..., tuple[Tensor, Tensor]]


def published(s: Tensor, t: Tensor, foreground: float, background: float) -> Tensor:
    p, q = s.sigmoid(), t.sigmoid()
    return -foreground * q * p.log() - background * (1 - q) * (1 - p).log()


def test_is_the_weighted_cross_entropy_less_its_least_value(wave: Wave) -> None:
    s, t = wave(6, 5)
    best = t + torch.tensor(1.0 / 1.5, dtype=torch.float64).log()
    expected = published(s, t, 1.0, 1.5) - published(best, t, 1.0, 1.5)
    torch.testing.assert_close(weighted_soft(s, t, 1.0, 1.5), expected, atol=1e-12, rtol=0)
    assert float(weighted_soft(best, t, 1.0, 1.5).abs().max()) < 1e-12
    assert float(weighted_soft(s, t, 1.0, 1.5).min()) >= 0.0


def test_gradient_is_that_of_the_weighted_cross_entropy(wave: Wave) -> None:
    s, t = wave(6, 5)
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(weighted_soft(s, t, 2.0, 0.7).sum(), s)
    (expected,) = torch.autograd.grad(published(s, t, 2.0, 0.7).sum(), s)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda x: weighted_soft(x, t), (s,))


def test_equal_weights_are_plain_cross_entropy(wave: Wave) -> None:
    torch.testing.assert_close(weighted_soft(*wave(6, 5), 1.0, 1.0), binary_divergence(*wave(6, 5)))


def test_trust_by_hand() -> None:
    """Points at x = 4, 12, 20, 28; a car is at points 0-1 (detected), a bus at points 1-2 (missed)."""
    points = torch.tensor([[4.0, 4], [12.0, 4], [20.0, 4], [28.0, 4]])
    targets = Targets(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([[0.0, 0, 16, 8], [8.0, 0, 24, 8]]))
    scores = torch.zeros(2, 4, 2)
    scores[0, :, 0] = torch.tensor([0.9, 0.1, 0.8, 0.4])  # the .8 lies outside the car: a false positive
    scores[0, :, 1] = torch.tensor([0.6, 0.1, 0.2, 0.0])  # the .6 lies outside the bus; inside it < .25
    scores[1] = 0.9  # no ground truth in this image: full weight
    config = ClassWeightedSoftConfig(false_positive=0.3, false_negative=0.1)
    trust = teacher_trust(scores, points, targets, config)
    assert trust[0, :, 0].tolist() == pytest.approx([1.0, 1.0, 0.3, 1.0])
    assert trust[0, :, 1].tolist() == pytest.approx([0.3, 0.1, 0.1, 1.0])
    assert trust[1].eq(1.0).all()


def test_a_detected_object_may_have_low_scores_at_other_points() -> None:
    """One point above the threshold is enough: the other points and levels need not predict the object."""
    points = torch.tensor([[4.0, 4], [12.0, 4]])
    targets = Targets(torch.tensor([0]), torch.tensor([0]), torch.tensor([[0.0, 0, 16, 8]]))
    scores = torch.tensor([[[0.3], [0.0]]])
    assert teacher_trust(scores, points, targets, ClassWeightedSoftConfig()).eq(1.0).all()
    scores = torch.tensor([[[0.2], [0.0]]])
    assert teacher_trust(scores, points, targets, ClassWeightedSoftConfig()).flatten().tolist() == pytest.approx(
        [0.2, 0.2]
    )


def test_a_detected_object_does_not_cover_a_missed_one_of_its_class() -> None:
    """Only the points of the missed box have the weight of a false negative."""
    points = torch.tensor([[4.0, 4], [12.0, 4], [20.0, 4]])
    boxes = torch.tensor([[0.0, 0, 8, 8], [8.0, 0, 24, 8]])
    targets = Targets(torch.tensor([0, 0]), torch.tensor([0, 0]), boxes)
    scores = torch.tensor([[[0.9], [0.1], [0.2]]])
    trust = teacher_trust(scores, points, targets, ClassWeightedSoftConfig(false_negative=0.0))
    assert trust.flatten().tolist() == [1.0, 0.0, 0.0]


def test_module_applies_trust_and_normaliser(
    wave: Wave, row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    s, t = wave(7, 3)
    config = ClassWeightedSoftConfig(foreground=2.0, background=1.0, confident=0.5, false_positive=0.0)
    loss = ClassWeightedSoft(config, row_spec, row_spec)
    elsewhere = Targets(torch.tensor([0]), torch.tensor([0]), torch.tensor([[900.0, 900, 950, 950]]))
    rows, u = weighted_soft(s, t, 2.0, 1.0), t.sigmoid().amax(-1).sum()
    full = float(loss(rows_side(s), rows_side(t), no_targets))
    assert full == pytest.approx(float(rows.sum() / u), abs=1e-12)
    reduced = float(loss(rows_side(s), rows_side(t), elsewhere))
    assert reduced == pytest.approx(float(rows[t.sigmoid() <= 0.5].sum() / u), abs=1e-12)
