from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import GridPredictions, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.divergence import softmax_divergence
from kd_vision.losses.hinton import Hinton, HintonConfig, hinton_loss

Wave = Callable[..., tuple[Tensor, Tensor]]


def plain_python(s: Tensor, t: Tensor, labels: list[int], alpha: float, temperature: float) -> float:
    """The same combination with nothing but math.exp and math.log."""

    def softmax(row: list[float], by: float) -> list[float]:
        powers = [math.exp(x / by) for x in row]
        return [x / sum(powers) for x in powers]

    total = 0.0
    for s_row, t_row, label in zip(s.tolist(), t.tolist(), labels, strict=True):
        hard = -math.log(softmax(s_row, 1.0)[label])
        pairs = zip(softmax(s_row, temperature), softmax(t_row, temperature), strict=True)
        total += alpha * hard + (1 - alpha) * temperature**2 * sum(q * math.log(q / p) for p, q in pairs)
    return total / len(labels)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.1, 2.0), (0.5, 4.0), (1.0, 7.0), (0.0, 1.0)])
def test_agrees_with_plain_python(alpha: float, temperature: float, wave: Wave) -> None:
    s, t = wave(6, 5)
    labels = [k % 5 for k in range(6)]
    value = hinton_loss(s, t, torch.tensor(labels), alpha, temperature)
    assert float(value) == pytest.approx(plain_python(s, t, labels, alpha, temperature), abs=1e-12)


def test_soft_part_alone_has_the_reference_value(wave: Wave) -> None:
    labels = torch.arange(6) % 5
    assert float(hinton_loss(*wave(6, 5), labels, 0.0, 4.0)) == pytest.approx(0.145585448922, abs=1e-6)


def test_smooth_and_zero_without_rows(wave: Wave) -> None:
    s, t = wave(6, 5)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hinton_loss(x, t, torch.arange(6) % 5, 0.3, 3.0), (s,))
    empty = hinton_loss(s[:0], t[:0], torch.zeros(0, dtype=torch.int64), 0.3, 3.0)
    (gradient,) = torch.autograd.grad(empty, s)
    assert float(empty.detach()) == 0.0
    assert float(gradient.abs().max()) == 0.0


def two_images(first: Signals, second: Signals) -> Signals:
    assert first.grid is not None
    assert second.grid is not None
    grid: GridPredictions = replace(
        first.grid,
        logits=torch.cat([first.grid.logits, second.grid.logits]),
        boxes_xyxy=torch.cat([first.grid.boxes_xyxy, second.grid.boxes_xyxy]),
    )
    return Signals(grid=grid)


def test_points_in_boxes_take_labels_and_confident_points_elsewhere_only_the_soft_part(
    wave: Wave, row_spec: DetectorSpec, rows_side: Callable[..., Signals]
) -> None:
    """Points lie at x = 4, 12, 20, 28, 36. Image 0: the wide box holds 1-3, the small one inside takes 2."""
    s, t = wave(10, 3)
    student = two_images(rows_side(s[:5]), rows_side(s[5:]))
    teacher = two_images(rows_side(t[:5]), rows_side(t[5:]))
    targets = Targets(torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([[8.0, 0, 32, 8], [16.0, 0, 24, 8]]))
    value = Hinton(HintonConfig(alpha=0.3, temperature=2.0, min_score=0.5), row_spec, row_spec)(
        student, teacher, targets
    )
    hard = hinton_loss(s[1:4], t[1:4], torch.tensor([1, 2, 1]), 0.3, 2.0) * 3
    confident = t[5:].sigmoid().amax(-1) > 0.5
    assert 0 < int(confident.sum()) < 5
    soft = 0.7 * softmax_divergence(s[5:][confident], t[5:][confident], 2.0).sum()
    assert float(value) == pytest.approx(float((hard + soft) / (3 + confident.sum())), abs=1e-12)


def test_one_class_is_refused(row_spec: DetectorSpec) -> None:
    single = replace(row_spec, classes=("car",))
    assert Hinton.incompatibilities(HintonConfig(), single, single) == [
        "needs two classes that the teacher knows (a softmax over one is always 1); use class_bce instead"
    ]


def test_zero_without_labels_and_confident_points(
    row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    """Zero is legitimate here, so the loss declares it and a run does not stop."""
    quiet = rows_side(torch.full((7, 3), -4.0, dtype=torch.float64))
    loss = Hinton(HintonConfig(), row_spec, row_spec)
    assert float(loss(rows_side(torch.zeros(7, 3, dtype=torch.float64)), quiet, no_targets)) == 0.0
    assert loss.can_be_zero
