"""Hand-computed means, deviations and paired differences; the interval is Student's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kd_vision.evaluation.statistics import Interval, Spread, paired_differences, paired_interval, summarise


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


def test_interval_by_hand() -> None:
    # Mean 6, sd 1, three pairs: 6 ± 4.3027 x 1 / sqrt(3); 4.3027 is t(0.975) of 2 degrees of freedom in any table.
    interval = paired_interval([7.0, 5.0, 6.0])
    assert interval == Interval(6.0, pytest.approx(6 - 2.4841, abs=1e-4), pytest.approx(6 + 2.4841, abs=1e-4))
    assert interval.contains(3.6)
    assert not interval.contains(3.5)
    assert not interval.contains(8.5)


def test_one_difference_shows_no_spread() -> None:
    assert paired_interval([0.05]) is None
    assert paired_interval([]) is None


def test_equal_differences_have_an_interval_without_width() -> None:
    assert paired_interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5)
    assert Interval(0.5, 0.5, 0.5).contains(0.5)


@given(
    st.lists(st.floats(-1, 1).map(lambda value: round(value, 3)), min_size=2, max_size=12).filter(
        lambda differences: len(set(differences)) > 1
    ),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_zero_is_outside_exactly_where_the_t_test_is_significant(differences: list[float], confidence: float) -> None:
    interval = paired_interval(differences, confidence)
    assert interval is not None
    expected = stats.ttest_1samp(differences, 0).confidence_interval(confidence)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
