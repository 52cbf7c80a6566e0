"""The teacher gate: refuses a teacher that is not better than the untrained student, or systematically wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import GateError, RequestError
from kd_vision.core.progress import no_progress
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.metrics import Metrics
from kd_vision.pipeline.dense_stores import recorded_metrics
from kd_vision.pipeline.evaluate import measure, predict_split
from kd_vision.pipeline.parts import RunParts
from kd_vision.pipeline.teacher_sanity import systematic_errors
from kd_vision.teachers.offline import OfflineTeacher

_MARGIN = 0.01
"""Least lead in AP, as a fraction; more than a few boxes found by chance bring."""
_MAX_IMAGES = 1000
"""Training images on which an offline teacher is measured at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TeacherScore:
    """Metrics of a teacher and of the untrained student on the same images.

    Attributes:
        name: of the teacher.
        split: name of the images.
        teacher, student: the metrics; None: there is no ground truth in the teacher's classes.
        errors: what is systematically wrong with the teacher's boxes, see `teacher_sanity`; empty: nothing.
    """

    name: str
    split: str
    teacher: Metrics | None
    student: Metrics | None
    errors: str = ""


def measure_teachers(
    config: RunConfig, parts: RunParts, truth: DetectionData, labelled: DetectionData
) -> Iterator[TeacherScore]:
    """Measure every teacher: online ones on the validation split, offline ones see `_measure_offline`.

    The numbers of a teacher with stored dense labels were measured when it was run.

    Args:
        config: the run.
        parts: models of the run.
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
        size = teacher.image_size or config.image_size
        boxes = predict_split(teacher, truth, size, config.evaluate, no_progress)
        after = evaluate_detections(truth, boxes, config.evaluate.backend)
        yield TeacherScore(
            name, truth.name, after, before, systematic_errors(truth, boxes, teacher.spec.missing_classes)
        )
    for offline in parts.offline.values():
        yield _measure_offline(config, parts.student, offline, truth, labelled)
    for stored in (teacher for teacher in config.teachers if teacher.name in parts.dense):
        recorded = recorded_metrics(config, stored, truth)
        if recorded is not None and before is None:
            before = measure(parts.student, truth, config.image_size, config.evaluate)
        yield TeacherScore(stored.name, truth.name, recorded, before)


def _measure_offline(
    config: RunConfig, student: Detector, teacher: OfflineTeacher, truth: DetectionData, labelled: DetectionData
) -> TeacherScore:
    """Measure precomputed boxes on the validation split where they cover it, else on labelled training images.

    Of a large training set every n-th image is used, so that the gate takes minutes.
    """
    try:
        covered = teacher.attach(truth)
    except RequestError:
        covered = labelled.subset(range(0, len(labelled), -(-len(labelled) // _MAX_IMAGES) or 1))
    if len(covered) == 0:
        return TeacherScore(teacher.name, "no labelled image", None, None)
    table = covered.pseudo_labels[teacher.name]
    boxes = {image.image_id: table.detections(index) for index, image in enumerate(covered.images)}
    boxes = {image_id: one if one.ignore is None else one.take(~one.ignore) for image_id, one in boxes.items()}
    before = measure(student, covered, config.image_size, config.evaluate)
    after = evaluate_detections(covered, boxes, config.evaluate.backend)
    errors = systematic_errors(covered, boxes, teacher.spec.missing_classes)
    return TeacherScore(teacher.name, covered.name, after, before, errors)


def refuse_weak_teacher(config: RunConfig, score: TeacherScore) -> None:
    """Refuse a teacher that is not better than the untrained student, or whose classes or boxes are shuffled.

    Raises:
        GateError: unless the config has ``allow_weak_teacher: true``; then what is wrong is only logged.
    """
    if score.teacher is None or score.student is None:
        return
    problems = _problems(score.teacher, score.student, score)
    if not problems:
        return
    where = f"{config.source}: {score.name}: "
    if not config.allow_weak_teacher:
        raise GateError(f"{where}{'; '.join(problems)}, or set allow_weak_teacher: true")
    if score.errors:
        _log.warning("%s%s", where, score.errors)


def _problems(teacher: Metrics, student: Metrics, score: TeacherScore) -> list[str]:
    """Return what is wrong with a teacher, the last entry being what would be right; empty: nothing."""
    if teacher.ap is None:
        return [f"'{score.split}' holds no box to measure a teacher by", "give another evaluate.split"]
    teacher_ap, student_ap = teacher.ap, student.ap or 0.0
    weak = (
        f"AP {100 * teacher_ap:.1f} on '{score.split}' is not better than the untrained student's "
        f"{100 * student_ap:.1f} by a point"
    )
    problems = [weak] if teacher_ap < student_ap + _MARGIN else []
    if score.errors:
        return [*problems, f"on '{score.split}' {score.errors}", "give it the right classes and boxes"]
    return [*problems, "give a teacher trained for this data"] if problems else []
