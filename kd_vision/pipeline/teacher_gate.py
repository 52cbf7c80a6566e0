"""A teacher that is not better than its student ends the work before a night is spent on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import GateError, RequestError
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.metrics import Metrics
from kd_vision.pipeline.evaluate import measure
from kd_vision.pipeline.parts import RunParts
from kd_vision.teachers.offline import OfflineTeacher

_MARGIN = 0.01
"""AP, as a fraction, that a teacher must be ahead: a teacher that found one box by luck is not."""
_ENOUGH = 1000
"""Training images that tell whether a store is any good."""


@dataclass(frozen=True, slots=True)
class TeacherScore:
    """What a teacher and the student before training score on the same images.

    Attributes:
        name: of the teacher.
        split: whose labels were used.
        teacher, student: the numbers; None: there are no labels of its classes to measure with.
    """

    name: str
    split: str
    teacher: Metrics | None
    student: Metrics | None


def measure_teachers(
    config: RunConfig, parts: RunParts, truth: DetectionData, labelled: DetectionData
) -> Iterator[TeacherScore]:
    """Measure every teacher: online ones on the validation split, offline ones where they have boxes and labels.

    Args:
        config: the run.
        parts: who takes part.
        truth: the validation split.
        labelled: training images, with the pseudo labels of offline teachers.
    """
    before: Metrics | None = None
    averages = {teacher.name for teacher in config.teachers if teacher.entry.follows_student}
    for name, teacher in parts.online.items():
        if name in averages or teacher.spec.classes != truth.classes:
            yield TeacherScore(name, truth.name, None, None)
            continue
        before = before or measure(parts.student, truth, config.image_size, config.evaluate)
        after = measure(teacher, truth, teacher.image_size or config.image_size, config.evaluate)
        yield TeacherScore(name, truth.name, after, before)
    for offline in parts.offline.values():
        yield _measure_offline(config, parts.student, offline, truth, labelled)


def _measure_offline(
    config: RunConfig, student: Detector, teacher: OfflineTeacher, truth: DetectionData, labelled: DetectionData
) -> TeacherScore:
    """Measure precomputed boxes on the validation split where they cover it, else on labelled training images.

    Of these every n-th, so that a large set costs minutes and not a night.
    """
    try:
        covered = teacher.attach(truth)
    except RequestError:
        covered = labelled.subset(range(0, len(labelled), -(-len(labelled) // _ENOUGH) or 1))
    if len(covered) == 0:
        return TeacherScore(teacher.name, "no labelled image", None, None)
    table = covered.pseudo_labels[teacher.name]
    boxes = {image.image_id: table.detections(index) for index, image in enumerate(covered.images)}
    claims = {image_id: one if one.ignore is None else one.take(~one.ignore) for image_id, one in boxes.items()}
    before = measure(student, covered, config.image_size, config.evaluate)
    after = evaluate_detections(covered, claims, config.evaluate.backend)
    return TeacherScore(teacher.name, covered.name, after, before)


def refuse_weak_teacher(config: RunConfig, score: TeacherScore) -> None:
    """Stop where the teacher knows hardly more than the student does before training.

    Raises:
        GateError: unless the config says ``allow_weak_teacher: true``.
    """
    if score.teacher is None or score.student is None or config.allow_weak_teacher:
        return
    if score.teacher.ap is None:
        raise GateError(
            f"{config.source}: {score.name}: '{score.split}' holds no box to measure a teacher by; give another "
            f"evaluate.split, or set allow_weak_teacher: true"
        )
    knows, has = score.teacher.ap, score.student.ap or 0.0
    if knows >= has + _MARGIN:
        return
    raise GateError(
        f"{config.source}: {score.name}: AP {100 * knows:.1f} on '{score.split}' is not better than the untrained "
        f"student's {100 * has:.1f} by a point; give a teacher trained for this data, or set allow_weak_teacher: true"
    )
