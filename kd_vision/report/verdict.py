"""The verdict of a benchmark: whether distillation is shown to help, by the interval of paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from kd_vision.evaluation.metrics import Metrics
from kd_vision.evaluation.statistics import paired_interval
from kd_vision.report.benchmark_data import BenchmarkData, Comparison
from kd_vision.report.tables import arm_spread, gains, points, signed

Kind = Literal["gain", "unclear", "loss", "none"]

_SMALL_GAIN = 0.01
_NOTHING_LEARNED = 0.01
_FEW_IMAGES = 500


@dataclass(frozen=True)
class Verdict:
    """The verdict.

    Attributes:
        kind: `gain`: the 95 % interval of the difference is above 0; `loss`: it is below 0; `unclear`: it contains
            0, or there is one seed and therefore no interval; `none`: nothing to compare, or nothing learned.
        headline: one sentence.
        details: further sentences.
    """

    kind: Kind
    headline: str
    details: tuple[str, ...]


def judge_benchmark(data: BenchmarkData) -> Verdict:
    """Compare the distilled student with its plain twin, seed by seed, in AP."""
    pair = next((pair for pair in data.comparisons() if pair.before.role == "plain"), None)
    differences = {} if pair is None else gains(pair, _ap)
    if pair is None or not differences:
        return Verdict("none", "There is no pair of a plain and a distilled run with the same seed.", ())
    means = [spread.mean for spread in (arm_spread(arm, _ap) for arm in pair) if spread is not None]
    if max(means) < _NOTHING_LEARNED:
        kind: Kind = "none"
        headline = "Neither student learned anything yet (AP below one point): train longer, then compare."
    else:
        kind = _kind(differences)
        headline = _headline(kind, differences)
    return Verdict(kind, headline, tuple(_details(data, pair, kind)))


def describe_comparison(pair: Comparison) -> str:
    """Return a gain as one sentence; empty if the arms share no seed."""
    differences = gains(pair, _ap)
    if not differences:
        return ""
    return f"{pair.after.name} against {pair.before.name}: {_facts(differences)}{_improved(differences)}."


def _kind(differences: Mapping[int, float]) -> Kind:
    """Classify differences of fractions by the side of 0 on which their interval is."""
    interval = paired_interval(differences.values())
    if interval is None or interval.contains(0.0):
        return "unclear"
    return "gain" if interval.mean > 0 else "loss"


def _headline(kind: Kind, differences: Mapping[int, float]) -> str:
    facts = f"{_facts(differences)}{_improved(differences)}"
    if len(differences) == 1:
        return f"One seed shows no spread, so neither a gain nor a loss is shown: {facts}; use three seeds or more."
    if kind == "gain":
        return f"The distilled student gains {facts}."
    if kind == "loss":
        return f"The distilled student is worse: {facts}."
    return f"No difference is shown, as the interval contains 0: {facts}."


def _share_of_teacher(kind: Kind, gain: float, pair: Comparison) -> str:
    """Say how much of a gain over the plain twin the control leaves to the teacher; empty for any other pair."""
    differences = gains(pair, _ap)
    if kind != "gain" or pair.before.role != "control" or not differences:
        return ""
    over_control = fmean(differences.values())
    if over_control <= 0:
        return " The control had no teacher: nothing of the gain is shown to be the teacher's."
    if _kind(differences) != "gain":
        return " The control had no teacher: whether part of the gain is the teacher's is too close to call."
    if over_control >= gain:
        return " The control had no teacher and gained nothing: the whole gain is the teacher's."
    return " The control had no teacher: this part of the gain is the teacher's."


def _details(data: BenchmarkData, pair: Comparison, kind: Kind) -> list[str]:
    lines = []
    before, after = (arm_spread(arm, _ap) for arm in (pair.before, pair.after))
    if before is not None and after is not None:
        split = f"{data.data.name} {data.data.split}, {data.data.n_images} images"
        lines.append(f"AP {points(before.mean)} before, {points(after.mean)} after ({split}).")
        lines += _gap(data, before.mean, after.mean)
    gain = fmean(gains(pair, _ap).values())
    others = [other for other in data.comparisons() if other != pair]
    lines += [describe_comparison(other) + _share_of_teacher(kind, gain, other) for other in others]
    if abs(gain) < _SMALL_GAIN and data.data.n_images < _FEW_IMAGES:
        lines.append(f"A difference below one point on {data.data.n_images} images can be chance: use more seeds.")
    return [line for line in lines if line]


def _gap(data: BenchmarkData, before: float, after: float) -> list[str]:
    """Return the share of the AP gap between the plain student and the teacher that is closed."""
    teachers = data.with_role("teacher")
    teacher = arm_spread(teachers[0], _ap) if teachers else None
    if teacher is None:
        return []
    if teacher.mean <= before:
        return [f"The teacher ({points(teacher.mean)}) is not better than the plain student."]
    share = 100 * (after - before) / (teacher.mean - before)
    text = f"The teacher reaches {points(teacher.mean)}"
    if share <= 0:
        return [f"{text}."]
    return [f"{text}: {share:.0f} % of the gap between plain student and teacher is closed."]


def _facts(differences: Mapping[int, float]) -> str:
    """Format the mean of differences with seeds and interval, in points."""
    interval = paired_interval(differences.values())
    if interval is None:
        return f"{signed(*differences.values())} AP points (1 seed)"
    bounds = f"{signed(interval.low)} to {signed(interval.high)}"
    return f"{signed(interval.mean)} AP points ({len(differences)} seeds, 95 % interval {bounds})"


def _improved(differences: Mapping[int, float]) -> str:
    """Count the seeds that improved; empty for a single seed."""
    count = len(differences)
    improved = sum(value > 0 for value in differences.values())
    if count == 1:
        return ""
    if improved in (0, count):
        return f"; {'every' if improved else 'no'} seed improved"
    return f"; {improved} of {count} seeds improved"


def _ap(metrics: Metrics) -> float | None:
    return metrics.ap
