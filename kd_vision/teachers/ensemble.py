"""An ensemble of teachers as one teacher: their fused boxes.

Shapes: B images, C channels, H W pixels, K classes, P members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from kd_vision.core.batch import to_channels
from kd_vision.core.errors import RequestError, quote_some, suggest
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.teachers.base import BlackBoxDetector
from kd_vision.teachers.fusion import fuse, top_k_detections

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kd_vision.teachers.frozen import FrozenTeacher


class EnsembleConfig(StrictModel):
    """Members of an ensemble, and settings of the fusion.

    Attributes:
        members: each like a teacher: the keys of its family and of `TeacherOptions`.
        weights: of the members; None: all 1.
        class_weights: factors on a member's weight for single classes, by the member's name or its position
            from 0: ``{big: {bird: 0.5}}``. Always 0 for a class that the member never learned.
        iou: overlap from which boxes of two members are the same object.
        min_score: boxes of a member below are left out.
    """

    family: Literal["ensemble"] = "ensemble"
    members: tuple[dict[str, Any], ...] = Field(min_length=1)
    weights: tuple[float, ...] | None = None
    class_weights: dict[str, dict[str, float]] = Field(default_factory=dict)
    iou: float = Field(default=0.55, gt=0.0, lt=1.0)
    min_score: float = Field(default=0.01, ge=0.0, lt=1.0)

    @field_validator("class_weights", mode="before")
    @classmethod
    def _positions(cls, given: Any) -> Any:
        # YAML reads a position as a number.
        return {str(key): value for key, value in given.items()} if isinstance(given, Mapping) else given

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and (min(weights, default=0.0) < 0 or not sum(weights) > 0):
            raise ValueError(f"expected numbers from 0 up, one of them above; given {list(weights)}")
        return weights


class Ensemble(BlackBoxDetector):
    """Runs every member at its own image size and fuses the boxes of each image.

    Args:
        members: with the same classes in the same order.
        weights: (P,) of the members; None: all 1.
        class_weights: (P, K) factors on `weights`; None: all 1. Set to 0 where a member never learned a class.
        iou: overlap from which two boxes are the same object.
        min_score: boxes of a member below are left out.

    Raises:
        RequestError: the members' classes differ.
    """

    def __init__(
        self,
        members: Sequence[FrozenTeacher],
        weights: Sequence[float] | None = None,
        class_weights: npt.ArrayLike | None = None,
        iou: float = 0.55,
        min_score: float = 0.01,
    ) -> None:
        classes = members[0].spec.classes
        for position, member in enumerate(members):
            if member.spec.classes != classes:
                raise RequestError(
                    f"ensemble: member {position} has the classes {quote_some(member.spec.classes)}, member 0 "
                    f"{quote_some(classes)}; map them to the same classes with labels"
                )
        self.members = tuple(members)
        self.weights = weights
        self.iou = iou
        self.score_floor = min_score
        known_mask = np.array(
            [[name not in member.spec.missing_classes for name in classes] for member in members], np.float64
        )
        self.class_weights = known_mask if class_weights is None else known_mask * np.asarray(class_weights, np.float64)
        self.spec = _spec(self.members)

    def resolve_input_size(self, default_size: int | None) -> int | None:
        """Return the largest image size of the members; see `BlackBoxDetector.resolve_input_size`.

        Raises:
            RequestError: the members without a size cannot take `default_size`.
        """
        sizes = [member.image_size for member in self.members if member.image_size]
        without_size = [member for member in self.members if not member.image_size]
        if not sizes or not without_size or default_size is None:
            return max(sizes, default=None)
        multiple = self.spec.size_multiple
        if default_size % multiple:
            near = round(default_size / multiple) * multiple or multiple
            raise RequestError(
                f"members without image_size would get images of {default_size}x{default_size} pixels, but take "
                f"multiples of {multiple}; give them image_size: {near}"
            )
        for member in without_size:
            member.image_size = default_size
        self.spec = _spec(self.members)
        return max(default_size, *sizes)

    def to(self, device: torch.device | str) -> Ensemble:
        """Move the members."""
        for member in self.members:
            member.to(device)
        return self

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `BlackBoxDetector.detect`."""
        member_options = replace(options, score_threshold=self.score_floor)
        by_member = [
            member.detect(to_channels(images, member.spec.input_channels), member_options) for member in self.members
        ]
        return [
            top_k_detections(fuse(detections, self.iou, self.weights, self.class_weights), options)
            for detections in zip(*by_member, strict=True)
        ]


def build(config: EnsembleConfig, classes: tuple[str, ...] | None, where: str) -> Ensemble:
    """Build the members and the ensemble.

    Args:
        config: of the ensemble.
        classes: names to which the `labels` of all members map; None: the classes of the first member.
        where: key for messages, e.g. ``teacher``.

    Raises:
        RequestError: a member cannot be built, classes do not fit, or a weight is for an unknown member or class.
    """
    from kd_vision.teachers.build import build_teacher, parse_member

    members: list[FrozenTeacher] = []
    names: list[str | None] = []
    for position, content in enumerate(config.members):
        key = f"{where}.members.{position}"
        source, options = parse_member(content, key)
        member_classes = members[0].spec.classes if classes is None and members else classes
        members.append(build_teacher(source, options, member_classes, key))
        names.append(options.name)
    classes = members[0].spec.classes
    if errors := _weight_errors(config, names, classes, where):
        raise RequestError(*errors)
    table = [
        [_class_weight(config.class_weights, name, position, label) for label in classes]
        for position, name in enumerate(names)
    ]
    return Ensemble(members, config.weights, table, config.iou, config.min_score)


def _weight_errors(
    config: EnsembleConfig, names: Sequence[str | None], classes: tuple[str, ...], where: str
) -> list[str]:
    errors = []
    if config.weights is not None and len(config.weights) != len(names):
        errors.append(f"{where}.weights: {len(config.weights)} numbers for {len(names)} members; give one each")
    given = [name for name in names if name is not None]
    possible = [*given, *map(str, range(len(names)))]
    if len(set(possible)) < len(possible):
        errors.append(f"{where}.members: two have the same name, or one has a number as its name; rename it")
    for member, factors in config.class_weights.items():
        if member not in possible:
            errors.append(f"{where}.class_weights.{member}: there is no such member{suggest(member, possible)}")
        for name, factor in factors.items():
            if name not in classes:
                errors.append(f"{where}.class_weights.{member}.{name}: no such class{suggest(name, classes)}")
            if not 0 <= factor < math.inf:
                errors.append(f"{where}.class_weights.{member}.{name}: must be a number from 0 up; given {factor}")
    return errors


def _class_weight(weights: Mapping[str, Mapping[str, float]], name: str | None, position: int, label: str) -> float:
    by_position = weights.get(str(position), {}).get(label, 1.0)
    return by_position if name is None else by_position * weights.get(name, {}).get(label, 1.0)


def _spec(members: Sequence[FrozenTeacher]) -> DetectorSpec:
    specs = [member.spec for member in members]
    # Members with a size resize their input, so that only the others restrict it.
    multiples = [spec.size_multiple for spec, member in zip(specs, members, strict=True) if not member.image_size]
    return DetectorSpec(
        family="ensemble",
        name="+".join(spec.name for spec in specs),
        classes=specs[0].classes,
        level_channels={},
        level_strides={},
        provides=frozenset({"detections"}),
        input_channels=max(spec.input_channels for spec in specs),
        size_multiple=math.lcm(*multiples),
        end_to_end=True,
        parameters=sum(spec.parameters for spec in specs),
        missing_classes=frozenset.intersection(*(spec.missing_classes for spec in specs)),
    )
