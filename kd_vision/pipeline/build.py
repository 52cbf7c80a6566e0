"""Builds student, teacher, losses and batches from a config."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import RequestError
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.dataset import DetectionData, load_split, load_unlabelled
from kd_vision.data.descriptor import DataDescriptor, load_descriptor
from kd_vision.data.loader import LoaderConfig, TrainStream
from kd_vision.detectors import family_module
from kd_vision.detectors.base import Detector
from kd_vision.losses import load_loss
from kd_vision.losses.base import DistillationLoss
from kd_vision.losses.combiner import Distiller


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
    multiple = detector.spec.size_multiple
    if config.image_size % multiple:
        near = round(config.image_size / multiple) * multiple or multiple
        raise RequestError(
            f"{config.source}: image_size: {config.image_size} is not a multiple of {multiple}, the "
            f"student's largest stride; use {near}"
        )
    return detector


def build_teacher(config: RunConfig, classes: tuple[str, ...]) -> Detector | None:
    """Build the teacher, in evaluation mode, answering in the student's label order; None: there is none.

    A teacher of other classes can teach features alone; its mAP on this data means nothing, so the
    config must say ``allow_weak_teacher: true``.
    """
    if config.teacher is None:
        return None
    teacher: Any = config.teacher
    detector: Detector = family_module(teacher.family, "teacher").build(teacher, None, "teacher").eval()
    multiple = detector.spec.size_multiple
    if config.image_size % multiple:
        raise RequestError(
            f"{config.source}: image_size: {config.image_size} is not a multiple of {multiple}, the teacher's "
            f"largest stride; use {round(config.image_size / multiple) * multiple or multiple}"
        )
    own = detector.spec.classes
    if own == classes:
        return detector
    if sorted(own) == sorted(classes):
        return detector.reordered(classes).eval()
    if config.allow_weak_teacher and _features_only(config):
        return detector
    missing = [name for name in classes if name not in own]
    extra = [name for name in own if name not in classes]
    raise RequestError(
        f"{config.source}: teacher: its classes do not fit the data: it lacks {_names(missing)} and has "
        f"{_names(extra)} beside; fine-tune the teacher on this data set first (or use feature losses alone, with "
        f"allow_weak_teacher: true)"
    )


def _features_only(config: RunConfig) -> bool:
    return all(load_loss(term.loss).requires == {"features"} for term in config.terms)


def image_channels(student: DetectorSpec, teacher: DetectorSpec | None) -> int:
    """Channels that images are read with: enough for both sides."""
    return max(student.input_channels, teacher.input_channels if teacher else 0)


def build_distiller(config: RunConfig, student: DetectorSpec, teacher: DetectorSpec) -> Distiller:
    """Build the losses.

    Raises:
        RequestError: every term that does not fit the pair, and those that would.
    """
    wrong: list[str] = []
    losses: dict[str, DistillationLoss] = {}
    for position, term in enumerate(config.terms):
        kind = load_loss(term.loss)
        reasons = kind.mismatches(term.config, student, teacher)
        wrong += [f"{config.source}: distill.{position} ({term.loss}): {reason}" for reason in reasons]
        if not reasons:
            losses[term.name] = kind(term.config, student, teacher)
    if wrong:
        fitting = fitting_losses(student, teacher)
        raise RequestError(*wrong, f"{config.source}: distill: losses that fit this pair: {', '.join(fitting)}")
    return Distiller(losses)


def fitting_losses(student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
    """Names of the losses that work on a pair with their default settings."""
    from kd_vision.losses import LOSSES

    found = []
    for name in LOSSES:
        kind = load_loss(name)
        if not kind.mismatches(kind.Config(), student, teacher):
            found.append(name)
    return found


def refuse_uncalibrated(config: RunConfig, steps: int) -> None:
    """Refuse a run that would end before its ``auto`` weights are set.

    Raises:
        RequestError: naming the terms.
    """
    waiting = [term.name for term in config.terms if term.config.weight == "auto"]
    if waiting and steps <= config.train.calibrate_at:
        raise RequestError(
            f"{config.source}: train.calibrate_at: the run ends after {steps} steps, before the weight of "
            f"{', '.join(waiting)} is set at step {config.train.calibrate_at}; set it lower, or give numbers"
        )


def teacher_hash(config: RunConfig) -> str | None:
    """SHA-256 of the teacher's file; None without a teacher or a file."""
    weights: Path | None = getattr(config.teacher, "weights", None)
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None


def training_data(config: RunConfig) -> tuple[DetectionData, DetectionData | None]:
    """Read the labelled training split, and the unlabelled images where the config uses them."""
    descriptor = descriptor_of(config)
    labelled = load_split(descriptor, "train")
    if config.train.unlabelled_ratio == 0:
        return labelled, None
    if config.teacher is None:
        raise RequestError(
            f"{config.source}: train.unlabelled_ratio: unlabelled images teach nothing without a teacher; "
            f"add 'teacher:', or set it to 0"
        )
    return labelled, load_unlabelled(descriptor)


def build_stream(
    config: RunConfig,
    labelled: DetectionData,
    unlabelled: DetectionData | None,
    channels: int,
    rank: int = 0,
    world_size: int = 1,
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


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return (shown + (", ..." if len(names) > 5 else "")) or "nothing"
