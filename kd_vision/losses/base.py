"""The contract of a distillation loss. One loss is one file, one line of the table, one test.

Shapes: B images, A grid points, K classes, R bins, C channels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Generic, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import TypeVar  # with a default, which typing has from Python 3.13

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError, quote_some
from kd_vision.core.predictions import GridPredictions, Signal, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel

Weight = float | Literal["auto"]
Temperature = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Gain = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Value = TypeVar("Value")


class Schedule(StrictModel):
    """How a term's weight changes over training.

    Attributes:
        kind: `constant`; `warm_up`: 0 to 1 over the first `fraction` of the steps, then 1;
            `cosine`: 1 at the start to `final` at the end along half a cosine; `window`: 1 from `start` up to
            `stop`, else 0, so that one teacher can follow another (progressive distillation).
        fraction: of all steps, for `warm_up`.
        final: multiplier at the last step, for `cosine`.
        start: share of training at which a `window` opens.
        stop: share of training at which it closes; 1: it stays open to the end.
    """

    kind: Literal["constant", "warm_up", "cosine", "window"] = "constant"
    fraction: float = Field(default=0.2, gt=0.0, le=1.0)
    final: float = Field(default=0.1, ge=0.0, le=1.0)
    start: float = Field(default=0.0, ge=0.0, lt=1.0)
    stop: float = Field(default=1.0, gt=0.0, le=1.0)

    @model_validator(mode="after")
    def _opens_before_it_closes(self) -> Schedule:
        if self.start >= self.stop:
            raise ValueError(f"start must be below stop; given {self.start} and {self.stop}")
        if self.kind != "window" and (self.start, self.stop) != (0.0, 1.0):
            raise ValueError(f"start and stop belong to the kind window; given {self.kind}")
        for name, kind in (("fraction", "warm_up"), ("final", "cosine")):
            if self.kind != kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} belongs to the kind {kind}; given {self.kind}")
        return self

    def factor(self, progress: float) -> float:
        """Return the multiplier at `progress`, the share of training done, in [0, 1]."""
        if self.kind == "warm_up":
            return min(1.0, progress / self.fraction)
        if self.kind == "cosine":
            return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * progress)) / 2.0
        if self.kind == "window":
            return float(self.start <= progress and (progress < self.stop or self.stop == 1.0))
        return 1.0

    def takes_part(self, progress: float) -> bool:
        """Whether the term is computed at all at `progress`; a warm-up that starts from 0 is."""
        return self.kind == "warm_up" or self.factor(progress) > 0.0


class LossConfig(StrictModel):
    """Settings every distillation loss has.

    Attributes:
        weight: multiplier, or `auto`: scaled once so that the term's gradient at the student's
            neck is `share` of the task's.
        share: of the task's gradient, for `auto`.
        schedule: how the weight changes over training.
        levels: pyramid levels the term acts on (``[P3, P4]``); None: all levels both sides have.
    """

    weight: Weight = 1.0
    share: float = Field(default=0.5, gt=0.0, allow_inf_nan=False)
    schedule: Schedule = Schedule()
    levels: tuple[str, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _positive_weight(self) -> LossConfig:
        if self.weight != "auto" and not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"weight must be more than 0 (a term of weight 0 teaches nothing), or 'auto'; given {self.weight}"
            )
        return self


ConfigT_co = TypeVar("ConfigT_co", bound=LossConfig, default=LossConfig, covariant=True)


class DistillationLoss(nn.Module, ABC, Generic[ConfigT_co]):
    """Base of all distillation losses: compares the signals of a student with those of a teacher.

    A loss owns its adaptation layers; they are trained beside the student and never saved in it.
    Values are per-image means or normalised sums (each loss says which), so that the same weight
    means the same thing at any batch size.

    The class attributes declare what the rest of the toolkit must know of a loss; nothing is derived from
    combinations of signals.

    Class attributes:
        Config: the typed settings.
        requires: signals that teacher and student must both provide.
        optional: signals that a teacher which provides them is always asked for, whatever other terms run; the
            student need not provide them.
        per_branch: computed on each branch that both heads have, see `Distiller.forward`; otherwise on the
            one-to-many branch alone.
        class_aware: teacher and student must have the same classes.
        uses_levels: `LossConfig.levels` selects what the loss acts on; a loss without refuses the key.
        honours_ignored: takes no loss inside boxes that the teacher's label map ignores.
        needs_box_bins: both heads must predict distributions over the same bins.

    Attributes:
        config: the settings.
        teacher_signals: what the teacher is asked for: `requires`, and of `optional` what it provides.
        can_be_zero: 0 is a legitimate value at times (a bound that holds, an image full of classes that the teacher
            never learned); only a long run of zeros is then treated as inactive.
        levels: pyramid levels that the term acts on.
        missing_labels: classes that the teacher never learned; not detecting them carries no information.
        known: (K,) bool, the other classes; None: the teacher knows all. Not part of any checkpoint.
    """

    Config: ClassVar[type[LossConfig]] = LossConfig
    requires: ClassVar[frozenset[Signal]]
    optional: ClassVar[frozenset[Signal]] = frozenset()
    per_branch: ClassVar[bool] = False
    class_aware: ClassVar[bool] = True
    uses_levels: ClassVar[bool] = False
    honours_ignored: ClassVar[bool] = False
    needs_box_bins: ClassVar[bool] = False
    can_be_zero: bool = False

    known: Tensor | None
    missing_labels: tuple[int, ...]

    def __init__(self, config: ConfigT_co, student: DetectorSpec, teacher: DetectorSpec) -> None:
        """Build the loss for a pair against which `incompatibilities` has no reason."""
        super().__init__()
        self.config = config
        self.teacher_signals = self.signals_from(teacher)
        self.levels = common_levels(student, teacher, config.levels)
        self.missing_labels = tuple(
            label for label, name in enumerate(student.classes) if name in teacher.missing_classes
        )
        self.can_be_zero = self.can_be_zero or bool(self.missing_labels)
        known = (
            torch.tensor([name not in teacher.missing_classes for name in student.classes])
            if self.missing_labels
            else None
        )
        self.register_buffer("known", known, persistent=False)

    @classmethod
    def signals_from(cls, teacher: DetectorSpec) -> frozenset[Signal]:
        """Return the signals that the loss asks of a teacher: the required, and the optional that it provides."""
        return cls.requires | (cls.optional & teacher.provides)

    @classmethod
    def incompatibilities(cls, config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
        """Return why this loss cannot work on the pair, one line a reason; empty: it can."""
        errors = [
            f"needs the signal '{signal}', which the {role} {spec.name} does not provide"
            for signal in sorted(cls.requires)
            for role, spec in (("teacher", teacher), ("student", student))
            if signal not in spec.provides
        ]
        if errors:
            return errors
        if cls.class_aware and student.classes != teacher.classes:
            errors.append(
                f"needs the same classes in the same order; teacher has {quote_some(teacher.classes)}, student "
                f"{quote_some(student.classes)}; map the teacher's with 'labels'"
            )
        # An ignored object is known by its box alone; losses on grids and regions would learn it as background.
        if teacher.ignored and not cls.honours_ignored and "features" not in cls.requires:
            errors.append(
                f"the label map ignores {_ignored(teacher)}, which only losses on final boxes support; use soft_boxes, "
                f"or map to 'drop' instead of 'ignore'"
            )
        if not cls.uses_levels:
            return errors + (["levels: acts on all rows of the head; leave it out"] if config.levels else [])
        errors += [
            f"level '{level}' is not among the {role}'s: {', '.join(spec.level_strides)}"
            for level in config.levels or ()
            for role, spec in (("teacher", teacher), ("student", student))
            if level not in spec.level_strides
        ]
        if cls.needs_box_bins and (student.box_bins is None or student.box_bins != teacher.box_bins):
            errors.append(
                f"needs the same number of box bins; teacher {teacher.box_bins or 'none'}, "
                f"student {student.box_bins or 'none'}; use box_iou instead"
            )
        if not errors and "features" in cls.requires and not common_levels(student, teacher, config.levels):
            errors.append("teacher and student share no pyramid level")
        return errors

    @classmethod
    def pair_warnings(cls, config: LossConfig, student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
        """Return what a user should know of this loss on a compatible pair, one line each."""
        missing_classes = quote_some(sorted(teacher.missing_classes))
        if "features" not in cls.requires:
            return [f"the teacher never learned {missing_classes}: this term skips them"] if missing_classes else []
        warnings = []
        if missing_classes:
            warnings.append(
                f"acts on whole feature maps, including objects of classes that the teacher never learned "
                f"({missing_classes})"
            )
        if teacher.ignored:
            warnings.append(
                f"acts on whole feature maps, including objects that the label map ignores ({_ignored(teacher)})"
            )
        return warnings

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss. Teacher tensors carry no gradient."""


