"""Runs the chosen losses on what teacher and student gave, and weighs them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import ONE_TO_MANY, DetectorOutput, Signal
from kd_vision.losses.base import DistillationLoss

ONLY_TEACHER = "teacher"
"""Name of a teacher that is alone."""
KNOWLEDGE = "knowledge"
"""Name of the teacher whose answers were stored before training and come with the batch."""


class Distiller(nn.Module):
    """All distillation terms of a run.

    Args:
        losses: by the name each term is logged under.
        teachers: whom each term learns from; a term that is not named learns from `ONLY_TEACHER`.

    A term with ``weight: auto`` weighs nothing until `calibrate` sets its weight, once.
    """

    auto_weights: Tensor

    def __init__(self, losses: Mapping[str, DistillationLoss], teachers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.register_buffer("auto_weights", torch.zeros(len(losses), dtype=torch.float32))
        self._teacher_of = {name: (teachers or {}).get(name, ONLY_TEACHER) for name in losses}

    def requires(self, active: frozenset[str] | None = None) -> frozenset[Signal]:
        """Channels that the student must give, for the terms that are active; None: all are."""
        return frozenset().union(*self.required_signals(active).values())

    def teacher_of(self, name: str) -> str:
        """Whom a term learns from."""
        return self._teacher_of[name]

    def required_signals(self, active: frozenset[str] | None = None) -> dict[str, frozenset[Signal]]:
        """Channels that each teacher must give, for the terms that are active; None: all are."""
        found: dict[str, frozenset[Signal]] = {}
        for name, loss in self.terms().items():
            if active is None or name in active:
                teacher = self._teacher_of[name]
                found[teacher] = found.get(teacher, frozenset()) | loss.requires
        return found

    def active(self, progress: float) -> frozenset[str]:
        """Names of the terms whose schedule has them take part at `progress`."""
        return frozenset(name for name, loss in self.terms().items() if loss.config.schedule.takes_part(progress))

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

    def forward(
        self,
        student: DetectorOutput,
        said: Mapping[str, DetectorOutput],
        targets: Targets,
        active: frozenset[str] | None = None,
    ) -> dict[str, Tensor]:
        """Return every active term by name, unweighted.

        Heads with two branches learn on every branch that both sides have, each branch counting
        as in the student's own loss. A loss on the one-to-one branch alone would never reach the
        neck, whose input that branch detaches.

        Args:
            student: its pass over the batch.
            said: by each teacher.
            targets: ground truth of the batch.
            active: the terms that take part; None: all.
        """
        return {
            name: _on_branches(loss, student, said[self._teacher_of[name]], targets)
            for name, loss in self.terms().items()
            if active is None or name in active
        }


def _on_branches(loss: DistillationLoss, student: DetectorOutput, teacher: DetectorOutput, targets: Targets) -> Tensor:
    if loss.requires != {"grid"} or not student.grids:
        value: Tensor = loss(student.signals(), teacher.signals(), targets)
        return value
    shared = [branch for branch in student.grids if branch in teacher.grids] or [ONE_TO_MANY]
    weights = {branch: student.branch_weights.get(branch, 1.0) for branch in shared}
    total = sum(weights.values()) or 1.0
    parts = [
        loss(student.signals(branch), teacher.signals(branch), targets) * (weight / total)
        for branch, weight in weights.items()
    ]
    return torch.stack(parts).sum()
