"""One training step: forward passes of student and teachers, and the losses.

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
    """The loss terms of a step by name, unweighted.

    Attributes:
        task: the detector's own losses, mean per image.
        distillation: the terms of the distiller.
        features: the student's pyramid maps, at which gradients are measured; empty unless requested.
    """

    task: Mapping[str, Tensor]
    distillation: Mapping[str, Tensor]
    features: Mapping[str, Tensor]

    def total(self, weights: Mapping[str, float]) -> Tensor:
        """Return the weighted sum; a term of weight 0 is left out of the graph."""
        parts = list(self.task.values())
        parts += [value * weights[name] for name, value in self.distillation.items() if weights[name]]
        if not parts:  # unlabelled images at the start of a warm-up from weight 0
            parts = [value * 0.0 for value in self.distillation.values()]
        if not parts:
            raise TrainingError(
                "a batch has neither labelled images nor an active distillation term; add labelled images or a teacher"
            )
        return torch.stack(parts).sum()


class OpaqueBatch:
    """Passes a batch to a module wrapped by Fabric without a cast.

    Fabric casts every float tensor in the arguments; in bfloat16 a box at 601.3 pixels would become 600. It does
    not cast the fields of unknown classes.
    """

    def __init__(self, batch: ImageBatch, active: frozenset[str] | None) -> None:
        self.batch, self.active = batch, active


class TrainingStep(nn.Module):
    """Student and distiller as one module, so that Fabric and DDP wrap both.

    Args:
        student: the model that is trained.
        distiller: terms and their adaptation layers; None: plain training.
        teachers: by name; a single one needs no name. None: plain training.
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
        self._teachers = (named,)  # in a tuple, so that torch never registers them as submodules

    @property
    def teachers(self) -> dict[str, Teacher]:
        """The teachers by name."""
        return self._teachers[0]

    def teacher_signals(self, batch: ImageBatch, active: frozenset[str] | None = None) -> dict[str, DetectorOutput]:
        """Return the signals of each teacher whose terms are active, in pixels of the student's images."""
        wanted = self.distiller.required_signals(active) if self.distiller else {}
        return {name: self.teachers[name].signals(batch, signals) for name, signals in wanted.items()}

    def forward(self, opaque: OpaqueBatch, with_features: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run student (and teachers) once; `terms` is the typed way to call this.

        Returns plain containers, because Fabric rebuilds the outputs of a wrapped module and cannot do so with
        frozen dataclasses.
        """
        batch = opaque.batch
        signals: frozenset[Signal] = self.distiller.requires(opaque.active) if self.distiller else frozenset()
        if with_features:
            signals = signals | {"features"}
        images = to_channels(batch.images, self.student.spec.input_channels)
        output = self.student(images, batch.targets, batch.labelled, signals)
        distillation: dict[str, Tensor] = {}
        if self.distiller is not None:
            signals_by_teacher = self.teacher_signals(batch, opaque.active)
            distillation = self.distiller(output, signals_by_teacher, batch.targets, opaque.active)
        # Kept here and not returned: mixed precision would return converted copies, which are not on the
        # path from the maps to the losses.
        self.maps = dict(output.features) if with_features else {}
        return dict(output.task_losses), distillation


def terms(
    model: Any, batch: ImageBatch, with_features: bool = False, active: frozenset[str] | None = None
) -> StepTerms:
    """Run a (possibly wrapped) `TrainingStep` on a batch.

    Args:
        model: the step.
        batch: images in [0, 1].
        with_features: also return the maps at which gradients are measured.
        active: names of the active distillation terms; None: all.
    """
    task, distillation = model(OpaqueBatch(batch, active), with_features)
    return StepTerms(task, distillation, model.maps)


class TermGuard:
    """Stops the run when a term is not finite or has no effect.

    Args:
        distiller: its terms are checked; None: only the task's losses are.
    """

    def __init__(self, distiller: Distiller | None) -> None:
        self._patience = {
            name: _RUN_OF_ZEROS if loss.can_be_zero else 1
            for name, loss in (distiller.terms() if distiller else {}).items()
        }
        self._zeros = dict.fromkeys(self._patience, 0)

    def check(self, step_terms: StepTerms, step: int) -> dict[str, float]:
        """Return every term as a number, all copied from the device at once.

        Raises:
            TrainingError: naming the term, the step and the remedy.
        """
        named = {f"task/{k}": v for k, v in step_terms.task.items()}
        named |= {f"kd/{k}": v for k, v in step_terms.distillation.items()}
        if not named:
            return {}
        values = dict(zip(named, torch.stack([v.detach().float() for v in named.values()]).tolist(), strict=True))
        for name, value in values.items():
            if value != value or value in (float("inf"), float("-inf")):
                raise TrainingError(
                    f"step {step}: the term '{name}' is {value}; lower train.lr, or train with "
                    f"precision 32-true; nothing was written over the last checkpoint"
                )
        for name in step_terms.distillation:
            self._zeros[name] = self._zeros[name] + 1 if values[f"kd/{name}"] == 0.0 else 0
            if self._zeros[name] >= self._patience[name]:
                raise TrainingError(
                    f"step {step}: the distillation term '{name}' is exactly zero, so it has no effect. "
                    f"Is the teacher the student itself, or has it no boxes on these images? Run `kd-vision check`"
                )
        return values


def gradient_norms(step_terms: StepTerms, backward: Callable[..., Any] = torch.autograd.backward) -> dict[str, float]:
    """Measure the L2 norm of each term's gradient at the student's pyramid maps.

    Args:
        step_terms: of one step, with features.
        backward: Fabric's in a training run, as mixed precision requires.

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

    norms: dict[str, float] = {}
    if step_terms.task:
        norms["task"] = norm(torch.stack(list(step_terms.task.values())).sum())
    for name, value in step_terms.distillation.items():
        if not value.requires_grad:
            raise TrainingError(f"the distillation term '{name}' has no gradient: it does not depend on the student")
        norms[name] = norm(value)
    return norms
