"""The labels themselves as a teacher: what a recipe brings where nobody knows more than the labels say."""

from __future__ import annotations

from typing import Literal, NoReturn

from kd_vision.core.errors import RequestError
from kd_vision.core.validation import StrictModel


class LabelsConfig(StrictModel):
    """The student's own training labels, handed to it as if somebody had predicted them with a score of 1.

    A control, not a teacher: it cannot know what the labels do not, so what it brings over plain training is
    what the losses do by themselves (their weight, `balance` of rare classes).
    """

    family: Literal["labels"] = "labels"


def build(config: LabelsConfig, classes: tuple[str, ...] | None, where: str) -> NoReturn:
    """Refuse: labels belong to the images of the data set, they are no model.

    Raises:
        RequestError: always.
    """
    raise RequestError(f"{where}: labels look at no pixels; give them as the only teacher")
