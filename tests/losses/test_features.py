"""Linear adapters: the first fit, resizing, standardising."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import LossConfig
from kd_vision.losses.feature_mse import FeatureMSE
from kd_vision.losses.feature_pkd import FeaturePKD, FeaturePKDConfig
from kd_vision.losses.features import FeatureLoss, LinearFeatureLoss, centred, channel_std, resize_to

Pair = tuple[DetectorSpec, DetectorSpec]


def linear_pairs(count: int, maps: Callable[[Tensor], Tensor]) -> list[tuple[Signals, Signals]]:
    """Batches whose teacher P3 is a function of the student's P3."""
    source = torch.Generator().manual_seed(4)
    pairs = []
    for _ in range(count):
        ours = torch.randn(2, 3, 8, 8, generator=source, dtype=torch.float64) + 2.0
        same = torch.randn(2, 6, 4, 4, generator=source, dtype=torch.float64)
        pairs.append((Signals({"P3": ours, "P4": same}), Signals({"P3": maps(ours), "P4": same})))
    return pairs


def test_fit_recovers_a_linear_teacher(specs: Pair, no_targets: Targets) -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.arange(5, dtype=torch.float64)
    pairs = linear_pairs(3, lambda x: torch.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None])
    loss = FeatureMSE(LossConfig(), *specs).double()
    before = float(loss(*pairs[0], no_targets).detach())
    loss.fit(iter(pairs))
    adapter = loss.adapters["P3"]
    assert isinstance(adapter, nn.Conv2d)
    assert adapter.bias is not None
    torch.testing.assert_close(adapter.weight[:, :, 0, 0], weight, atol=2e-3, rtol=0)
    torch.testing.assert_close(adapter.bias.data, bias, atol=5e-3, rtol=0)
    assert float(loss(*pairs[0], no_targets).detach()) < 1e-5 < before


def test_fit_is_the_least_squares_solution_on_noise(specs: Pair) -> None:
    """Against numpy's solver on all positions of all batches; the ridge moves it by about 1e-4."""
    noise = torch.Generator().manual_seed(9)
    pairs = linear_pairs(2, lambda x: torch.randn(2, 5, 8, 8, generator=noise, dtype=torch.float64) + x[:, :1])
    loss = FeatureMSE(LossConfig(), *specs).double()
    loss.fit(pairs)
    x = torch.cat([s.features["P3"].movedim(1, -1).reshape(-1, 3) for s, _ in pairs])
    y = torch.cat([t.features["P3"].movedim(1, -1).reshape(-1, 5) for _, t in pairs])
    design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(design, y).solution.T
    adapter = loss.adapters["P3"]
    assert isinstance(adapter, nn.Conv2d)
    assert adapter.bias is not None
    torch.testing.assert_close(adapter.weight[:, :, 0, 0].data, expected[:, :3], atol=1e-3, rtol=0)
    torch.testing.assert_close(adapter.bias.data, expected[:, 3], atol=2e-3, rtol=0)


def test_fit_without_bias_still_centres(specs: Pair, no_targets: Targets) -> None:
    """PKD has no bias; a teacher far from 0 must not spoil its weights."""
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = linear_pairs(2, lambda x: torch.einsum("oc,bchw->bohw", weight, x) + 100.0)
    loss = FeaturePKD(FeaturePKDConfig(), *specs).double()
    loss.fit(pairs)
    assert float(loss(*pairs[0], no_targets).detach()) < 1e-5


def test_fit_survives_constant_and_resized_maps(specs: Pair) -> None:
    student = Signals({"P3": torch.full((2, 3, 4, 4), 7.0), "P4": torch.zeros(2, 6, 4, 4)})
    teacher = Signals({"P3": torch.full((2, 5, 8, 8), 3.0), "P4": torch.zeros(2, 6, 4, 4)})
    loss = FeatureMSE(LossConfig(), *specs)
    loss.fit([(student, teacher)])
    adapter = loss.adapters["P3"]
    assert isinstance(adapter, nn.Conv2d)
    assert adapter.bias is not None
    torch.testing.assert_close(adapter.bias.data, torch.full((5,), 3.0))
    assert float(adapter.weight.abs().max().detach()) == 0.0


def test_fit_needs_batches_only_where_there_is_an_adapter(specs: Pair) -> None:
    with pytest.raises(ValueError, match="fit needs at least one batch"):
        FeatureMSE(LossConfig(), *specs).fit([])
    FeatureMSE(LossConfig(), specs[1], specs[1]).fit([])


def test_resizing_is_bilinear_and_commutes_with_the_adapter() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 2, 4)
    like = torch.zeros(1, 9, 4, 8)
    wide = resize_to(ramp, like)
    # Half-pixel centres: the eight columns lie at -.25, .25, .75, ... of the four, held at the borders.
    assert wide[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
    assert resize_to(ramp, torch.zeros(1, 1, 2, 4)) is ramp
    conv, maps = nn.Conv2d(3, 9, 1), torch.randn(1, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_to(conv(maps), like), conv(resize_to(maps, like)))


def test_a_smaller_student_map_is_compared_at_the_teachers_size(specs: Pair, no_targets: Targets) -> None:
    class Same(LinearFeatureLoss):
        def level_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
            assert student.shape == teacher.shape
            return (student - teacher).abs().max()

    ours, theirs = torch.full((1, 6, 2, 2), 4.0), torch.full((1, 6, 4, 4), 1.5)
    loss = Same(LossConfig(levels=("P4",)), *specs)
    assert float(loss(Signals({"P4": ours}), Signals({"P4": theirs}), no_targets)) == 2.5


def test_levels_are_summed(specs: Pair, no_targets: Targets) -> None:
    class Mean(FeatureLoss):
        def level_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
            return student.mean() + 10 * teacher.mean()

    sides = [Signals({"P3": torch.full((1, 3, 2, 2), 1.0), "P4": torch.full((1, 6, 1, 1), float(a))}) for a in (2, 3)]
    assert float(Mean(LossConfig(), *specs)(*sides, no_targets)) == pytest.approx(1 + 10 + 2 + 30)


def test_deviation_by_hand_and_against_torch() -> None:
    maps = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64).view(2, 1, 1, 2)
    assert centred(maps).flatten().tolist() == [-2.0, -1.0, 0.0, 3.0]
    assert float(channel_std(centred(maps))) == pytest.approx((14 / 3) ** 0.5, abs=1e-12)
    many = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    many.requires_grad_()
    ours, theirs = channel_std(centred(many)), many.std(dim=(0, 2, 3))
    torch.testing.assert_close(ours, theirs)
    for gradient, other in zip(
        torch.autograd.grad(ours.sum(), many), torch.autograd.grad(theirs.sum(), many), strict=True
    ):
        torch.testing.assert_close(gradient, other)


def test_a_single_value_has_no_deviation_and_no_gradient() -> None:
    lone = torch.full((1, 2, 1, 1), 5.0, requires_grad=True)
    std = channel_std(centred(lone))
    (gradient,) = torch.autograd.grad(std.sum(), lone)
    assert std.tolist() == [0.0, 0.0]
    assert float(gradient.abs().max()) == 0.0
