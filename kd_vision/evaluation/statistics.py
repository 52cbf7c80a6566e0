"""What repeated runs say: mean, spread, and differences of pairs that share a seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean of some runs and how far they scatter.

    Attributes:
        mean: arithmetic mean.
        deviation: sample standard deviation (n - 1); None for a single run.
        count: number of runs.
    """

    mean: float
    deviation: float | None
    count: int


def summarise(values: Iterable[float]) -> Spread | None:
    """Return mean and sample standard deviation, or None where there is no value."""
    given = list(values)
    if not given:
        return None
    deviation = statistics.stdev(given) if len(given) > 1 else None
    return Spread(statistics.fmean(given), deviation, len(given))


def paired_differences(after: Mapping[int, float | None], before: Mapping[int, float | None]) -> dict[int, float]:
    """Return ``after - before`` for every seed that both have.

    The pair shares data order and initial weights, so that its difference scatters less than the
    difference of two means.

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
