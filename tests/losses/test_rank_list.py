from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.rank_list import RankList, RankListConfig, grouped_divergence

Wave = Callable[..., tuple[Tensor, Tensor]]
RowsSide = Callable[..., Signals]


def divergence(s: Tensor, t: Tensor, temperature: float) -> float:
    p, q = (s / temperature).softmax(0), (t / temperature).softmax(0)
    return float(temperature**2 * (q * (q / p).log()).sum())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_groups_agree_with_one_softmax_each(wave: Wave, temperature: float) -> None:
    """Groups of 4, 1, 0 and 5 values, mixed; one of them with logits that would overflow without care."""
    s, t = wave(10)
    s = s + 800.0
    group = torch.tensor([0, 3, 0, 1, 3, 0, 3, 3, 0, 3])
    found = grouped_divergence(s, t, group, 4, temperature)
    for index in (0, 3):
        assert float(found[index]) == pytest.approx(
            divergence(s[group == index], t[group == index], temperature), rel=1e-9
        )
    assert found[1:3].tolist() == [0.0, 0.0]


def test_gradient_of_a_group_is_p_minus_q(wave: Wave) -> None:
    s, t = wave(5)
    s.requires_grad_()
    group = torch.zeros(5, dtype=torch.int64)
    (gradient,) = torch.autograd.grad(grouped_divergence(s, t, group, 1, 2.0).sum(), s)
    expected = 2.0 * ((s / 2).softmax(0) - (t / 2).softmax(0)).detach()
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def boxes(*spans: tuple[float, float]) -> Targets:
    """Objects of image 0 over spans of the line of points 4, 12, 20, ..."""
    return Targets(
        torch.zeros(len(spans), dtype=torch.int64),
        torch.zeros(len(spans), dtype=torch.int64),
        torch.tensor([[left, 0.0, right, 8.0] for left, right in spans]),
    )


def test_mean_over_objects_that_hold_a_point(wave: Wave, row_spec: DetectorSpec, rows_side: RowsSide) -> None:
    """Points 0-3 lie in the large box, 1 and 2 of them in a smaller one, which has them; the last box holds none."""
    s, t = wave(6, 3)
    found = RankList(RankListConfig(), row_spec, row_spec)(
        rows_side(s), rows_side(t), boxes((0, 32), (8, 24), (45, 47))
    )
    best = s.amax(-1), t.amax(-1)
    large = divergence(best[0][[0, 3]], best[1][[0, 3]], 1.0)
    small = divergence(best[0][1:3], best[1][1:3], 1.0)
    assert float(found) == pytest.approx((large + small) / 2, rel=1e-9)


def test_the_level_of_the_scores_is_not_taught(wave: Wave, row_spec: DetectorSpec, rows_side: RowsSide) -> None:
    s, _ = wave(6, 3)
    loss = RankList(RankListConfig(temperature=2.0), row_spec, row_spec)
    assert float(loss(rows_side(s), rows_side(s - 5.0), boxes((0, 48)))) == pytest.approx(0.0, abs=1e-12)


def test_without_ground_truth_the_teachers_boxes_are_the_objects(
    wave: Wave, row_spec: DetectorSpec, rows_side: RowsSide, no_targets: Targets
) -> None:
    s, t = wave(6, 3)
    loss = RankList(RankListConfig(), row_spec, row_spec)
    student, teacher = rows_side(s.requires_grad_()), rows_side(t)
    nothing = loss(student, teacher, no_targets)
    assert float(nothing) == 0.0
    assert nothing.requires_grad
    truth = boxes((0, 24), (24, 40), (40, 48))
    claims = PseudoLabels(
        truth.image_index,
        truth.boxes_xyxy,
        torch.ones(3, 3),
        torch.tensor([0.9, 0.4, 0.9]),
        torch.tensor([0, 0, 1]) > 0,
    )
    told = replace(teacher, pseudo_labels=claims)
    expected = loss(student, teacher, boxes((0, 24)))  # the second is unsure, the third to be ignored
    assert float(loss(student, told, no_targets)) == pytest.approx(float(expected), rel=1e-12)
    labelled = boxes((24, 48))
    assert float(loss(student, told, labelled)) == float(loss(student, teacher, labelled))
