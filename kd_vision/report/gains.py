"""Differences between two arms with their intervals, read from a benchmark.

A difference is shown, as a gain or a loss, only where there are two seeds or more and the 95 % interval leaves 0 out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from kd_vision.evaluation.metrics import Metrics
from kd_vision.evaluation.statistics import paired_differences, paired_interval
from kd_vision.report.benchmark_data import Arm, BenchmarkData, Bounds, Comparison

Number = Callable[[Metrics], "float | None"]
Source = Literal["images and seeds", "images alone", "seeds alone", "nothing"]
Outcome = Literal["better", "no difference shown", "worse"]

RESULTS: tuple[tuple[str, str, Number], ...] = (
    ("AP", "AP", lambda metrics: metrics.ap),
    ("AP50", "AP50", lambda metrics: metrics.ap50),
    ("AP75", "AP75", lambda metrics: metrics.ap75),
    ("AP small", "APs", lambda metrics: metrics.ap_small),
    ("AP medium", "APm", lambda metrics: metrics.ap_medium),
    ("AP large", "APl", lambda metrics: metrics.ap_large),
)
"""The numbers of the main table: label, key in `metrics.json`, and how to read the number."""


@dataclass(frozen=True)
class Gain:
    """A difference after - before, as fractions.

    Attributes:
        by_seed: the difference of each pair of runs.
        mean: their mean.
        low, high: 95 % interval; None: not known.
        over: what the interval is over.
    """

    by_seed: Mapping[int, float]
    mean: float
    low: float | None
    high: float | None
    over: Source

    @property
    def outcome(self) -> Outcome:
        """Say what is shown; a single seed shows nothing."""
        if self.low is None or self.high is None or len(self.by_seed) < 2:
            return "no difference shown"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"


def overall_gain(data: BenchmarkData, pair: Comparison, key: str = "AP") -> Gain | None:
    """Return the difference in one of `RESULTS`, named by its key; None where it is not defined."""
    number = next(number for _, own, number in RESULTS if own == key)
    difference = data.difference(pair)
    return _gain(gains(pair, number), None if difference is None else difference.overall.get(key))


def class_gain(data: BenchmarkData, pair: Comparison, name: str) -> Gain | None:
    """Return the difference in the AP of a class; None where it is not defined."""
    difference = data.difference(pair)
    return _gain(gains(pair, class_ap(name)), None if difference is None else difference.per_class.get(name))


def gains(pair: Comparison, number: Number) -> dict[int, float]:
    """Return the differences after - before by seed; fractions."""
    return paired_differences(_by_seed(pair.after, number), _by_seed(pair.before, number))


def class_ap(name: str) -> Number:
    """Return the function that reads the AP of a class."""

    def read(metrics: Metrics) -> float | None:
        numbers = metrics.per_class.get(name)
        return None if numbers is None else numbers.ap

    return read


def _gain(by_seed: Mapping[int, float], bounds: Bounds | None) -> Gain | None:
    if not by_seed:
        return None
    mean = fmean(by_seed.values())
    if bounds is not None:
        over: Source = "images and seeds" if len(by_seed) > 1 else "images alone"
        return Gain(by_seed, mean, bounds.low, bounds.high, over)
    interval = paired_interval(by_seed.values())  # files of earlier versions know nothing of images
    if interval is None:
        return Gain(by_seed, mean, None, None, "nothing")
    return Gain(by_seed, mean, interval.low, interval.high, "seeds alone")


def _by_seed(arm: Arm, number: Number) -> dict[int, float | None]:
    return {run.seed: number(run.metrics) for run in arm.runs if run.seed is not None}
