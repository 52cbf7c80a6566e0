"""Runs the chosen losses on what teacher and student gave, and weighs them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import ONE_TO_MANY, Channel, DetectorOutput
from kd_vision.losses.base import DistillationLoss


class Distiller(nn.Module):
    """All distillation terms of a run.

    Args:
        losses: by the name each term is logged under.

    A term with ``weight: auto`` weighs nothing until `calibrate` sets its weight, once.
    """

    auto_weights: Tensor

    def __init__(self, losses: Mapping[str, DistillationLoss]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.register_buffer("auto_weights", torch.zeros(len(losses), dtype=torch.float32))
        self._requires = frozenset(channel for loss in losses.values() for channel in loss.requires)

    @property
    def requires(self) -> frozenset[Channel]:
        """Channels that teacher and student must give."""
        return self._requires

    def terms(self) -> dict[str, DistillationLoss]:
        """The losses by term name."""
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, DistillationLoss)}

    def awaits_calibration(self) -> tuple[str, ...]:
        """Names of the terms whose weight is ``auto`` and not set yet."""
        return tuple(
            name
            for index, (name, loss) in enumerate(self.terms().items())
            if loss.config.weight == "auto" and float(self.auto_weights[index]) == 0.0
        )

    def calibrate(self, name: str, term_gradient: float, task_gradient: float) -> None:
        """Set an ``auto`` weight so that the term's gradient is its `share` of the task's.

        Args:
            name: the term.
            term_gradient: L2 norm of the unweighted term's gradient at the student's neck.
            task_gradient: L2 norm of the task losses' gradient at the same place.
        """
        index = list(self.losses).index(name)
        share = self.terms()[name].config.share
        self.auto_weights[index] = share * task_gradient / term_gradient

    def weights(self, progress: float) -> dict[str, float]:
        """Weight of each term at `progress`, the share of training done, in [0, 1]."""
        found = {}
        for index, (name, loss) in enumerate(self.terms().items()):
            base = float(self.auto_weights[index]) if loss.config.weight == "auto" else loss.config.weight
            found[name] = float(base) * loss.config.schedule.factor(progress)
        return found

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """Return every term by name, unweighted.

        Heads with two branches learn on every branch that both sides have, each branch counting
        as in the student's own loss. A loss on the one-to-one branch alone would never reach the
        neck, whose input that branch detaches.
        """
        return {name: _on_branches(loss, student, teacher, targets) for name, loss in self.terms().items()}


def _on_branches(loss: DistillationLoss, student: DetectorOutput, teacher: DetectorOutput, targets: Targets) -> Tensor:
    if "features" in loss.requires or not student.grids:
        value: Tensor = loss(student.channels(), teacher.channels(), targets)
        return value
    shared = [branch for branch in student.grids if branch in teacher.grids] or [ONE_TO_MANY]
    weights = {branch: student.branch_weights.get(branch, 1.0) for branch in shared}
    total = sum(weights.values()) or 1.0
    parts = [
        loss(student.channels(branch), teacher.channels(branch), targets) * (weight / total)
        for branch, weight in weights.items()
    ]
    return torch.stack(parts).sum()
