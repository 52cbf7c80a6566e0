"""Gives a student its first weights from a teacher."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_vision.core.errors import RequestError
from kd_vision.core.progress import Progress
from kd_vision.detectors.base import Detector
from kd_vision.detectors.inherit_config import InheritConfig
from kd_vision.inherit.channels import channel_graph
from kd_vision.inherit.fit import fit_to_teacher
from kd_vision.inherit.layers import match_layers
from kd_vision.inherit.matching import match_channels
from kd_vision.inherit.slices import Inherited, copy_slices
from kd_vision.inherit.strengths import channel_strengths, score_map


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a student was given.

    Attributes:
        weights: which share of its weights, and what stays fresh.
        fitted: number of layers that were fitted to the teacher's maps.
        images: that were used.
        seconds: of wall time.
    """

    weights: Inherited
    fitted: int
    images: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``inherit.json`` of a run directory."""
        facts = {"share": self.weights.share, "fitted": self.fitted, "images": self.images, "seconds": self.seconds}
        return {**facts, "fresh": self.weights.fresh, "partial": self.weights.partial}

    def __str__(self) -> str:
        text = f"{100 * self.weights.share:.0f} % of the student's weights are slices of the teacher's"
        fitted = f"{self.fitted} layers fitted on {self.images} images" if self.fitted else "no layer fitted"
        fresh = f"; fresh: {_some(self.weights.fresh)}" if self.weights.fresh else ""
        return f"{text}, {fitted}, {self.seconds:.0f} s{fresh}"


def inherit_weights(
    student: Detector,
    teacher: Detector,
    settings: InheritConfig,
    images: Tensor,
    where: str,
    report: Progress | None = None,
) -> Inheritance:
    """Make a student a small copy of its teacher.

    Args:
        student: with fresh weights; changed in place, and left in the mode that it has.
        teacher: of the same family; put into evaluation mode.
        settings: which channels, and whether the layers are fitted.
        images: (B, C, H, W) in [0, 1] with the student's number of channels; without labels.
        where: key of the config for messages, e.g. ``pair.yaml: student.inherit``.
        report: receives a step for each layer that is fitted.

    Raises:
        RequestError: the two are of different families, the images are blank, or too little has a counterpart.
    """
    if student.spec.family != teacher.spec.family:
        raise RequestError(
            f"{where}: {teacher.spec.name} is of the family {teacher.spec.family}, {student.spec.name} of "
            f"{student.spec.family}; weights can be inherited within one family only"
        )
    _refuse_blank(images, where)
    start, was_training = time.perf_counter(), student.training
    teacher.eval()
    mine, theirs = channel_graph(student), channel_graph(teacher)
    seen = _for_teacher(images, teacher.spec.input_channels)
    scores = score_map(teacher, seen) if settings.fit or settings.strength == "score" else None
    strengths = channel_strengths(teacher, theirs, settings.strength, seen, scores)
    same_classes = student.spec.classes == teacher.spec.classes
    rows = frozenset() if same_classes else _class_rows(student) | _class_rows(teacher)
    matching = match_channels(mine, theirs, match_layers(student, teacher, mine, theirs), strengths, rows)
    weights = copy_slices(student, teacher, matching)
    if weights.share < settings.least_share:
        raise RequestError(
            f"{where}: only {100 * weights.share:.0f} % of {student.spec.name} has a counterpart in "
            f"{teacher.spec.name}, below least_share {settings.least_share:g} (without one: {_some(weights.fresh)}); "
            f"give a larger model of the same generation"
        )
    fitted = 0
    if settings.fit:
        assert scores is not None
        fitted = fit_to_teacher(student, teacher, matching, images, seen, scores, report)
    student.train(was_training)
    return Inheritance(weights, fitted, len(images), time.perf_counter() - start)


def _refuse_blank(images: Tensor, where: str) -> None:
    if not len(images):
        raise RequestError(f"{where}: needs images, and there are none; give training images, or a folder 'unlabelled'")
    if float(images.amax(dim=(2, 3)).sub(images.amin(dim=(2, 3))).max()) < 1 / 255:
        raise RequestError(f"{where}: every image is of one colour; give images like those of the camera")


def _for_teacher(images: Tensor, channels: int) -> Tensor:
    """Return the images with the teacher's number of channels: gray is repeated, a fourth channel left out."""
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    missing = channels - images.shape[1]
    return images[:, :channels] if missing <= 0 else torch.cat((images, images[:, :1].expand(-1, missing, -1, -1)), 1)


def _class_rows(detector: Detector) -> frozenset[int]:
    """Return the widths that a layer of class scores can have."""
    count = len(detector.spec.classes)
    anchors = {1, *detector.spec.level_anchors.values()}
    return frozenset(each * (count + extra) for each in anchors for extra in (0, 1))


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
