"""The student as its own teacher: the moving average of its weights, as it is at every step."""

from __future__ import annotations

from typing import Literal

from kd_vision.core.validation import StrictModel


class SelfConfig(StrictModel):
    """A teacher that is the student's own moving average; its finished self is an ordinary `weights:` file.

    The average lags behind the student and sees the clean image where ``augment.student_noise`` is on; with
    both views alike there is little to learn from it.
    """

    family: Literal["self"] = "self"
