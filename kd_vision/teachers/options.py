"""How a teacher is run, whatever it is: keys beside those of its own kind."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from kd_vision.core.label_map import stringify_keys
from kd_vision.core.predictions import PredictOptions
from kd_vision.core.validation import StrictModel


class PostprocessConfig(StrictModel):
    """What of an online teacher's predictions counts as a pseudo label.

    Attributes:
        score_threshold: boxes below are dropped: they are rather guesses, and cost the student time.
        nms_iou: overlap above which the weaker box of a class is dropped (heads that need NMS).
        max_detections: boxes kept per image, best first.
    """

    score_threshold: float = Field(default=0.05, gt=0.0, lt=1.0)
    nms_iou: float = Field(default=0.6, gt=0.0, le=1.0)
    max_detections: int = Field(default=300, ge=1)

    @property
    def options(self) -> PredictOptions:
        """The same as the value that detectors take."""
        return PredictOptions(self.score_threshold, self.nms_iou, self.max_detections)


DEFAULT_TEACHER_POSTPROCESS = PostprocessConfig().options


class TilesConfig(StrictModel):
    """How an image is cut.

    Attributes:
        size: side of a tile; None: the size that the teacher's file takes.
        overlap: share of a tile that its neighbour sees too; objects smaller than this are whole in one of them.
        whole: run on the whole image as well, shrunk to one tile, for objects larger than a tile.
    """

    size: int | None = Field(default=None, ge=32)
    overlap: float = Field(default=0.2, ge=0.0, lt=1.0)
    whole: bool = True


class TtaConfig(StrictModel):
    """Test-time augmentation.

    Attributes:
        flip: run on the mirror image too.
        scales: sizes to run at, as factors; 1.0 is the image as it is.
        iou: overlap from which boxes of two passes are the same object.
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
    """How a teacher is run.

    Attributes:
        name: to refer to it; None: the caller's choice.
        labels: from its classes to the data's, see `core.label_map.build_label_map`.
        image_size: side of the square it is run on; None: that of the images it is given, the only one that its
            file takes, or the largest that a member of an ensemble names.
        tiles: cut the square into tiles, for objects that are small in it.
        tta: run on each image more than once.
        postprocess: what of its predictions counts as a pseudo label.
    """

    name: str | None = None
    labels: dict[str, str] | None = None
    image_size: int | None = Field(default=None, ge=32)
    tiles: TilesConfig | None = None
    tta: TtaConfig | None = None
    postprocess: PostprocessConfig = PostprocessConfig()

    # A store is made with thresholds of its own.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"postprocess"})

    @field_validator("labels", mode="before")
    @classmethod
    def _words(cls, labels: Any) -> Any:
        return stringify_keys(labels)


ONLINE_OPTIONS = ("image_size", "tiles", "tta", "postprocess")
"""Options without a meaning for a teacher that predicted before training."""
