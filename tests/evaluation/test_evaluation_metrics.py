"""Numbers of COCOeval become fractions, or None where they are not defined."""

from __future__ import annotations

import math

import pytest

from kd_vision.evaluation.metrics import fraction_or_none


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0.0),
        (0.46, 0.46),
        (1.0, 1.0),
        (1.0 + 1e-12, 1.0),
        (1.0 + 1e-6, None),
        (2.0, None),
        (-1.0, None),
        (-1e-12, None),
        (math.nan, None),
        (math.inf, None),
    ],
)
def test_a_rounding_error_above_one_is_clamped_and_anything_else_outside_is_undefined(
    value: float, expected: float | None
) -> None:
    assert fraction_or_none(value) == expected
