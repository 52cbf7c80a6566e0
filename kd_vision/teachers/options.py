"""Settings of every kind of teacher: label map, input size, tiles, test-time augmentation, post-processing."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from kd_vision.core.label_map import stringify_keys
from kd_vision.core.predictions import PredictOptions
from kd_vision.core.validation import StrictModel


class PostprocessConfig(StrictModel):
    """Which predictions of an online teacher become pseudo labels.

    Attributes:
        score_threshold: boxes below are dropped: most of them are wrong, and they cost time.
        nms_iou: overlap above which the weaker box of a class is dropped (heads that need NMS).
        max_detections: boxes kept per image, best first.
    """

    score_threshold: float = Field(default=0.05, gt=0.0, lt=1.0)
    nms_iou: float = Field(default=0.6, gt=0.0, le=1.0)
    max_detections: int = Field(default=300, ge=1)

    @property
    def options(self) -> PredictOptions:
        """The settings as the value that detectors take."""
        return PredictOptions(self.score_threshold, self.nms_iou, self.max_detections)


DEFAULT_TEACHER_POSTPROCESS = PostprocessConfig().options


class TilesConfig(StrictModel):
    """Inference on tiles of an image.

    Attributes:
        size: side of a tile; None: the size that the teacher's file takes.
        overlap: share of a tile that is also in its neighbour; objects smaller than this are whole in one of them.
        whole: also run on the whole image, resized to one tile, for objects larger than a tile.
    """

    size: int | None = Field(default=None, ge=32)
    overlap: float = Field(default=0.2, ge=0.0, lt=1.0)
    whole: bool = True


class TtaConfig(StrictModel):
    """Test-time augmentation.

    Attributes:
        flip: also run on the mirrored image.
        scales: sizes as factors; 1.0 is the image itself.
        iou: overlap from which boxes of two views are the same object.
    """

    flip: bool = True
    scales: tuple[float, ...] = (1.0,)
    iou: float = Field(default=0.55, gt=0.0, lt=1.0)

    @field_validator("scales")
    @classmethod
    def _distinct_positive(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
            raise ValueError(f"expected different factors above 0, e.g. [0.75, 1.0, 1.5]; given {list(scales)}")
        return scales


class TeacherOptions(StrictModel):
    """Settings of every kind of teacher.

    Attributes:
        name: name in the config; None: `teacher`, or `teacherN` for one of several.
        labels: from its classes to the data's, see `core.label_map.build_label_map`.
        image_size: side of its square input; None: the fixed size of its file, the largest size of an ensemble's
            members, or the size of the given images.
        tiles: cut the input into tiles, for small objects.
        tta: test-time augmentation.
        postprocess: which predictions become pseudo labels.
    """

    name: str | None = None
    labels: dict[str, str] | None = None
    image_size: int | None = Field(default=None, ge=32)
    tiles: TilesConfig | None = None
    tta: TtaConfig | None = None
    postprocess: PostprocessConfig = PostprocessConfig()

    # A store has its own thresholds, among its options.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"postprocess"})

    @field_validator("labels", mode="before")
    @classmethod
    def _string_keys(cls, labels: Any) -> Any:
        return stringify_keys(labels)


ONLINE_OPTIONS = ("image_size", "tiles", "tta", "postprocess")
"""Options that have no meaning for an offline teacher."""
