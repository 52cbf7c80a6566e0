"""Builds the teachers of a run, online and offline, by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from kd_vision.config.schema import RunConfig, TeacherConfig
from kd_vision.core.fingerprint import file_sha256, fingerprint
from kd_vision.core.label_map import DROP, build_label_map
from kd_vision.core.lazy import load_attribute
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.knowledge.config import DENSE_MANIFEST, DenseLabelsConfig, StoreConfig
from kd_vision.knowledge.dense_manifest import any_dense_manifest, dense_folder, open_dense_manifest
from kd_vision.knowledge.dense_store import read_layout
from kd_vision.knowledge.manifest import TeacherNote
from kd_vision.knowledge.store import Store, refuse_other_teacher
from kd_vision.losses import load_loss
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.parts import AnyTeacher
from kd_vision.teachers.base import Teacher
from kd_vision.teachers.build import build_teacher
from kd_vision.teachers.dense_labels import DenseLabelsTeacher
from kd_vision.teachers.frozen import FrozenTeacher
from kd_vision.teachers.offline import OfflineTeacher, PrecomputedBoxes


def build_teachers(config: RunConfig, data: RunData, student: Detector) -> dict[str, AnyTeacher]:
    """Build every teacher with the student's classes.

    An online teacher without a term is left out where there are dense labels, which were made to replace it.

    Args:
        config: the run.
        data: of the run.
        student: for a teacher that is the moving average of its weights.

    Raises:
        RequestError: a file cannot be read, classes or a size do not fit, or a store is another teacher's.
    """
    teachers: dict[str, AnyTeacher] = {}
    dense = any(isinstance(teacher.config, DenseLabelsConfig) for teacher in config.teachers)
    used = {term.teacher for term in config.terms}
    for teacher in config.teachers:
        if teacher.is_online and dense and teacher.name not in used:
            continue
        if teacher.entry.follows_student:  # the trainer replaces the copy by its moving average
            teachers[teacher.name] = FrozenTeacher(copy.deepcopy(student), image_size=config.image_size)
        elif isinstance(teacher.config, DenseLabelsConfig):
            teachers[teacher.name] = _build_dense(config, teacher, teacher.config, data.classes)
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
    if isinstance(source, Store) and isinstance(teacher.config, StoreConfig) and teacher.config.same_teacher:
        _refuse_other_teacher(config, source.path, source.manifest.teacher)
    given = teacher.options.labels
    missing = dict.fromkeys(source.missing_classes, DROP)  # classes that no member of an ensemble ever learned
    if missing:
        given = missing | (given or {})
    return OfflineTeacher(teacher.name, source, build_label_map(source.classes, data.classes, given, f"{where}.labels"))


def _build_dense(
    config: RunConfig, teacher: TeacherConfig, settings: DenseLabelsConfig, classes: tuple[str, ...]
) -> DenseLabelsTeacher:
    where = f"{config.source}: {teacher.name}"
    folder, manifest = open_dense_manifest(settings, config.train.seed)
    if settings.same_teacher:
        _refuse_other_teacher(config, folder, manifest.teacher)
    missing = dict.fromkeys(manifest.spec.missing_classes, DROP)
    given = missing | (teacher.options.labels or {}) if missing else teacher.options.labels
    labels = build_label_map(manifest.spec.classes, classes, given, f"{where}.labels")
    layout = read_layout(folder, manifest)
    size = manifest.stream.sample_size
    return DenseLabelsTeacher(teacher.name, manifest.spec, layout, labels, size, manifest.score_threshold)


def _refuse_other_teacher(config: RunConfig, store: Path, made_by: TeacherNote) -> None:
    """Refuse a store of none of the config's online teachers."""
    online = {teacher.name: teacher_fingerprint(teacher) for teacher in config.teachers if teacher.is_online}
    if online and made_by.fingerprint not in online.values():
        name, expected = next(iter(online.items()))
        refuse_other_teacher(store, made_by, expected, f"{config.source}: {name}")


def teacher_fingerprint(teacher: TeacherConfig) -> str:
    """Return the hash of a teacher's config without name and label map, on which its predictions do not depend."""
    options = teacher.options.model_copy(update={"name": None, "labels": None})
    return fingerprint([teacher.config, options])


def teacher_hash(config: RunConfig) -> str | None:
    """Return a SHA-256 over all teachers and their files; None for plain training."""
    if not config.is_distilled:
        return None
    labels = [teacher.options.labels for teacher in config.teachers]
    return fingerprint([[_fingerprint_of(teacher, config.train.seed) for teacher in config.teachers], labels])


def _fingerprint_of(teacher: TeacherConfig, seed: int) -> str:
    """Return `teacher_fingerprint`; of dense labels the hash of the seed's manifest, which has those of the files."""
    if not isinstance(teacher.config, DenseLabelsConfig):
        return teacher_fingerprint(teacher)
    return file_sha256(dense_folder(teacher.config.store, seed) / DENSE_MANIFEST)


def teacher_input_size(config: RunConfig, teachers: Mapping[str, Teacher]) -> int | None:
    """Return the largest image size of the teachers where it exceeds the student's, else None.

    That of stored dense labels counts too, whether or not it is among the given teachers.
    """
    stores = [teacher.config.store for teacher in config.teachers if isinstance(teacher.config, DenseLabelsConfig)]
    stored = (any_dense_manifest(store).stream.sample_size for store in stores)
    largest = max((*(teacher.image_size or 0 for teacher in teachers.values()), *stored), default=0)
    return largest if largest > config.image_size else None
