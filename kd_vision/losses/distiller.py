"""Computes and weights the distillation terms of a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import ONE_TO_MANY, DetectorOutput, Signal, Signals
from kd_vision.losses.base import DistillationLoss

ONLY_TEACHER = "teacher"
"""Name of the teacher of a run that has one."""


class Distiller(nn.Module):
    """All distillation terms of a run.

    Args:
        losses: by the name each term is logged under.
        teachers: the teacher of each term, by the term's name; terms not named have `ONLY_TEACHER`.

    A term with ``weight: auto`` has weight 0 until `calibrate` sets it, once.
    """

    auto_weights: Tensor

    def __init__(self, losses: Mapping[str, DistillationLoss], teachers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.register_buffer("auto_weights", torch.zeros(len(losses), dtype=torch.float32))
        self._teacher_of = {name: (teachers or {}).get(name, ONLY_TEACHER) for name in losses}

    def requires(self, active: frozenset[str] | None = None) -> frozenset[Signal]:
        """Signals that the student must provide for the active terms; None: all are active."""
        return frozenset().union(*(loss.requires for loss in self.terms(active).values()))

    def required_signals(self, active: frozenset[str] | None = None) -> dict[str, frozenset[Signal]]:
        """Signals to ask of each teacher, by its name, for the active terms; None: all are active."""
        signals: dict[str, frozenset[Signal]] = {}
        for name, loss in self.terms(active).items():
            teacher = self._teacher_of[name]
            signals[teacher] = signals.get(teacher, frozenset()) | loss.teacher_signals
        return signals

    def teacher_of(self, name: str) -> str:
        """Name of a term's teacher."""
        return self._teacher_of[name]

    def active(self, progress: float) -> frozenset[str]:
        """Names of the terms that are computed at `progress`, by their schedules."""
        return frozenset(name for name, loss in self.terms().items() if loss.config.schedule.takes_part(progress))

    def terms(self, active: frozenset[str] | None = None) -> dict[str, DistillationLoss]:
        """The losses by term name, restricted to the active ones unless `active` is None."""
        return {
            name: loss
            for name, loss in self.losses.items()
            if isinstance(loss, DistillationLoss) and (active is None or name in active)
        }

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
        weights = {}
        for index, (name, loss) in enumerate(self.terms().items()):
            base = float(self.auto_weights[index]) if loss.config.weight == "auto" else loss.config.weight
            weights[name] = float(base) * loss.config.schedule.factor(progress)
        return weights

    def forward(
        self,
        student: DetectorOutput,
        teachers: Mapping[str, DetectorOutput],
        targets: Targets,
        active: frozenset[str] | None = None,
    ) -> dict[str, Tensor]:
        """Return every active term by name, unweighted.

        A loss sees only the signals that it declares, so its value does not depend on what other terms ask for.

        A `per_branch` loss is computed on every branch that both heads have, each branch weighted as in the student's
        own loss. On the one-to-one branch alone it would not reach the neck, because that branch detaches its input.

        Args:
            student: its output on the batch.
            teachers: their outputs by name.
            targets: ground truth of the batch.
            active: names of the terms to compute; None: all.
        """
        return {
            name: _term(loss, student, teachers[self._teacher_of[name]], targets)
            for name, loss in self.terms(active).items()
        }


def _term(loss: DistillationLoss, student: DetectorOutput, teacher: DetectorOutput, targets: Targets) -> Tensor:
    def on_branch(branch: str) -> Tensor:
        value: Tensor = loss(
            _restrict(student, loss.requires, branch), _restrict(teacher, loss.teacher_signals, branch), targets
        )
        return value

    if not loss.per_branch:
        return on_branch(ONE_TO_MANY)
    shared = [branch for branch in student.grids if branch in teacher.grids] or [ONE_TO_MANY]
    weights = {branch: student.branch_weights.get(branch, 1.0) for branch in shared}
    total = sum(weights.values()) or 1.0
    return torch.stack([on_branch(branch) * (weight / total) for branch, weight in weights.items()]).sum()


def _restrict(output: DetectorOutput, declared: frozenset[Signal], branch: str) -> Signals:
    """Return the declared signals of one side, with the grid of one branch of its head."""
    grid, boxes, regions = (signal in declared for signal in ("grid", "detections", "regions"))
    return Signals(
        features=output.features if "features" in declared else {},
        grid=output.grids.get(branch) if grid else None,
        pseudo_labels=output.pseudo_labels if boxes else None,
        assign=output.assign if boxes else None,
        raw_predictions=output.raw_predictions if regions else None,
        refine_regions=output.refine_regions if regions else None,
    )
