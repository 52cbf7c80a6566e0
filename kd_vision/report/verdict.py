"""Says in plain words whether distillation helped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kd_vision.evaluation.metrics import Metrics
from kd_vision.evaluation.statistics import summarise
from kd_vision.report.benchmark_data import BenchmarkData, Comparison
from kd_vision.report.tables import arm_spread, gains, points, signed

Kind = Literal["gain", "unclear", "loss", "none"]

_SMALL_GAIN = 0.01
_NOTHING = 0.01
_FEW_IMAGES = 500


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        kind: `gain`: the mean is up and so is every seed; `unclear`: the mean is up, some seeds are
            not; `loss`: the mean is not up; `none`: nothing to compare, or nothing learned.
        headline: one sentence.
        details: further sentences.
    """

    kind: Kind
    headline: str
    details: tuple[str, ...]


def judge_benchmark(data: BenchmarkData) -> Verdict:
    """Compare the distilled student with its plain twin, seed by seed, in AP."""
    plain = [pair for pair in data.comparisons() if pair.before.role == "plain"]
    differences = gains(plain[0], _ap) if plain else {}
    spread = summarise(differences.values())
    if spread is None:
        return Verdict("none", "There is no pair of a plain and a distilled run with the same seed.", ())
    improved = sum(value > 0 for value in differences.values())
    facts = f"{signed(spread.mean)} AP points ({_runs(differences)})"
    pair = plain[0]
    means = [one.mean for one in (arm_spread(arm, _ap) for arm in (pair.before, pair.after)) if one is not None]
    if max(means, default=0.0) < _NOTHING:
        kind: Kind = "none"
        headline = "Neither student learned anything yet (AP below one point): train longer, then compare."
    elif spread.mean <= 0:
        kind = "loss"
        headline = f"Distillation did not help: {facts}; {_improved(improved, spread.count)}."
    elif improved < spread.count:
        kind = "unclear"
        headline = f"Too close to call: {facts}; {_improved(improved, spread.count)}."
    else:
        kind = "gain"
        ending = f"; {_improved(improved, spread.count)}." if spread.count > 1 else "."
        headline = f"The distilled student gains {facts}{ending}"
    return Verdict(kind, headline, tuple(_details(data, pair, spread.mean)))


def describe_comparison(pair: Comparison) -> str:
    """Say a gain in one sentence, empty where no seed is shared."""
    differences = gains(pair, _ap)
    spread = summarise(differences.values())
    if spread is None:
        return ""
    improved = sum(value > 0 for value in differences.values())
    names = f"{pair.after.name} against {pair.before.name}"
    text = f"{names}: {signed(spread.mean)} AP points ({_runs(differences)})"
    return f"{text}; {_improved(improved, spread.count)}." if spread.count > 1 else f"{text}."


def _of_the_teacher(gain: float, pair: Comparison) -> str:
    """Say what the control means for a gain over the plain twin; empty for any other pair, or without a gain."""
    differences = gains(pair, _ap)
    spread = summarise(differences.values())
    if pair.before.role != "control" or spread is None or gain <= 0:
        return ""
    if spread.mean <= 0:
        return " The control had no teacher: nothing of the gain is shown to be the teacher's."
    if min(differences.values()) <= 0:
        return " The control had no teacher: whether part of the gain is the teacher's is too close to call."
    if spread.mean >= gain:
        return " The control had no teacher and gained nothing: the whole gain is the teacher's."
    return " The control had no teacher: this part of the gain is the teacher's."


def _details(data: BenchmarkData, pair: Comparison, gain: float) -> list[str]:
    before, after = arm_spread(pair.before, _ap), arm_spread(pair.after, _ap)
    lines = []
    if before is not None and after is not None:
        where = f"{data.data.name} {data.data.split}, {data.data.n_images} images"
        lines.append(f"AP {points(before.mean)} before, {points(after.mean)} after ({where}).")
        lines += _gap(data, before.mean, after.mean)
    others = [other for other in data.comparisons() if other != pair]
    lines += [describe_comparison(other) + _of_the_teacher(gain, other) for other in others]
    if abs(gain) < _SMALL_GAIN and data.data.n_images < _FEW_IMAGES:
        lines.append(f"A difference below one point on {data.data.n_images} images can be chance: use more seeds.")
    return [line for line in lines if line]


def _gap(data: BenchmarkData, before: float, after: float) -> list[str]:
    """How much of the distance from the plain student to the teacher is covered."""
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


def _runs(differences: Mapping[int, float]) -> str:
    spread = summarise(differences.values())
    if spread is None or spread.deviation is None:
        return "1 seed, so its spread is not known"
    return f"{spread.count} seeds, sd {points(spread.deviation)}"


def _improved(improved: int, count: int) -> str:
    if improved == count:
        return "every seed improved"
    if improved == 0:
        return "no seed improved"
    return f"{improved} of {count} seeds improved"


def _ap(metrics: Metrics) -> float | None:
    return metrics.ap
