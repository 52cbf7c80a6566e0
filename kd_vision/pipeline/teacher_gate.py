"""A teacher that is not better than its student ends the work before a night is spent on it."""

from __future__ import annotations

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import GateError
from kd_vision.data.dataset import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.evaluation.metrics import Metrics
from kd_vision.pipeline.evaluate import measure


def measure_teacher(
    config: RunConfig, teacher: Detector, student: Detector, truth: DetectionData, quiet: bool = True
) -> tuple[Metrics, Metrics]:
    """Return the COCO numbers of teacher and untrained student on the validation split."""
    said = measure(teacher, truth, config.image_size, config.evaluate, quiet)
    before = measure(student, truth, config.image_size, config.evaluate, quiet)
    return said, before


def refuse_weak_teacher(config: RunConfig, teacher: Metrics, student: Metrics, split: str) -> None:
    """Stop where the teacher knows no more than the student does before training.

    Raises:
        GateError: unless the config says ``allow_weak_teacher: true``.
    """
    knows, has = teacher.ap or 0.0, student.ap or 0.0
    if knows > has or config.allow_weak_teacher:
        return
    raise GateError(
        f"{config.source}: teacher: AP {100 * knows:.1f} on '{split}' is not better than the untrained "
        f"student's {100 * has:.1f}; give a teacher trained for this data, or set allow_weak_teacher: true"
    )
