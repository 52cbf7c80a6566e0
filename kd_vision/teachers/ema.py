"""Self-distillation: the moving average of the student's weights as teacher."""

from __future__ import annotations

from typing import Literal, NoReturn

from kd_vision.core.errors import RequestError
from kd_vision.core.validation import StrictModel


class EmaConfig(StrictModel):
    """The moving average of the student's weights as teacher; a finished run's average is a `weights:` file.

    The average lags behind the student, and gets the clean image where ``augment.student_noise`` is on. Where both
    get the same image, its signals differ little from the student's.
    """

    family: Literal["self"] = "self"


def build(config: EmaConfig, classes: tuple[str, ...] | None, where: str) -> NoReturn:
    """Refuse: only a training run can build it, from its student.

    Raises:
        RequestError: always.
    """
    raise RequestError(f"{where}: the student's moving average exists only during training; give a model's file")
