"""One training step: student, teacher and losses meet here and nowhere else.

Shapes: B images, C channels, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_vision.core.batch import ImageBatch, to_channels
from kd_vision.core.errors import TrainingError
from kd_vision.core.predictions import DetectorOutput, Signal
from kd_vision.detectors.base import Detector
from kd_vision.losses.distiller import ONLY_TEACHER, Distiller
from kd_vision.teachers.base import Teacher

_RUN_OF_ZEROS = 50


@dataclass(frozen=True, slots=True)
class StepTerms:
    """Everything a step is made of, each by name, unweighted.

    Attributes:
        task: the detector's own losses, mean per image.
        distillation: the terms of the distiller.
        features: the student's pyramid maps, where gradients are measured; empty unless asked for.
    """

    task: Mapping[str, Tensor]
    distillation: Mapping[str, Tensor]
    features: Mapping[str, Tensor]

    def total(self, weights: Mapping[str, float]) -> Tensor:
        """Weighted sum. A term of weight zero stays out of the graph."""
        parts = list(self.task.values())
        parts += [value * weights[name] for name, value in self.distillation.items() if weights[name]]
        if not parts:  # a warm-up that starts from 0 on unlabelled images alone
            parts = [value * 0.0 for value in self.distillation.values()]
        if not parts:
            raise TrainingError(
                "a batch has neither labelled images nor an active distillation term; add labelled images or a teacher"
            )
        return torch.stack(parts).sum()


class OpaqueBatch:
    """Carries a batch into a wrapped module unchanged.

    Fabric casts every float tensor it finds among the arguments; in bfloat16 a box at 601.3 pixels would
    become 600. It does not look into objects it does not know.
    """

    def __init__(self, batch: ImageBatch, active: frozenset[str] | None) -> None:
        self.batch, self.active = batch, active


class TrainingStep(nn.Module):
    """Student and distiller as one module, so that Fabric and DDP wrap both.

    Args:
        student: learns.
        distiller: terms and their adapters; None: plain training.
        teachers: by name; one alone need not have a name. None: plain training.
    """

    def __init__(
        self,
        student: Detector,
        distiller: Distiller | None,
        teachers: Teacher | Mapping[str, Teacher] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.distiller = distiller
        self.maps: dict[str, Tensor] = {}
        named = dict(teachers or {}) if teachers is None or isinstance(teachers, Mapping) else {ONLY_TEACHER: teachers}
        self._teachers = (named,)  # in a tuple: never submodules, whatever they become

    @property
    def teachers(self) -> dict[str, Teacher]:
        """The teachers by name."""
        return self._teachers[0]

    def teacher_signals(self, batch: ImageBatch, active: frozenset[str] | None = None) -> dict[str, DetectorOutput]:
        """Return the signals of each teacher whose terms are active, in pixels of the student's images."""
        wanted = self.distiller.required_signals(active) if self.distiller else {}
        return {name: self.teachers[name].signals(batch, signals) for name, signals in wanted.items()}

    def forward(self, held: OpaqueBatch, with_features: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run student (and teachers) once; `terms` is the typed way to call this.

        The result is plain containers because Fabric rebuilds what a wrapped module returns, which it
        cannot do with frozen values.
        """
        batch = held.batch
        signals: frozenset[Signal] = self.distiller.requires(held.active) if self.distiller else frozenset()
        if with_features:
            signals = signals | {"features"}
        own = to_channels(batch.images, self.student.spec.input_channels)
        output = self.student(own, batch.targets, batch.labelled, signals)
        distillation: dict[str, Tensor] = {}
        if self.distiller is not None:
            signals_by_teacher = self.teacher_signals(batch, held.active)
            distillation = self.distiller(output, signals_by_teacher, batch.targets, held.active)
        # Kept here and not returned: mixed precision would hand back converted copies, which lie
        # beside the path from the maps to the losses.
        self.maps = dict(output.features) if with_features else {}
        return dict(output.task_losses), distillation


def terms(
    model: Any, batch: ImageBatch, with_features: bool = False, active: frozenset[str] | None = None
) -> StepTerms:
    """Run a (possibly wrapped) `TrainingStep` on a batch.

    Args:
        model: the step.
        batch: images in [0, 1].
        with_features: also return the maps where gradients are measured.
        active: names of the distillation terms that take part; None: all.
    """
    task, distillation = model(OpaqueBatch(batch, active), with_features)
    return StepTerms(task, distillation, model.maps)


class TermGuard:
    """Stops the run when a term is not finite or silently inactive.

    Args:
        distiller: whose terms are watched; None: only the task's losses are.
    """

    def __init__(self, distiller: Distiller | None) -> None:
        self._patience = {
            name: _RUN_OF_ZEROS if loss.can_be_zero else 1
            for name, loss in (distiller.terms() if distiller else {}).items()
        }
        self._zeros = dict.fromkeys(self._patience, 0)

    def check(self, found: StepTerms, step: int) -> dict[str, float]:
        """Return every term as a number, fetched from the device at once.

        Raises:
            TrainingError: naming the term, the step and what to look at.
        """
        named = {f"task/{k}": v for k, v in found.task.items()}
        named |= {f"kd/{k}": v for k, v in found.distillation.items()}
        if not named:
            return {}
        values = dict(zip(named, torch.stack([v.detach().float() for v in named.values()]).tolist(), strict=True))
        for name, value in values.items():
            if value != value or value in (float("inf"), float("-inf")):
                raise TrainingError(
                    f"step {step}: the term '{name}' is {value}; lower train.lr, or train with "
                    f"precision 32-true; nothing was written over the last checkpoint"
                )
        for name in found.distillation:
            self._zeros[name] = self._zeros[name] + 1 if values[f"kd/{name}"] == 0.0 else 0
            if self._zeros[name] >= self._patience[name]:
                raise TrainingError(
                    f"step {step}: the distillation term '{name}' is exactly zero; it teaches nothing. "
                    f"Is the teacher the student itself, or silent on these images? Run `kd-vision check`"
                )
        return values


def gradient_norms(step_terms: StepTerms, backward: Callable[..., Any] = torch.autograd.backward) -> dict[str, float]:
    """L2 norm of each term's gradient at the student's pyramid maps.

    Args:
        step_terms: of one step, with features.
        backward: Fabric's own in a training run, which mixed precision insists on.

    Returns:
        ``{"task": ..., "<term>": ...}``, unweighted.

    Raises:
        TrainingError: a distillation term has no gradient there.
    """
    maps = list(step_terms.features.values())

    def norm(value: Tensor) -> float:
        backward(value, inputs=maps, retain_graph=True)
        squares = [m.grad.float().pow(2).sum() for m in maps if m.grad is not None]
        for m in maps:
            m.grad = None
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    found: dict[str, float] = {}
    if step_terms.task:
        found["task"] = norm(torch.stack(list(step_terms.task.values())).sum())
    for name, value in step_terms.distillation.items():
        if not value.requires_grad:
            raise TrainingError(f"the distillation term '{name}' has no gradient: it does not depend on the student")
        found[name] = norm(value)
    return found
