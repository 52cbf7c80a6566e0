"""What a run is made of. Each part's settings live beside the part; the root only composes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from kd_vision.core.validation import StrictModel
from kd_vision.data.transforms import AugmentConfig
from kd_vision.engine.config import TrainConfig
from kd_vision.knowledge.config import KnowledgeConfig
from kd_vision.losses.base import LossConfig
from kd_vision.losses.distiller import ONLY_TEACHER
from kd_vision.teachers.build import TeacherOptions

OFFLINE_TEACHERS = ("predictions", "labels")
"""Families that look at no pixels: their boxes are attached to the data, as stored knowledge is."""


class EvaluateConfig(StrictModel):
    """Which splits judge.

    Attributes:
        split: chooses weights and stops early, during training.
        final_split: reported at the end of `train` and by `benchmark`; None: the split `test`
            where the data has one, else `split`.
        backend: `pycocotools`, or `faster` (faster-coco-eval), which agrees to 1e-6.
        batch_size: images per forward pass.
    """

    split: str = "val"
    final_split: str | None = None
    backend: Literal["pycocotools", "faster"] = "pycocotools"
    batch_size: int = Field(default=16, ge=1)


class RootConfig(StrictModel):
    """The top level of a config file; the parts that depend on a table are still plain mappings."""

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
    """One distillation term: the name it is logged under, its loss, its settings, whom it learns from."""

    name: str
    loss: str
    config: LossConfig
    teacher: str = ONLY_TEACHER


def source_family(source: BaseModel) -> str:
    """Key of the table of families that a typed config belongs to."""
    return str(getattr(source, "family", ""))


_FREE = ("workers", "cache", "log_every", "checkpoint_every")


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """One teacher: its name in this run, what it is, and how it is asked."""

    name: str
    source: BaseModel
    options: TeacherOptions

    @property
    def reads_pixels(self) -> bool:
        """False for a file of predictions and for labels, which can only say what they said beforehand."""
        return source_family(self.source) not in OFFLINE_TEACHERS

    @property
    def is_labels(self) -> bool:
        """True where the training labels themselves teach."""
        return source_family(self.source) == "labels"

    @property
    def is_ema(self) -> bool:
        """True where the student's own moving average teaches."""
        return source_family(self.source) == "self"

    @property
    def weights(self) -> Path | None:
        """Its file; None for what has none, or several."""
        given = getattr(self.source, "weights", None)  # those of an ensemble are numbers
        return given if isinstance(given, Path) else None

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values that are read back as the same teacher."""
        asked = self.options.model_dump(mode="json", exclude_defaults=True)
        return {"name": self.name, **_plain(self.source), **asked}


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A run, everything typed and every path absolute.

    Attributes:
        source: the file it was read from, for messages.
        data: descriptor of the data set.
        image_size: side of the square input in pixels.
        student: typed config of the student's family.
        teachers: who teaches; none: plain training, or training from stored knowledge.
        knowledge: what a teacher said of the training images beforehand.
        terms: the distillation terms, empty without a teacher.
        recipe: name of the recipe the terms came from, if any.
        allow_weak_teacher: distil even where the teacher is no better than the student.
        train, augment, evaluate: settings of those parts.
    """

    source: Path
    data: Path
    image_size: int
    student: BaseModel
    teachers: tuple[TeacherConfig, ...]
    knowledge: KnowledgeConfig | None
    terms: tuple[TermConfig, ...]
    recipe: str | None
    allow_weak_teacher: bool
    train: TrainConfig
    augment: AugmentConfig
    evaluate: EvaluateConfig

    @property
    def is_taught(self) -> bool:
        """False for plain training."""
        return bool(self.teachers) or self.knowledge is not None

    def to_mapping(self) -> dict[str, Any]:
        """Return the resolved config as plain values; `load_config` reads it back unchanged."""
        found: dict[str, Any] = {
            "data": str(self.data),
            "image_size": self.image_size,
            "student": _plain(self.student),
            "train": _plain(self.train),
            "augment": _plain(self.augment),
            "evaluate": _plain(self.evaluate),
        }
        if self.teachers:
            teachers = [teacher.to_mapping() for teacher in self.teachers]
            found["teacher"] = teachers if len(teachers) > 1 else teachers[0]
        if self.knowledge is not None:
            found["knowledge"] = _plain(self.knowledge)
        if self.is_taught:
            found["allow_weak_teacher"] = self.allow_weak_teacher
            found["distill"] = [
                {"loss": term.loss, "name": term.name, "teacher": term.teacher, **_plain(term.config)}
                for term in self.terms
            ]
        return found

    def identity(self) -> dict[str, Any]:
        """Return what decides the weights; how fast, and how often things are written, may change on the way."""
        content = self.to_mapping()
        for key in _FREE:
            del content["train"][key]
        return content


def changed_keys(before: RunConfig, after: RunConfig) -> list[str]:
    """Say what two runs differ in, one text a key: ``train.epochs was 2, is 3``; see `RunConfig.identity`."""
    there, here = _flat(before.identity()), _flat(after.identity())
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return [f"{key} was {there.get(key)}, is {here.get(key)}" for key in keys]


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """``{"train": {"epochs": 2}}`` to ``{"train.epochs": 2}``; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        inner = _flat(value) if isinstance(value, dict) else None
        found |= {f"{key}.{name}": v for name, v in inner.items()} if inner else {key: value}
    return found


def _plain(model: BaseModel) -> dict[str, Any]:
    values: dict[str, Any] = model.model_dump(mode="json")
    return values
