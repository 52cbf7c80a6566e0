"""Builds student, teacher, losses and batches from a config."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kd_vision.config.schema import RunConfig, TeacherConfig
from kd_vision.core.errors import RequestError
from kd_vision.core.labels import DROP, LabelMap, build_label_map
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.dataset import DetectionData, load_split, load_unlabelled
from kd_vision.data.descriptor import DataDescriptor, load_descriptor
from kd_vision.data.loader import LoaderConfig, TrainStream
from kd_vision.data.records import shared_out
from kd_vision.detectors import family_module
from kd_vision.detectors.base import Detector
from kd_vision.detectors.member import build_source
from kd_vision.detectors.teacher import FrozenTeacher
from kd_vision.knowledge.attach import Knowledge, OwnLabels, attach
from kd_vision.knowledge.fingerprint import fingerprint
from kd_vision.knowledge.store import Store, open_knowledge, read_json_knowledge, refuse_other_teacher
from kd_vision.losses import load_loss
from kd_vision.losses.base import DistillationLoss
from kd_vision.losses.combiner import KNOWLEDGE, Distiller


def descriptor_of(config: RunConfig) -> DataDescriptor:
    """Read the data descriptor a config names."""
    return load_descriptor(config.data)


def final_split(config: RunConfig, descriptor: DataDescriptor) -> str:
    """The split that is reported: the one asked for, else `test`, else the validation split."""
    if config.evaluate.final_split is not None:
        return config.evaluate.final_split
    return "test" if "test" in descriptor.splits else config.evaluate.split


def build_student(config: RunConfig, classes: tuple[str, ...]) -> Detector:
    """Build the student with a head for the classes of the data set."""
    student: Any = config.student
    detector: Detector = family_module(student.family, "student").build(student, classes, "student")
    detector.spec.refuse_wrong_size(config.image_size, f"{config.source}: image_size")
    return detector


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
        if teacher.is_student:
            if student is not None:  # followed by the trainer's moving average, once there is one
                found[teacher.name] = FrozenTeacher(copy.deepcopy(student), image_size=config.image_size)
        elif teacher.reads_pixels:
            found[teacher.name] = _build_teacher(config, teacher, classes)
    return found


def _build_teacher(config: RunConfig, teacher: TeacherConfig, classes: tuple[str, ...]) -> FrozenTeacher:
    where = f"{config.source}: {teacher.name}"
    bare = config.allow_weak_teacher and teacher.options.labels is None and _features_only(config, teacher.name)
    return build_source(teacher.source, teacher.options, None if bare else classes, where, config.image_size)


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
    live = {teacher.name: teacher_fingerprint(teacher) for teacher in config.teachers if not teacher.is_student}
    if live and store.manifest.teacher.fingerprint not in live.values():
        name, other = next(iter(live.items()))
        refuse_other_teacher(store, other, f"{config.source}: {name}")
    return store


def _labels_of(config: RunConfig, teacher: TeacherConfig) -> Knowledge:
    """Take the labels for knowledge of the labelled images; there is nothing they could say of the others."""
    if config.train.unlabelled_ratio > 0 or config.train.labelled_share == 0:
        raise RequestError(
            f"{config.source}: {teacher.name}: labels say nothing of images without any; set train.unlabelled_ratio to "
            f"0, and train.labelled_share above 0"
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
        silent=labels.silent,
    )


def knowledge_labels(config: RunConfig, knowledge: Knowledge, classes: tuple[str, ...]) -> LabelMap:
    """Map the classes of stored boxes to the data's."""
    files = [teacher for teacher in config.teachers if not teacher.reads_pixels]
    given = files[0].options.labels if files else config.knowledge.labels if config.knowledge else None
    key = files[0].name if files else KNOWLEDGE
    unknown = dict.fromkeys(knowledge.silent, DROP)  # classes no member of an ensemble ever learned
    if unknown:
        given = unknown | (given or {})
    return build_label_map(knowledge.classes, classes, given, f"{config.source}: {key}.labels")


