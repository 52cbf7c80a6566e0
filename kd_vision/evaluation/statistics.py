"""Statistics of repeated runs: mean, spread, and the confidence interval of paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of some runs.

    Attributes:
        mean: arithmetic mean.
        deviation: sample standard deviation (n - 1); None for a single run.
        count: number of runs.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a mean.

    Attributes:
        mean: its centre.
        low: lower bound.
        high: upper bound.
    """

    mean: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Say whether `value` is in the interval, bounds included."""
        return self.low <= value <= self.high


def summarise(values: Iterable[float]) -> Spread | None:
    """Return mean and sample standard deviation, or None without values."""
    sample = list(values)
    if not sample:
        return None
    deviation = statistics.stdev(sample) if len(sample) > 1 else None
    return Spread(statistics.fmean(sample), deviation, len(sample))


def paired_differences(after: Mapping[int, float | None], before: Mapping[int, float | None]) -> dict[int, float]:
    """Return ``after - before`` for every seed that both have.

    A pair shares data order and initial weights, so its difference scatters less than the difference
    of two means.

    Args:
        after: a number by seed; None where it is not defined.
        before: likewise.
    """
    differences = {}
    for seed, value in after.items():
        other = before.get(seed)
        if value is not None and other is not None:
            differences[seed] = value - other
    return differences


def paired_interval(differences: Iterable[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Return Student's t interval of the mean of paired differences.

    ``mean ± t(1 - (1 - confidence) / 2, n - 1) * s / sqrt(n)``, s the sample standard deviation. It assumes
    differences that are independent and normal.

    Args:
        differences: n numbers, one per seed, e.g. from `paired_differences`.
        confidence: probability that the interval covers the true mean.

    Returns:
        None for fewer than two differences, which show no spread.

    Source: Student, "The probable error of a mean", Biometrika 6 (1908).
    """
    from scipy.special import stdtrit  # inverse of Student's cumulative distribution

    spread = summarise(differences)
    if spread is None or spread.deviation is None:
        return None
    quantile = float(stdtrit(spread.count - 1, 1 - (1 - confidence) / 2))
    half = quantile * spread.deviation / math.sqrt(spread.count)
    return Interval(spread.mean, spread.mean - half, spread.mean + half)
