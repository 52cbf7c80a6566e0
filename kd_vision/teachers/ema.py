"""The student as its own teacher: the moving average of its weights at every step."""

from __future__ import annotations

from typing import Literal, NoReturn

from kd_vision.core.errors import RequestError
from kd_vision.core.validation import StrictModel


class EmaConfig(StrictModel):
    """A teacher that is the student's own moving average; its finished self is an ordinary `weights:` file.

    The average lags behind the student and sees the clean image where ``augment.student_noise`` is on; with
    both views alike there is little to learn from it.
    """

    family: Literal["self"] = "self"


def build(config: EmaConfig, classes: tuple[str, ...] | None, where: str) -> NoReturn:
    """Refuse: a run makes it from its own student.

    Raises:
        RequestError: always.
    """
    raise RequestError(f"{where}: the student's moving average exists within a run alone; give a model's file")
