"""Builds the teachers of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from kd_vision.config.schema import RunConfig, TeacherConfig
from kd_vision.core.errors import RequestError
from kd_vision.core.fingerprint import fingerprint
from kd_vision.core.label_map import DROP, LabelMap, build_label_map
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.dataset import load_split
from kd_vision.detectors.base import Detector
from kd_vision.knowledge.store import open_knowledge, read_json_knowledge, refuse_other_teacher
from kd_vision.losses import load_loss
from kd_vision.losses.distiller import KNOWLEDGE
from kd_vision.pipeline.data import descriptor_of
from kd_vision.teachers.build import build_teacher
from kd_vision.teachers.frozen import FrozenTeacher
from kd_vision.teachers.offline import Knowledge, OwnLabels


def build_teachers(
    config: RunConfig, classes: tuple[str, ...], student: Detector | None = None
) -> dict[str, FrozenTeacher]:
    """Build the teachers that look at pixels, by name, answering in the student's classes.

    A teacher of other classes without a label map can teach features alone; its mAP on this data means
    nothing, so the config must say ``allow_weak_teacher: true``.

    Args:
        config: the run.
        classes: of the data.
        student: for a teacher that is the student itself; None: such a teacher is left out.

    Raises:
        RequestError: a file cannot be read, classes do not fit, or a size does not.
    """
    found: dict[str, FrozenTeacher] = {}
    for teacher in config.teachers:
        if teacher.is_ema:
            if student is not None:  # followed by the trainer's moving average, once there is one
                found[teacher.name] = FrozenTeacher(copy.deepcopy(student), image_size=config.image_size)
        elif teacher.reads_pixels:
            found[teacher.name] = _build_teacher(config, teacher, classes)
    return found


def _build_teacher(config: RunConfig, teacher: TeacherConfig, classes: tuple[str, ...]) -> FrozenTeacher:
    where = f"{config.source}: {teacher.name}"
    bare = config.allow_weak_teacher and teacher.options.labels is None and _features_only(config, teacher.name)
    return build_teacher(teacher.source, teacher.options, None if bare else classes, where, config.image_size)


def _features_only(config: RunConfig, teacher: str) -> bool:
    return all(load_loss(term.loss).requires == {"features"} for term in config.terms if term.teacher == teacher)


def read_knowledge(config: RunConfig) -> Knowledge | None:
    """Read what a teacher said beforehand: a store, or a file of predictions; None: there is neither.

    Raises:
        RequestError: it cannot be read, there is more than one, or the store was made by another teacher
            than the config's.
    """
    files = [teacher for teacher in config.teachers if not teacher.reads_pixels]
    if len(files) + (config.knowledge is not None) > 1:
        raise RequestError(
            f"{config.source}: knowledge: only one source of stored boxes at a time; fuse them first with "
            f"`kd-vision label` and teacher: {{family: ensemble, ...}}"
        )
    if files:
        return _labels_of(config, files[0]) if files[0].is_labels else _predictions_of(config, files[0])
    if config.knowledge is None:
        return None
    store = open_knowledge(config.knowledge)
    live = {teacher.name: teacher_fingerprint(teacher) for teacher in config.teachers if not teacher.is_ema}
    if live and store.manifest.teacher.fingerprint not in live.values():
        name, other = next(iter(live.items()))
        refuse_other_teacher(store, other, f"{config.source}: {name}")
    return store


def _labels_of(config: RunConfig, teacher: TeacherConfig) -> Knowledge:
    """Take the labels for knowledge of the labelled images; there is nothing they could say of the others."""
    if config.train.unlabelled_ratio > 0 or config.train.label_fraction == 0:
        raise RequestError(
            f"{config.source}: {teacher.name}: labels say nothing of images without any; set train.unlabelled_ratio to "
            f"0, and train.label_fraction above 0"
        )
    return OwnLabels(load_split(descriptor_of(config), "train").classes)


def _predictions_of(config: RunConfig, teacher: TeacherConfig) -> Knowledge:
    """Read a COCO results file as knowledge of the training split."""
    descriptor = descriptor_of(config)
    path = teacher.weights
    assert path is not None
    if descriptor.unlabelled is not None and config.train.unlabelled_ratio > 0:
        raise RequestError(
            f"{config.source}: {teacher.name}: {path} speaks of the training split alone, by image id; store what a "
            f"teacher says of the unlabelled folder with `kd-vision label` and give 'knowledge:'"
        )
    return read_json_knowledge(path, load_split(descriptor, "train"))


def teacher_fingerprint(teacher: TeacherConfig) -> str:
    """Hash of all that decides what a teacher says, in its own words: its name and label map do not."""
    asked = teacher.options.model_copy(update={"name": None, "labels": None})
    return fingerprint([teacher.source, asked])


def knowledge_spec(labels: LabelMap) -> DetectorSpec:
    """What stored knowledge is as a teacher: final boxes and nothing else."""
    return DetectorSpec(
        family=KNOWLEDGE,
        name=KNOWLEDGE,
        classes=labels.student,
        level_channels={},
        level_strides={},
        provides=frozenset({"detections"}),
        missing_classes=labels.missing_classes,
    )


def knowledge_labels(config: RunConfig, knowledge: Knowledge, classes: tuple[str, ...]) -> LabelMap:
    """Map the classes of stored boxes to the data's."""
    files = [teacher for teacher in config.teachers if not teacher.reads_pixels]
    given = files[0].options.labels if files else config.knowledge.labels if config.knowledge else None
    key = files[0].name if files else KNOWLEDGE
    unknown = dict.fromkeys(knowledge.missing_classes, DROP)  # classes no member of an ensemble ever learned
    if unknown:
        given = unknown | (given or {})
    return build_label_map(knowledge.classes, classes, given, f"{config.source}: {key}.labels")


def teacher_input_size(config: RunConfig, teachers: Mapping[str, FrozenTeacher]) -> int | None:
    """Side of the view that the teachers are shown, where one of them wants more than the student."""
    largest = max((teacher.image_size or 0 for teacher in teachers.values()), default=0)
    return largest if largest > config.image_size else None


def teacher_hash(config: RunConfig) -> str | None:
    """SHA-256 over all that teaches, files included; None for plain training."""
    if not config.is_taught:
        return None
    labels = [teacher.options.labels for teacher in config.teachers]
    return fingerprint([[teacher_fingerprint(teacher) for teacher in config.teachers], labels, config.knowledge])
