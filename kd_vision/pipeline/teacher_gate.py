"""A teacher that is not better than its student ends the work before a night is spent on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import GateError, RequestError
from kd_vision.data.dataset import DetectionData, load_split
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.metrics import Metrics
from kd_vision.losses.distiller import KNOWLEDGE
from kd_vision.pipeline.data import descriptor_of
from kd_vision.pipeline.evaluate import measure
from kd_vision.pipeline.parts import RunParts
from kd_vision.teachers.offline import attach

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


def measure_teachers(config: RunConfig, parts: RunParts, labelled: DetectionData) -> Iterator[TeacherScore]:
    """Measure every teacher on the validation split, stored boxes where there are labels beside them.

    Args:
        config: the run.
        parts: who takes part.
        labelled: training images, with what the store says of them.
    """
    split = config.evaluate.split
    truth = load_split(descriptor_of(config), split)
    before: Metrics | None = None
    selves = {teacher.name for teacher in config.teachers if teacher.is_ema}
    for name, teacher in parts.teachers.items():
        if name in selves or teacher.spec.classes != truth.classes:
            yield TeacherScore(name, split, None, None)
            continue
        before = before or measure(parts.student, truth, config.image_size, config.evaluate)
        said = measure(teacher, truth, teacher.image_size or config.image_size, config.evaluate)
        yield TeacherScore(name, split, said, before)
    if parts.knowledge is not None:
        yield _measure_stored(config, parts, truth, labelled)


def _measure_stored(config: RunConfig, parts: RunParts, truth: DetectionData, labelled: DetectionData) -> TeacherScore:
    """Measure stored boxes on the validation split where they cover it, else on labelled training images.

    Of these every n-th, so that a large set costs minutes and not a night.
    """
    assert parts.knowledge is not None
    assert parts.labels is not None
    try:
        truth = attach(truth, parts.knowledge, parts.labels)
    except RequestError:
        truth = replace(labelled, images=labelled.images[:: -(-len(labelled) // _ENOUGH) or 1])
    if len(truth) == 0:
        return TeacherScore(KNOWLEDGE, "no labelled image", None, None)
    said = {}
    for image in truth.images:
        assert image.knowledge is not None
        found = image.knowledge
        said[image.image_id] = found if found.ignore is None else found.take(~found.ignore)
    before = measure(parts.student, truth, config.image_size, config.evaluate)
    return TeacherScore(KNOWLEDGE, truth.name, evaluate_detections(truth, said, config.evaluate.backend), before)


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
