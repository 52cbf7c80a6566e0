"""Feature distillation by squared error, weighted by the teacher's scores, as in ultralytics' `distill_model`.

Shapes: B images, C channels of the teacher, H W positions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Signal, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.base import DistillationLoss, LossConfig, Weight, best_class_score, computed, select_levels
from kd_vision.losses.features import aligned, apply_in_full_precision
from kd_vision.losses.grid import full_precision


class FeatureSL2Config(LossConfig):
    """Settings of `FeatureSL2`.

    Attributes:
        weight: 6.0, the gain (`dis`) that ultralytics gives it.
    """

    weight: Weight = 6.0


def score_weighted_l2(student: Tensor, teacher: Tensor, scores: Tensor) -> Tensor:
    """Return sum u (s - t)^2 / (C * sum u + 1e-9); 0 where all scores are 0.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).
        scores: u >= 0, (B, 1, H, W).
    """
    difference = (student - teacher).square()
    return (difference * scores).sum() / (scores.sum() * student.shape[1] + 1e-9)


class FeatureSL2(DistillationLoss[FeatureSL2Config]):
    """Squared error to the teacher's maps, each position weighted by the teacher's best class score.

    L = sum_levels sum_{B,H,W} u ||phi(s) - t||^2 / (C * sum_{B,H,W} u + 1e-9) with u = max_c sigmoid(t_cls)
    and phi = 1x1 - ReLU - 1x1, learned from scratch.

    Shapes: maps (B, C, H, W) and teacher logits (B, A, K) to a scalar. Reduction: mean over channels and
    score-weighted positions of each level, sum over levels. Unit: the square of the teacher's activations.

    Raises:
        RequestError: the teacher's scores and maps of a level do not have the same positions.

    Source: ultralytics 8.4.190, `nn/distill_model.py` (no paper). For end-to-end teachers it averages the
    logits of both branches; we take the one-to-many branch. The projector is computed in float32 under AMP.
    """

    Config: ClassVar[type[LossConfig]] = FeatureSL2Config
    requires: ClassVar[frozenset[Signal]] = frozenset({"features", "grid"})
    uses_levels: ClassVar[bool] = True

    def __init__(self, config: FeatureSL2Config, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._teacher = teacher
        self.projectors = nn.ModuleDict(
            {level: _projector(student.level_channels[level], teacher.level_channels[level]) for level in self.levels}
        )

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        return torch.stack([self._compare(level, student, teacher) for level in self.levels]).sum()

    def _compare(self, level: str, student: Signals, teacher: Signals) -> Tensor:
        student_map, teacher_map = aligned(level, student, teacher)
        projected = apply_in_full_precision(self.projectors[level], student_map)
        return score_weighted_l2(projected, teacher_map, self._scores(level, teacher, teacher_map))

    def _scores(self, level: str, teacher: Signals, maps: Tensor) -> Tensor:
        """Return the teacher's best class score at each position of its map, (B, 1, H, W)."""
        spec = self._teacher
        stride, finest = spec.level_strides[level], min(spec.level_strides.values())
        logits = select_levels(computed(teacher.grid, "grid", "teacher"), (stride,), finest).logits.detach()
        images, _, height, width = maps.shape
        anchors = spec.level_anchors.get(level, 1)
        if logits.shape[1] != height * width * anchors:
            raise RequestError(
                f"FeatureSL2: level {level} of the teacher has {logits.shape[1] // anchors} grid points and a map of "
                f"{height} x {width}; they must agree"
            )
        scores = best_class_score(full_precision(logits)).view(images, height, width, anchors)
        return scores.amax(dim=-1)[:, None]


def _projector(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, kernel_size=1),
    )
