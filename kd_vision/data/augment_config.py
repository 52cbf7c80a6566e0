"""Settings of augmentation; their import loads no image library.

The defaults have the strength of the default training of ultralytics 8.4: same probabilities and ranges.
"""

from __future__ import annotations

from pydantic import Field

from kd_vision.core.validation import StrictModel


class HsvGains(StrictModel):
    """Colour jitter: shift of hue as a part of the circle, relative gains of saturation and value."""

    hue: float = Field(default=0.015, ge=0.0, le=0.5)
    saturation: float = Field(default=0.7, ge=0.0, le=1.0)
    value: float = Field(default=0.4, ge=0.0, le=1.0)


class AugmentConfig(StrictModel):
    """Settings of the augmentation of training samples.

    Attributes:
        mosaic: probability that a sample is a mosaic of four images.
        close_mosaic: number of last epochs without mosaic; a shorter run uses mosaic throughout.
        scale: the size is multiplied by 1 +- this.
        translate: the position is shifted by +- this part of the input.
        horizontal_flip: probability.
        vertical_flip: probability.
        hsv: colour jitter; three channels only.
        mixup: probability that a sample is blended with another.
        degrade: probability of each of: blur, median blur, gray, local contrast (the last two: three
            channels only).
        student_noise: blur, sensor noise, compression and low light in the student's image only; the teacher gets
            the clean image.
    """

    mosaic: float = Field(default=1.0, ge=0.0, le=1.0)
    close_mosaic: int = Field(default=10, ge=0)
    scale: float = Field(default=0.5, ge=0.0, lt=1.0)
    translate: float = Field(default=0.1, ge=0.0, le=1.0)
    horizontal_flip: float = Field(default=0.5, ge=0.0, le=1.0)
    vertical_flip: float = Field(default=0.0, ge=0.0, le=1.0)
    hsv: HsvGains = HsvGains()
    mixup: float = Field(default=0.0, ge=0.0, le=1.0)
    degrade: float = Field(default=0.01, ge=0.0, le=1.0)
    student_noise: bool = False
