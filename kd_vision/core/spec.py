"""Facts about a detector, available without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Signal


@dataclass(frozen=True, slots=True)
class DetectorSpec:
    """Facts about a detector that losses, checks and exporters rely on.

    Attributes:
        family: key of the detector table, e.g. ``"ultralytics"``.
        name: architecture, e.g. ``"yolo11n"``.
        classes: names in label order.
        level_channels: width of each pyramid map, fine to coarse, ``{"P3": 64, "P4": 128}``.
        level_strides: stride of each pyramid map in input pixels.
        provides: signals this detector can give.
        input_channels: 1 grayscale, 3 RGB, 4 RGB and one more.
        size_multiple: input height and width must be multiples of this.
        box_bins: bins per box side, None for heads that regress directly.
        end_to_end: True where the head needs no NMS (a one-to-one branch).
        parameters: number of parameters.
        lowest_opset: first ONNX operator set that has all of its operators.
        level_anchors: rows of the signal `grid` at each point, by level; a level without an entry has one.
        ignored: of a teacher: its own classes whose boxes the label map ignores.
        missing_classes: of a teacher: those of `classes` that it never learned; it has no boxes of them.
    """

    family: str
    name: str
    classes: tuple[str, ...]
    level_channels: Mapping[str, int]
    level_strides: Mapping[str, int]
    provides: frozenset[Signal]
    input_channels: int = 3
    size_multiple: int = 32
    box_bins: int | None = None
    end_to_end: bool = False
    parameters: int = 0
    lowest_opset: int = 11
    level_anchors: Mapping[str, int] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    missing_classes: frozenset[str] = frozenset()

    def wrong_size(self, size: int, key: str) -> str | None:
        """Return the error, a line about `key`, where `size` pixels cannot be input height and width; else None."""
        multiple = self.size_multiple
        if size > 0 and size % multiple == 0:
            return None
        near = max(round(size / multiple), 1) * multiple
        return f"{key}: {size} is not a multiple of {multiple}, which {self.name} needs; use {near}"

    def refuse_wrong_size(self, size: int, key: str) -> None:
        """Refuse a size that does not fit, see `wrong_size`.

        Raises:
            RequestError: the size does not fit.
        """
        if error := self.wrong_size(size, key):
            raise RequestError(error)