@dataclass(frozen=True, slots=True)
class RunParts:
    """Everyone who takes part in a run.

    Attributes:
        student: learns.
        teachers: look at the student's images, by name.
        knowledge: what a teacher said of the images beforehand.
        labels: from the classes of `knowledge` to the data's.
        distiller: the terms; None: plain training.
    """

    student: Detector
    teachers: Mapping[str, FrozenTeacher]
    knowledge: Knowledge | None
    labels: LabelMap | None
    distiller: Distiller | None

    @property
    def specs(self) -> dict[str, DetectorSpec]:
        """What each teacher is, the stored one among them, by the name that terms learn from."""
        found = {name: teacher.spec for name, teacher in self.teachers.items()}
        if self.knowledge is not None and self.labels is not None:
            found[KNOWLEDGE] = knowledge_spec(self.labels)
        return found

    @property
    def channels(self) -> int:
        """Channels that images are read with: enough for every side."""
        return max(self.student.spec.input_channels, *(t.spec.input_channels for t in self.teachers.values()), 1)

    def told(self, data: DetectionData) -> DetectionData:
        """Return the images with what was said of them beforehand."""
        if self.knowledge is None or self.labels is None:
            return data
        return attach(data, self.knowledge, self.labels)


def build_parts(config: RunConfig, classes: tuple[str, ...]) -> RunParts:
    """Build student, teachers and losses.

    Raises:
        RequestError: everything that does not fit.
    """
    student = build_student(config, classes)
    knowledge = read_knowledge(config)
    labels = None if knowledge is None else knowledge_labels(config, knowledge, classes)
    parts = RunParts(student, build_teachers(config, classes, student), knowledge, labels, None)
    if not config.is_taught:
        return parts
    _refuse_unheard_boxes(config, parts)
    return replace(parts, distiller=build_distiller(config, student.spec, parts.specs))


def _refuse_unheard_boxes(config: RunConfig, parts: RunParts) -> None:
    """A term must not ask for boxes less sure than what its teacher says: their places would become background.

    Raises:
        RequestError: naming the term.
    """
    floors = {name: teacher.options.score_threshold for name, teacher in parts.teachers.items()}
    for asked_of in config.teachers:  # an ensemble never says what it does not hear
        heard_from = getattr(asked_of.source, "min_score", 0.0)
        floors[asked_of.name] = max(floors.get(asked_of.name, 0.0), heard_from)
    if isinstance(parts.knowledge, Store):
        floors[KNOWLEDGE] = float(str(parts.knowledge.manifest.options.get("score_threshold", 0.0)))
    for position, term in enumerate(config.terms):
        key = "doubt" if hasattr(term.config, "doubt") else "accept"
        asked, floor = getattr(term.config, key, 1.0), floors.get(term.teacher, 0.0)
        if asked < floor:
            raise RequestError(
                f"{config.source}: distill.{position}.{key}: {asked:g} is below {floor:g}, the least score that "
                f"'{term.teacher}' speaks of; raise it, or label again with --score {asked:g}"
            )


def teacher_view(config: RunConfig, teachers: Mapping[str, FrozenTeacher]) -> int | None:
    """Side of the view that the teachers are shown, where one of them wants more than the student."""
    largest = max((teacher.image_size or 0 for teacher in teachers.values()), default=0)
    return largest if largest > config.image_size else None


def build_distiller(config: RunConfig, student: DetectorSpec, teachers: Mapping[str, DetectorSpec]) -> Distiller:
    """Build the losses.

    Args:
        config: the run.
        student: what it is.
        teachers: what each is, by the name that terms learn from.

    Raises:
        RequestError: every term that does not fit its pair, and those that would.
    """
    wrong: list[str] = []
    losses: dict[str, DistillationLoss] = {}
    for position, term in enumerate(config.terms):
        kind, teacher = load_loss(term.loss), teachers[term.teacher]
        reasons = kind.mismatches(term.config, student, teacher)
        wrong += [f"{config.source}: distill.{position} ({term.loss}): {reason}" for reason in reasons]
        if reasons:
            fitting = ", ".join(fitting_losses(student, teacher))
            pair = f"{teacher.name} as teacher of {student.name}"
            wrong.append(f"{config.source}: distill: losses that fit {pair}: {fitting}")
        else:
            losses[term.name] = kind(term.config, student, teacher)
    if wrong:
        raise RequestError(*sorted(dict.fromkeys(wrong), key=lambda line: "losses that fit" in line))
    return Distiller(losses, {term.name: term.teacher for term in config.terms})


