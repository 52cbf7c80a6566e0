"""The typed config of a run. The settings of each part are defined next to the part. No torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from kd_vision.core.validation import StrictModel
from kd_vision.data.augment_config import AugmentConfig
from kd_vision.engine.config import TrainConfig
from kd_vision.teachers import TeacherEntry, teacher_entry
from kd_vision.teachers.build import kind_of
from kd_vision.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from kd_vision.losses.base import LossConfig

ONLY_TEACHER = "teacher"
"""Name of a single teacher without a name."""
_NOT_IN_IDENTITY = ("workers", "cache", "log_every", "checkpoint_every", "loggers")


class EvaluateConfig(StrictModel):
    """Splits and backend of evaluation.

    Attributes:
        split: for validation during training: best weights, early stopping.
        final_split: for the numbers at the end of `train` and of `benchmark`; None: the split `test` where the
            data has one, else `split`.
        backend: `pycocotools`, or `faster` (faster-coco-eval), which agrees to 1e-6.
        batch_size: images per forward pass.
    """

    split: str = "val"
    final_split: str | None = None
    backend: Literal["pycocotools", "faster"] = "pycocotools"
    batch_size: int = Field(default=16, ge=1)


class RootConfig(StrictModel):
    """The top level of a config file; parts whose type depends on a table are plain mappings."""

    data: Path
    image_size: int = Field(default=640, ge=32)
    student: dict[str, Any]
    teacher: dict[str, Any] | list[dict[str, Any]] | None = None
    knowledge: dict[str, Any] | str | None = None
    distill: list[dict[str, Any]] | str | None = None
    allow_weak_teacher: bool = False
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


@dataclass(frozen=True, slots=True)
class TermConfig:
    """One distillation term: its name in logs, its loss, its settings, the name of its teacher."""

    name: str
    loss: str
    config: LossConfig
    teacher: str = ONLY_TEACHER


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """One teacher: its name in this run, the settings of its kind, and those of every teacher."""

    name: str
    config: StrictModel
    options: TeacherOptions

    @property
    def entry(self) -> TeacherEntry:
        """Its entry in the table of teachers."""
        return teacher_entry(kind_of(self.config), self.name)

    @property
    def is_online(self) -> bool:
        """True for a model other than the student that is run on the images of each batch."""
        return not self.entry.offline and not self.entry.follows_student

    @property
    def weights(self) -> Path | None:
        """Its file; None where it has none, or several."""
        given = getattr(self.config, "weights", None)  # those of an ensemble are numbers
        return given if isinstance(given, Path) else None

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values; `load_config` reads them back as the same teacher."""
        options = self.options.model_dump(mode="json", exclude_defaults=True)
        return {"name": self.name, **_plain(self.config), **options}


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The config of a run, fully typed, with absolute paths.

    Attributes:
        source: the file it was read from, for messages.
        data: descriptor of the data set.
        image_size: side of the square input in pixels.
        student: typed config of the student's family.
        teachers: online and offline; empty: plain training.
        terms: the distillation terms, empty without a teacher.
        recipe: name of the recipe of the terms, if any.
        allow_weak_teacher: distil also where the teacher is no better than the student.
        train, augment, evaluate: settings of those parts.
    """

    source: Path
    data: Path
    image_size: int
    student: StrictModel
    teachers: tuple[TeacherConfig, ...]
    terms: tuple[TermConfig, ...]
    recipe: str | None
    allow_weak_teacher: bool
    train: TrainConfig
    augment: AugmentConfig
    evaluate: EvaluateConfig

    @property
    def is_distilled(self) -> bool:
        """False for plain training."""
        return bool(self.teachers)

    def to_mapping(self) -> dict[str, Any]:
        """Return the resolved config as plain values; `load_config` reads it back unchanged."""
        content: dict[str, Any] = {
            "data": str(self.data),
            "image_size": self.image_size,
            "student": _plain(self.student),
            "train": _plain(self.train),
            "augment": _plain(self.augment),
            "evaluate": _plain(self.evaluate),
        }
        if self.teachers:
            teachers = [teacher.to_mapping() for teacher in self.teachers]
            content["teacher"] = teachers if len(teachers) > 1 else teachers[0]
            content["allow_weak_teacher"] = self.allow_weak_teacher
            content["distill"] = [
                {"loss": term.loss, "name": term.name, "teacher": term.teacher, **_plain(term.config)}
                for term in self.terms
            ]
        return content

    def identity(self) -> dict[str, Any]:
        """Return the settings that the weights depend on; those of speed, logs and checkpoints are left out."""
        content = self.to_mapping()
        for key in _NOT_IN_IDENTITY:
            content["train"].pop(key, None)
        return content


def changed_keys(before: RunConfig, after: RunConfig) -> list[str]:
    """Return the differences of two runs: ``train.epochs was 2, is 3``; see `RunConfig.identity`."""
    old, new = _flat(before.identity()), _flat(after.identity())
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key} was {old.get(key)}, is {new.get(key)}" for key in keys]


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Turn ``{"train": {"epochs": 2}}`` into ``{"train.epochs": 2}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {f"{key}.{name}": v for name, v in inner.items()} if inner else {key: value}
    return flat


def _plain(model: BaseModel) -> dict[str, Any]:
    values: dict[str, Any] = model.model_dump(mode="json", by_alias=True)
    return values
