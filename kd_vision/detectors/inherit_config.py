"""Settings of weight inheritance, which every family's student takes. No torch is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from kd_vision.core.validation import StrictModel

Strength = Literal["score", "activation", "batchnorm", "l1"]


class InheritConfig(StrictModel):
    """Where the first weights of a student come from.

    Attributes:
        source: `from` in a config: the name of a teacher of the config, or the path of a ``.pt`` of the same family.
        strength: which channels are kept: `score`, those with the most energy where the teacher finds objects;
            `activation`, everywhere; `batchnorm`, those with the largest scale; `l1`, those with the largest
            weights.
        fit: fit the layers to the teacher's maps in closed form.
        images: training and unlabelled images for the fit and the strengths; no label is used.
        least_share: refuse where less than this share of the student's weights has a counterpart in the teacher.
    """

    model_config = ConfigDict(populate_by_name=True)

    source: Path | str = Field(alias="from")
    strength: Strength = "score"
    fit: bool = True
    images: int = Field(default=96, ge=1, le=4096)
    least_share: float = Field(default=0.5, ge=0.0, le=1.0)