def fitting_losses(student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
    """Names of the losses that work on a pair with their default settings."""
    from kd_vision.losses import LOSSES

    found = []
    for name in LOSSES:
        kind = load_loss(name)
        if not kind.mismatches(kind.Config(), student, teacher):
            found.append(name)
    return found


def refuse_dead_steps(config: RunConfig, steps: int) -> None:
    """Refuse a run that would end before its ``auto`` weights are set, or in parts of which nothing teaches.

    Raises:
        RequestError: naming the terms, or the part of training.
    """
    if config.train.labelled_share == 0:
        _refuse_silent_parts(config)
    waiting = [term.name for term in config.terms if term.config.weight == "auto"]
    if waiting and steps <= config.train.calibrate_at:
        raise RequestError(
            f"{config.source}: train.calibrate_at: the run ends after {steps} steps, before the weight of "
            f"{', '.join(waiting)} is set at step {config.train.calibrate_at}; set it lower, or give numbers"
        )


def _refuse_silent_parts(config: RunConfig) -> None:
    """Without labels only the terms teach: none may wait for a task's gradient, and one must always be open."""
    waiting = [term.name for term in config.terms if term.config.weight == "auto"]
    if waiting:
        raise RequestError(
            f"{config.source}: train.labelled_share: without labels there is no gradient to scale {', '.join(waiting)} "
            f"by; give weights as numbers"
        )
    for percent in range(100):
        if not any(term.config.schedule.takes_part(percent / 100) for term in config.terms):
            raise RequestError(
                f"{config.source}: train.labelled_share: is 0, and at {percent} % of training no term of 'distill' is "
                f"open; close the gap between the windows"
            )


def teacher_hash(config: RunConfig) -> str | None:
    """SHA-256 over all that teaches, files included; None for plain training."""
    if not config.is_taught:
        return None
    labels = [teacher.options.labels for teacher in config.teachers]
    return fingerprint([[teacher_fingerprint(teacher) for teacher in config.teachers], labels, config.knowledge])


def training_data(config: RunConfig) -> tuple[DetectionData, DetectionData | None]:
    """Read the labelled training split, and the unlabelled images where the config uses them."""
    descriptor = descriptor_of(config)
    labelled, rest = shared_out(load_split(descriptor, "train"), config.train.labelled_share)
    if not len(labelled) and not len(rest):
        raise RequestError(f"{config.data}: split 'train' holds no images; see `kd-vision data check`")
    if len(labelled) and not any(len(image.labels) for image in labelled.images):
        raise RequestError(
            f"{config.data}: split 'train' holds no box to learn from; see `kd-vision data check`, or set "
            f"train.labelled_share: 0 to learn from a teacher alone"
        )
    if config.train.unlabelled_ratio == 0 and len(labelled):
        return labelled, None
    if not config.is_taught:
        raise RequestError(
            f"{config.source}: train.unlabelled_ratio: unlabelled images teach nothing without a teacher; "
            f"add 'teacher:' or 'knowledge:', or set it to 0 (and train.labelled_share above 0)"
        )
    if descriptor.unlabelled is None and len(rest):
        return labelled, rest
    extra = load_unlabelled(descriptor)
    return labelled, replace(extra, images=rest.images + extra.images)


def data_hashes(labelled: DetectionData, unlabelled: DetectionData | None) -> list[str]:
    """Say what is trained on, without what a teacher said of it."""
    return [data.content_hash() for data in (labelled, unlabelled) if data is not None]


def build_stream(
    config: RunConfig,
    labelled: DetectionData,
    unlabelled: DetectionData | None,
    channels: int,
    rank: int = 0,
    world_size: int = 1,
    teacher_size: int | None = None,
) -> TrainStream:
    """Build the stream of training batches."""
    train = config.train
    loader = LoaderConfig(
        image_size=config.image_size,
        batch_size=train.batch_size,
        workers=worker_count(train.workers),
        seed=train.seed,
        channels=channels,
        unlabelled_ratio=train.unlabelled_ratio,
        cache=train.cache,
        teacher_size=teacher_size,
    )
    return TrainStream(labelled, unlabelled, config.augment, loader, train.epochs, rank, world_size)


def worker_count(asked: int | str) -> int:
    """Loader processes: as asked, or cores less one, at most 8."""
    if asked != "auto":
        return int(asked)
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def output_directory(asked: Path | None, config: RunConfig) -> Path:
    """Where a run goes: as asked, or ``runs/<config name>``."""
    return asked if asked is not None else Path("runs") / config.source.stem
