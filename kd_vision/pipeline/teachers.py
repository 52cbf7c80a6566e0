"""Builds the teachers of a run, online and offline, by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from kd_vision.config.schema import RunConfig, TeacherConfig
from kd_vision.core.fingerprint import fingerprint
from kd_vision.core.label_map import DROP, build_label_map
from kd_vision.core.lazy import load_attribute
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.knowledge.config import StoreConfig
from kd_vision.knowledge.store import Store, refuse_other_teacher
from kd_vision.losses import load_loss
from kd_vision.pipeline.data import RunData
from kd_vision.teachers.base import Teacher
from kd_vision.teachers.build import build_teacher
from kd_vision.teachers.frozen import FrozenTeacher
from kd_vision.teachers.offline import OfflineTeacher, PrecomputedBoxes


def build_teachers(config: RunConfig, data: RunData, student: Detector) -> dict[str, FrozenTeacher | OfflineTeacher]:
    """Build every teacher with the student's classes.

    Args:
        config: the run.
        data: of the run.
        student: for a teacher that is the moving average of its weights.

    Raises:
        RequestError: a file cannot be read, classes or a size do not fit, or a store is another teacher's.
    """
    teachers: dict[str, FrozenTeacher | OfflineTeacher] = {}
    for teacher in config.teachers:
        if teacher.entry.follows_student:  # the trainer replaces the copy by its moving average
            teachers[teacher.name] = FrozenTeacher(copy.deepcopy(student), image_size=config.image_size)
        elif teacher.entry.offline:
            teachers[teacher.name] = _build_offline(config, teacher, data)
        else:
            teachers[teacher.name] = _build_online(config, teacher, data.classes)
    return teachers


def build_online_teachers(config: RunConfig, classes: tuple[str, ...]) -> dict[str, FrozenTeacher]:
    """Build the teachers that are run on images, for example to measure them.

    A teacher of other classes without a label map can only be used for features. It has no mAP on this data, so
    that the config must have ``allow_weak_teacher: true``.
    """
    online = (teacher for teacher in config.teachers if teacher.is_online)
    return {teacher.name: _build_online(config, teacher, classes) for teacher in online}


def _build_online(config: RunConfig, teacher: TeacherConfig, classes: tuple[str, ...]) -> FrozenTeacher:
    where = f"{config.source}: {teacher.name}"
    own_classes = config.allow_weak_teacher and teacher.options.labels is None and _features_only(config, teacher.name)
    return build_teacher(teacher.config, teacher.options, None if own_classes else classes, where, config.image_size)


def _features_only(config: RunConfig, teacher: str) -> bool:
    return not any(load_loss(term.loss).class_aware for term in config.terms if term.teacher == teacher)


def _build_offline(config: RunConfig, teacher: TeacherConfig, data: RunData) -> OfflineTeacher:
    where = f"{config.source}: {teacher.name}"
    train: DetectionData = data.split("train")
    source: PrecomputedBoxes = load_attribute(teacher.entry.build)(teacher.config, train, where)
    if isinstance(source, Store):
        _refuse_other_teacher(config, teacher.config, source)
    given = teacher.options.labels
    missing = dict.fromkeys(source.missing_classes, DROP)  # classes that no member of an ensemble ever learned
    if missing:
        given = missing | (given or {})
    return OfflineTeacher(teacher.name, source, build_label_map(source.classes, data.classes, given, f"{where}.labels"))


def _refuse_other_teacher(config: RunConfig, settings: object, store: Store) -> None:
    """Refuse a store of none of the config's online teachers, where its settings require one of them."""
    if not isinstance(settings, StoreConfig) or not settings.same_teacher:
        return
    online = {teacher.name: teacher_fingerprint(teacher) for teacher in config.teachers if teacher.is_online}
    if online and store.manifest.teacher.fingerprint not in online.values():
        name, expected = next(iter(online.items()))
        refuse_other_teacher(store, expected, f"{config.source}: {name}")


def teacher_fingerprint(teacher: TeacherConfig) -> str:
    """Return the hash of a teacher's config without name and label map, on which its predictions do not depend."""
    options = teacher.options.model_copy(update={"name": None, "labels": None})
    return fingerprint([teacher.config, options])


def teacher_hash(config: RunConfig) -> str | None:
    """Return a SHA-256 over all teachers and their files; None for plain training."""
    if not config.is_distilled:
        return None
    labels = [teacher.options.labels for teacher in config.teachers]
    return fingerprint([[teacher_fingerprint(teacher) for teacher in config.teachers], labels])


def teacher_input_size(config: RunConfig, teachers: Mapping[str, Teacher]) -> int | None:
    """Return the largest image size of the teachers where it exceeds the student's, else None."""
    largest = max((teacher.image_size or 0 for teacher in teachers.values()), default=0)
    return largest if largest > config.image_size else None
