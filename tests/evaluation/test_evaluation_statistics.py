"""Hand-computed means, deviations and paired differences."""

from __future__ import annotations

import math

import pytest

from kd_vision.evaluation.statistics import Spread, paired_differences, summarise


def test_mean_and_sample_deviation() -> None:
    # Deviations from 4: -2, 0, 2, so the variance is 8 / (3 - 1).
    assert summarise([2.0, 4.0, 6.0]) == Spread(4.0, 2.0, 3)
    spread = summarise([1.0, 2.0])
    assert spread is not None
    assert spread.deviation == pytest.approx(math.sqrt(0.5))


def test_one_run_has_no_spread_and_none_has_nothing() -> None:
    assert summarise([0.46]) == Spread(0.46, None, 1)
    assert summarise([]) is None


def test_pairs_share_a_seed() -> None:
    after = {0: 0.5, 1: 0.6, 2: None, 7: 0.9}
    before = {1: 0.5, 0: 0.45, 2: 0.1, 3: 0.2}
    assert paired_differences(after, before) == pytest.approx({0: 0.05, 1: 0.1})
