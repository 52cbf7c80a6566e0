from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.box_ld import BinReduction, BoxLD, BoxLDConfig, bins_divergence

Wave = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize(
    ("temperature", "reduction", "expected"),
    [(1.0, "sum", 0.727060347559), (10.0, "mean", 0.0477464081064)],
)
def test_reference_values_of_crosskd_and_ld(
    temperature: float, reduction: BinReduction, expected: float, wave: Wave
) -> None:
    weights = torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
    rows = bins_divergence(*wave(8, 17), temperature, reduction)
    assert float((rows * weights).sum() / 4) == pytest.approx(expected, abs=1e-6)


def test_reference_value_of_yolov6(wave: Wave) -> None:
    assert float(bins_divergence(*wave(8, 17), 20.0).mean()) == pytest.approx(0.834206634472, abs=1e-6)


def test_published_weight_belongs_to_its_reduction(wave: Wave) -> None:
    """LD's .25 on the mean over 17 bins is .25 / 17 on the sum (1.47 once its T^2 = 100 is counted)."""
    mean = 0.25 * bins_divergence(*wave(8, 17), 10.0, "mean")
    torch.testing.assert_close(mean, 0.25 / 17 * bins_divergence(*wave(8, 17), 10.0, "sum"))


def test_gradient_is_t_times_the_difference(wave: Wave) -> None:
    s, t = wave(8, 17)
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(bins_divergence(s, t, 5.0).sum(), s)
    expected = 5.0 * ((s / 5).softmax(-1) - (t / 5).softmax(-1))
    torch.testing.assert_close(gradient, expected.detach(), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda x: bins_divergence(x, t, 2.0), (s,))


def test_sees_what_the_mean_distance_hides() -> None:
    """Bins 1 and 3 half each, and bin 2 alone, have one expected distance; IoU would be 1."""
    spread = torch.tensor([0.0001, 0.4998, 0.0002, 0.4998, 0.0001], dtype=torch.float64).log()
    sharp = torch.tensor([0.0001, 0.0001, 0.9996, 0.0001, 0.0001], dtype=torch.float64).log()
    distances = torch.arange(5, dtype=torch.float64)
    means = [float((x.softmax(-1) * distances).sum()) for x in (spread, sharp)]
    assert means[0] == pytest.approx(means[1], abs=1e-12)
    assert float(bins_divergence(spread, sharp)) > 5


def test_side_mean_weighted_by_the_teachers_score(
    wave: Wave, row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    s, t = wave(3, 4, 5)
    logits = torch.full((3, 3), -300.0, dtype=torch.float64)
    logits[:, 0] = torch.logit(torch.tensor([0.9, 0.6, 0.1], dtype=torch.float64))
    loss = BoxLD(BoxLDConfig(), row_spec, row_spec)
    value = loss(rows_side(logits, bins=s), rows_side(logits, bins=t), no_targets)
    p, q = (s / 2).softmax(-1), (t / 2).softmax(-1)
    points = 4 * (q * (q / p).log()).sum(-1).mean(-1)
    expected = (0.9 * points[0] + 0.6 * points[1] + 0.1 * points[2]) / 1.6
    assert float(value) == pytest.approx(float(expected), abs=1e-12)


def test_heads_without_the_same_bins_are_refused(
    row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    direct, coarse = replace(row_spec, box_bins=None), replace(row_spec, box_bins=16)
    for student, teacher, line in [
        (direct, direct, "teacher none, student none"),
        (row_spec, coarse, "teacher 16, student 5"),
    ]:
        assert BoxLD.incompatibilities(BoxLDConfig(), student, teacher) == [
            f"needs the same number of box bins; {line}; use box_iou instead"
        ]
    loss = BoxLD(BoxLDConfig(), row_spec, row_spec)
    with pytest.raises(RequestError, match="the student's head predicts no box bins; use box_iou instead"):
        loss(rows_side(torch.zeros(2, 3)), rows_side(torch.zeros(2, 3)), no_targets)