def computed(value: Value | None, signal: Signal, role: Literal["student", "teacher"]) -> Value:
    """Return a field of `Signals` that belongs to `signal`.

    Raises:
        RequestError: it was not computed, because the loss does not declare the signal.
    """
    if value is None:
        raise RequestError(f"the signal '{signal}' of the {role} was not computed; list it in the loss's 'requires'")
    return value


def common_levels(student: DetectorSpec, teacher: DetectorSpec, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the levels that both sides have, restricted to `wanted` unless that is None, fine to coarse."""
    return tuple(
        level
        for level in student.level_strides
        if level in teacher.level_strides and (wanted is None or level in wanted)
    )


def _ignored(teacher: DetectorSpec) -> str:
    return quote_some(sorted(teacher.ignored))


def select_levels(grid: GridPredictions, strides: tuple[int, ...], finest: int) -> GridPredictions:
    """Keep the points of the levels with these strides (a view where all points stay).

    Args:
        grid: dense predictions, possibly in a frame of another size than the detector's input.
        strides: to keep, in the frame of the detector's input.
        finest: smallest stride of the detector, in the same frame.
    """
    scale = grid.strides.amin() / finest
    wanted = torch.tensor(strides, dtype=grid.strides.dtype, device=grid.strides.device)
    keep = ((grid.strides / scale)[:, None] - wanted).abs().amin(dim=-1) < 0.5  # strides are whole numbers
    if bool(keep.all()):
        return grid
    return GridPredictions(
        grid.logits[:, keep],
        grid.boxes_xyxy[:, keep],
        grid.points_xy[keep],
        grid.strides[keep],
        None if grid.box_bins is None else grid.box_bins[:, keep],
    )


def best_class_score(logits: Tensor) -> Tensor:
    """Return u = max_c sigmoid(logits), (B, A): the confidence of a dense head that a point holds an object."""
    return logits.amax(dim=-1).sigmoid()
