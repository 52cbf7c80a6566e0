"""Builds the student, its teachers and the losses from a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import RequestError
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors import family_module
from kd_vision.detectors.base import Detector
from kd_vision.losses import load_loss
from kd_vision.losses.base import DistillationLoss, LossConfig
from kd_vision.losses.distiller import Distiller
from kd_vision.losses.fitting import fitting_losses
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.parts import RunParts
from kd_vision.pipeline.preflight import refuse_low_thresholds
from kd_vision.pipeline.teachers import build_teachers
from kd_vision.teachers.build import kind_of


def build_student(config: RunConfig, classes: tuple[str, ...]) -> Detector:
    """Build the student with a head for the classes of the data set."""
    module = family_module(kind_of(config.student), "student")
    detector: Detector = module.build(config.student, classes, "student")
    detector.spec.refuse_wrong_size(config.image_size, f"{config.source}: image_size")
    return detector


def build_parts(config: RunConfig, data: RunData) -> RunParts:
    """Build student, teachers and losses.

    Raises:
        RequestError: one line for every mistake.
    """
    student = build_student(config, data.classes)
    parts = RunParts(student, build_teachers(config, data, student), None)
    if not config.is_distilled:
        return parts
    refuse_low_thresholds(config, parts)
    return replace(parts, distiller=build_distiller(config, student.spec, parts.specs))


def build_distiller(config: RunConfig, student: DetectorSpec, teachers: Mapping[str, DetectorSpec]) -> Distiller:
    """Build the losses.

    Args:
        config: the run.
        student: facts about it.
        teachers: facts about each, by name.

    Raises:
        RequestError: every term that does not fit its teacher and student, and the losses that do.
    """
    errors: list[str] = []
    losses: dict[str, DistillationLoss[LossConfig]] = {}
    for position, term in enumerate(config.terms):
        kind, teacher = load_loss(term.loss), teachers[term.teacher]
        reasons = kind.incompatibilities(term.config, student, teacher)
        errors += [f"{config.source}: distill.{position} ({term.loss}): {reason}" for reason in reasons]
        if reasons:
            fitting = ", ".join(fitting_losses(student, teacher))
            pair = f"{teacher.name} as teacher of {student.name}"
            errors.append(f"{config.source}: distill: losses that fit {pair}: {fitting}")
        else:
            losses[term.name] = kind(term.config, student, teacher)
    if errors:
        raise RequestError(*sorted(dict.fromkeys(errors), key=lambda line: "losses that fit" in line))
    return Distiller(losses, {term.name: term.teacher for term in config.terms})
