from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.class_kl import ClassKL, ClassKLConfig
from kd_vision.losses.divergence import softmax_divergence

Wave = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.138231097417), (4.0, 0.145585448922)])
def test_reference_values(temperature: float, expected: float, wave: Wave) -> None:
    assert float(softmax_divergence(*wave(6, 5), temperature).mean()) == pytest.approx(expected, abs=1e-6)


def test_zero_at_equality_and_blind_to_shifts_of_a_row(wave: Wave) -> None:
    s, t = wave(6, 5)
    shift = torch.arange(6, dtype=torch.float64)[:, None]
    assert float(softmax_divergence(s, s, 3.0).abs().max()) == 0.0
    torch.testing.assert_close(softmax_divergence(s + shift, t - shift, 3.0), softmax_divergence(s, t, 3.0))


def test_gradient_is_t_times_the_difference(wave: Wave) -> None:
    s, t = wave(6, 5)
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(softmax_divergence(s, t, 4.0).mean(), s)
    expected = 4.0 * ((s / 4).softmax(-1) - (t / 4).softmax(-1)) / 6
    torch.testing.assert_close(gradient, expected.detach(), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda x: softmax_divergence(x, t, 4.0), (s,))


def test_limit_of_great_temperature(wave: Wave) -> None:
    s, t = wave(6, 5)
    difference = (s - s.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))
    limit = float((difference.square().sum(-1) / (2 * 5)).mean())
    assert limit == pytest.approx(0.146643, abs=1e-6)
    assert float(softmax_divergence(s, t, 1e4).mean()) == pytest.approx(limit, abs=1e-5)


@pytest.mark.parametrize("reduction", ["confidence", "mean"])
def test_reductions(
    reduction: str,
    wave: Wave,
    row_spec: DetectorSpec,
    rows_side: Callable[..., Signals],
    no_targets: Targets,
) -> None:
    s, t = wave(7, 3)
    config = ClassKLConfig.model_validate({"temperature": 2.0, "reduction": reduction})
    value = float(ClassKL(config, row_spec, row_spec)(rows_side(s), rows_side(t), no_targets))
    p, q = (s / 2).softmax(-1), (t / 2).softmax(-1)
    rows = 4 * (q * (q / p).log()).sum(-1)
    u = t.sigmoid().amax(-1)
    expected = rows.mean() if reduction == "mean" else (u * rows).sum() / u.sum()
    assert float(u.sum()) > 1
    assert value == pytest.approx(float(expected), abs=1e-12)


def test_one_class_is_refused(row_spec: DetectorSpec) -> None:
    single = replace(row_spec, classes=("car",))
    assert ClassKL.incompatibilities(ClassKLConfig(), single, single) == [
        "needs two classes that the teacher knows (a softmax over one is always 1); use class_bce instead"
    ]


def test_one_class_that_the_teacher_knows_is_refused(row_spec: DetectorSpec) -> None:
    """The other column is hidden on both sides, so that a softmax over the rest is always 1."""
    both = replace(row_spec, classes=("person", "helmet"))
    knows_one = replace(both, missing_classes=frozenset({"helmet"}))
    assert ClassKL.incompatibilities(ClassKLConfig(), both, both) == []
    assert ClassKL.incompatibilities(ClassKLConfig(), both, knows_one) == [
        "needs two classes that the teacher knows (a softmax over one is always 1); use class_bce instead"
    ]
