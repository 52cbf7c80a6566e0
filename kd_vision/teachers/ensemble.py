"""Several teachers that answer as one: their boxes, fused.

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
    """Whose boxes are fused, and how.

    Attributes:
        members: each as a teacher: its family's keys beside those of `TeacherOptions`.
        weights: how much each member counts; None: all alike.
        class_weights: factors on a member's weight for single classes, by the member's name or its position
            from 0: ``{big: {bird: 0.5}}``. A class that a member never learned has 0 by itself.
        iou: overlap from which boxes of two members are the same object.
        min_score: boxes of a member below take no part.
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
    """Asks every member, at its own image size, and fuses what they say of each image.

    Args:
        members: answering in the same classes, in the same order.
        weights: (P,) how much each counts; None: all alike.
        class_weights: (P, K) factors on `weights`; None: 1. Where a member never learned a class it has no say.
        iou: overlap from which two boxes are the same object.
        min_score: boxes of a member below take no part.

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
                    f"ensemble: member {position} answers in {quote_some(member.spec.classes)}, member 0 in "
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

    def resolve_input_size(self, given: int | None) -> int | None:
        """Return the side of the largest view that a member names; see `BlackBoxDetector.resolve_input_size`.

        Raises:
            RequestError: the members that name no size cannot take `given`.
        """
        named = [member.image_size for member in self.members if member.image_size]
        free = [member for member in self.members if not member.image_size]
        if not named or not free or given is None:
            return max(named, default=None)
        multiple = self.spec.size_multiple
        if given % multiple:
            near = round(given / multiple) * multiple or multiple
            raise RequestError(
                f"images of {given}x{given} pixels are for the members without image_size, which take multiples of "
                f"{multiple}; give them image_size: {near}"
            )
        for member in free:
            member.image_size = given
        self.spec = _spec(self.members)
        return max(given, *named)

    def to(self, device: torch.device | str) -> Ensemble:
        """Move the members."""
        for member in self.members:
            member.to(device)
        return self

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `BlackBoxDetector.detect`."""
        asked = replace(options, score_threshold=self.score_floor)
        said = [member.detect(to_channels(images, member.spec.input_channels), asked) for member in self.members]
        return [
            top_k_detections(fuse(found, self.iou, self.weights, self.class_weights), options)
            for found in zip(*said, strict=True)
        ]


def build(config: EnsembleConfig, classes: tuple[str, ...] | None, where: str) -> Ensemble:
    """Build the members and put them together.

    Args:
        config: who, and how.
        classes: names that all must answer in, through their `labels`; None: those of the first member.
        where: key for messages, e.g. ``teacher``.

    Raises:
        RequestError: a member cannot be built, classes do not fit, or weights name nobody.
    """
    from kd_vision.teachers.build import build_teacher, parse_member

    members: list[FrozenTeacher] = []
    names: list[str | None] = []
    for position, content in enumerate(config.members):
        key = f"{where}.members.{position}"
        source, options = parse_member(content, key)
        wanted = members[0].spec.classes if classes is None and members else classes
        members.append(build_teacher(source, options, wanted, key))
        names.append(options.name)
    words = members[0].spec.classes
    wrong = _wrong_names(config, names, words, where)
    if wrong:
        raise RequestError(*wrong)
    table = [
        [_factor(config.class_weights, name, position, word) for word in words] for position, name in enumerate(names)
    ]
    return Ensemble(members, config.weights, table, config.iou, config.min_score)


def _wrong_names(
    config: EnsembleConfig, names: Sequence[str | None], classes: tuple[str, ...], where: str
) -> list[str]:
    found = []
    if config.weights is not None and len(config.weights) != len(names):
        found.append(f"{where}.weights: {len(config.weights)} numbers for {len(names)} members; give one each")
    given = [name for name in names if name is not None]
    possible = [*given, *map(str, range(len(names)))]
    if len(set(possible)) < len(possible):
        found.append(f"{where}.members: two have the same name, or one has a number as its name; rename it")
    for member, factors in config.class_weights.items():
        if member not in possible:
            found.append(f"{where}.class_weights.{member}: there is no such member{suggest(member, possible)}")
        for name, factor in factors.items():
            if name not in classes:
                found.append(f"{where}.class_weights.{member}.{name}: no such class{suggest(name, classes)}")
            if not 0 <= factor < math.inf:
                found.append(f"{where}.class_weights.{member}.{name}: must be a number from 0 up; given {factor}")
    return found


def _factor(given: Mapping[str, Mapping[str, float]], name: str | None, position: int, word: str) -> float:
    by_position = given.get(str(position), {}).get(word, 1.0)
    return by_position if name is None else by_position * given.get(name, {}).get(word, 1.0)


def _spec(members: Sequence[FrozenTeacher]) -> DetectorSpec:
    specs = [member.spec for member in members]
    shown_as_given = [spec.size_multiple for spec, member in zip(specs, members, strict=True) if not member.image_size]
    return DetectorSpec(
        family="ensemble",
        name="+".join(spec.name for spec in specs),
        classes=specs[0].classes,
        level_channels={},
        level_strides={},
        provides=frozenset({"detections"}),
        input_channels=max(spec.input_channels for spec in specs),
        size_multiple=math.lcm(*shown_as_given),
        end_to_end=True,
        parameters=sum(spec.parameters for spec in specs),
        missing_classes=frozenset.intersection(*(spec.missing_classes for spec in specs)),
    )
