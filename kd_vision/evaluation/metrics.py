"""The result of an evaluation: the twelve COCO numbers and the numbers of each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from kd_vision.core.validation import StrictModel, validate

Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
"""A number between 0 and 1; tables show it in points (x 100)."""

_ROUNDING = 1e-9


class ClassMetrics(StrictModel):
    """Numbers of one class.

    Attributes:
        ap: average precision over IoU 0.50 to 0.95, all sizes, 100 boxes an image; None without a box.
        ap50: the same at IoU 0.50.
        boxes: boxes of the class in the ground truth, without crowd regions.
    """

    ap: Fraction | None
    ap50: Fraction | None
    boxes: int = Field(ge=0)


class Metrics(StrictModel):
    """The numbers of COCOeval, as fractions. A number that is not defined (COCOeval: -1) is None.

    Attributes:
        ap: mean over classes and IoU 0.50, 0.55 ... 0.95 of average precision, 100 boxes an image.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of boxes with an area below 32 x 32 pixels of the original image.
        ap_medium: from 32 x 32 to 96 x 96.
        ap_large: above.
        ar1: recall (mean over classes and IoU) with the best box of an image.
        ar10: with the ten best.
        ar100: with the hundred best.
        ar_small: `ar100` of small boxes.
        ar_medium: of medium boxes.
        ar_large: of large boxes.
        per_class: numbers by class name, in label order.
        n_images: images that were evaluated.
    """

    ap: Fraction | None = Field(validation_alias=AliasChoices("AP", "ap"), serialization_alias="AP")
    ap50: Fraction | None = Field(validation_alias=AliasChoices("AP50", "ap50"), serialization_alias="AP50")
    ap75: Fraction | None = Field(validation_alias=AliasChoices("AP75", "ap75"), serialization_alias="AP75")
    ap_small: Fraction | None = Field(validation_alias=AliasChoices("APs", "ap_small"), serialization_alias="APs")
    ap_medium: Fraction | None = Field(validation_alias=AliasChoices("APm", "ap_medium"), serialization_alias="APm")
    ap_large: Fraction | None = Field(validation_alias=AliasChoices("APl", "ap_large"), serialization_alias="APl")
    ar1: Fraction | None = Field(validation_alias=AliasChoices("AR1", "ar1"), serialization_alias="AR1")
    ar10: Fraction | None = Field(validation_alias=AliasChoices("AR10", "ar10"), serialization_alias="AR10")
    ar100: Fraction | None = Field(validation_alias=AliasChoices("AR100", "ar100"), serialization_alias="AR100")
    ar_small: Fraction | None = Field(validation_alias=AliasChoices("ARs", "ar_small"), serialization_alias="ARs")
    ar_medium: Fraction | None = Field(validation_alias=AliasChoices("ARm", "ar_medium"), serialization_alias="ARm")
    ar_large: Fraction | None = Field(validation_alias=AliasChoices("ARl", "ar_large"), serialization_alias="ARl")
    per_class: Mapping[str, ClassMetrics]
    n_images: int = Field(ge=0)

    def to_json(self) -> dict[str, Any]:
        """Return plain values under the keys of `metrics.json` (``AP AP50 ... per_class n_images``)."""
        return self.model_dump(mode="json", by_alias=True)

    @staticmethod
    def from_json(content: Mapping[str, Any], where: str = "metrics.json") -> Metrics:
        """Read the mapping that `to_json` returns.

        Args:
            content: the mapping as read.
            where: the file to name in messages.

        Raises:
            RequestError: a key is missing or unknown, or a value is no fraction.
        """
        return validate(Metrics, content, where)


def fraction_or_none(value: float) -> float | None:
    """Turn COCOeval's -1 and anything else outside [0, 1] into None; clamp a rounding error above 1 to 1."""
    if not 0.0 <= value <= 1.0 + _ROUNDING:
        return None
    return min(float(value), 1.0)
