"""Latency of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from kd_vision.core.validation import StrictModel


class Latency(StrictModel):
    """Time of one call of the graph with one image; pre- and postprocessing are not included.

    Attributes:
        median_ms: median of the runs.
        p90_ms: 90th percentile of the runs.
        min_ms: the fastest run; None in files written before it was kept.
        ratio: median over rounds of this call over that of the reference in the same round; None: measured alone.
        runs: number of measured calls.
        threads: of onnxruntime within one operator.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"median": "median_ms", "p90": "p90_ms"}

    median_ms: float = Field(gt=0)
    p90_ms: float = Field(gt=0)
    min_ms: float | None = Field(default=None, gt=0)
    ratio: float | None = Field(default=None, gt=0)
    runs: int = Field(gt=0)
    threads: int = Field(gt=0)
