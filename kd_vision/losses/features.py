"""Base of the losses on feature maps: linear adapters and their initial fit, resizing, standard deviations.

Shapes: B images, C channels (Cs student, Ct teacher), H W positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signal, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import ConfigT_co, DistillationLoss, computed
from kd_vision.losses.grid import full_precision

LEAST_STD = 1e-3
"""Deviation below which a channel counts as constant."""
STD_EPSILON = 1e-6
"""Added to deviations that divide, as in mmrazor."""

_RIDGE = 1e-4


def resize_to(maps: Tensor, like: Tensor) -> Tensor:
    """Return (B, C, h, w) `maps` with the height and width of `like`, bilinear where they differ."""
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return functional.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)


def apply_in_full_precision(module: nn.Module, maps: Tensor) -> Tensor:
    """Run an adapter outside autocast: half precision would round away the difference that is the loss."""
    with torch.autocast(maps.device.type, enabled=False):
        result: Tensor = module(maps)
    return result


def centred(maps: Tensor) -> Tensor:
    """Return `maps` less each channel's mean over images and positions, the mean taken as a constant.

    Exact for losses that are invariant to a shift of a channel (their gradient sums to 0 over the channel), and
    one pass over the maps cheaper.

    Args:
        maps: (B, C, H, W).
    """
    return maps - maps.detach().mean(dim=(0, 2, 3), keepdim=True)


def channel_std(centred_maps: Tensor) -> Tensor:
    """Return (C,) unbiased standard deviation of each channel over images and positions.

    A single value has deviation 0 rather than NaN. The gradient of a constant channel is 0.

    Args:
        centred_maps: (B, C, H, W), each channel of mean 0.
    """
    values = centred_maps.shape[0] * centred_maps.shape[2] * centred_maps.shape[3]
    norm: Tensor = torch.linalg.vector_norm(centred_maps, dim=(0, 2, 3))
    std: Tensor = norm / max(values - 1, 1) ** 0.5
    return std


class FeatureLoss(DistillationLoss[ConfigT_co]):
    """Base of losses that compare maps level by level; the loss is the sum of `level_loss` over levels."""

    requires: ClassVar[frozenset[Signal]] = frozenset({"features"})
    class_aware: ClassVar[bool] = False
    uses_levels: ClassVar[bool] = True

    def level_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the scalar loss of one level; (B, C, H, W) of equal H W, float32 or better."""
        raise TypeError(f"{type(self).__name__} must define level_loss")

    def adapt(self, level: str, maps: Tensor) -> Tensor:
        """Return (B, Cs, H, W) student maps as `level_loss` compares them; here unchanged."""
        return maps

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        return torch.stack([self._compare(level, student, teacher) for level in self.levels]).sum()

    def _compare(self, level: str, student: Signals, teacher: Signals) -> Tensor:
        student_map, teacher_map = aligned(level, student, teacher)
        return self.level_loss(self.adapt(level, student_map), teacher_map)


class LinearFeatureLoss(FeatureLoss[ConfigT_co]):
    """Base of losses whose student maps go through a linear 1x1 adapter where widths differ.

    Levels of equal width have no adapter.

    Class attributes:
        adapter_bias: False for losses that are invariant to a shift of a channel, where a bias gets no gradient.
    """

    adapter_bias: ClassVar[bool] = True

    def __init__(self, config: ConfigT_co, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self.adapters = nn.ModuleDict()
        for level in self.levels:
            widths = student.level_channels[level], teacher.level_channels[level]
            if widths[0] != widths[1]:
                self.adapters[level] = nn.Conv2d(*widths, kernel_size=1, bias=self.adapter_bias)

    def adapt(self, level: str, maps: Tensor) -> Tensor:
        """Return (B, Cs, H, W) student maps at the teacher's width, (B, Ct, H, W)."""
        return apply_in_full_precision(self.adapters[level], maps) if level in self.adapters else maps

    def fit(self, batches: Iterable[tuple[Signals, Signals]]) -> None:
        """Set the adapters to the ridge regression from student to teacher maps, instead of random weights.

        Solved in float64 with an intercept; the ridge is 1e-4 of the mean variance of the student's channels.
        Without adapters no batch is read.

        Args:
            batches: (student, teacher) signals with features.

        Raises:
            ValueError: there are adapters but no batch.
        """
        if not self.adapters:
            return
        moments: dict[str, _Moments] = {}
        with torch.no_grad():
            for student, teacher in batches:
                for level in self.adapters:
                    batch = _Moments.of(*aligned(level, student, teacher))
                    moments[level] = moments[level].plus(batch) if level in moments else batch
            if not moments:
                raise ValueError("fit needs at least one batch of student and teacher features")
            for level, total in moments.items():
                _set_linear(self.adapters[level], *total.solve())


def aligned(level: str, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
    """Return one level of both sides in full precision, (B, Cs, H, W) and (B, Ct, H, W), teacher detached.

    The student's map is resized to the teacher's height and width; this commutes with the 1x1 adapter that follows.

    Raises:
        RequestError: the signal was not computed.
    """
    teacher_map = full_precision(computed(teacher.features.get(level), "features", "teacher").detach())
    student_map = full_precision(computed(student.features.get(level), "features", "student"))
    return resize_to(student_map, teacher_map), teacher_map


def _set_linear(adapter: nn.Module, weight: Tensor, bias: Tensor) -> None:
    if not isinstance(adapter, nn.Conv2d):
        raise TypeError(f"a linear adapter must be a Conv2d; given {type(adapter).__name__}")
    adapter.weight.copy_(weight[:, :, None, None])
    if adapter.bias is not None:
        adapter.bias.copy_(bias)


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over positions of the student (x) and the teacher (y) for a linear regression, in float64."""

    count: int
    x: Tensor  # (Cs,) student
    y: Tensor  # (Ct,) teacher
    xx: Tensor  # (Cs, Cs)
    xy: Tensor  # (Cs, Ct)

    @staticmethod
    def of(student: Tensor, teacher: Tensor) -> _Moments:
        # On the CPU, as not every device has 64 bits.
        x = student.cpu().double().movedim(1, -1).flatten(0, -2)
        y = teacher.cpu().double().movedim(1, -1).flatten(0, -2)
        return _Moments(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def plus(self, other: _Moments) -> _Moments:
        return _Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return weight (Ct, Cs) and bias (Ct,)."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        covariance = self.xx / self.count - torch.outer(mean_x, mean_x)
        cross = self.xy / self.count - torch.outer(mean_x, mean_y)
        # The added 1e-12 keeps the system solvable where every student channel is constant.
        ridge = _RIDGE * covariance.diagonal().mean() + 1e-12
        identity = torch.eye(len(mean_x), dtype=covariance.dtype, device=covariance.device)
        weight = torch.linalg.solve(covariance + ridge * identity, cross).T
        return weight, mean_y - weight @ mean_x
