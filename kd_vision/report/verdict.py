"""The verdict of a benchmark: better, no difference shown, or worse, by the interval of paired differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kd_vision.evaluation.metrics import Metrics
from kd_vision.report.benchmark_data import BenchmarkData, BudgetCheck, Comparison
from kd_vision.report.gains import Gain, overall_gain
from kd_vision.report.tables import arm_spread, interval_text, points, signed

Kind = Literal["gain", "unclear", "loss", "none"]

_HEADLINE = ("distilled", "plain")
_NOTHING_LEARNED = 0.01
_BUDGET_LIMIT = 0.01
_KINDS: dict[str, Kind] = {"better": "gain", "worse": "loss", "no difference shown": "unclear"}


@dataclass(frozen=True)
class Verdict:
    """The verdict.

    Attributes:
        kind: `gain`: the 95 % interval of the difference is above 0; `loss`: it is below 0; `unclear`: it contains
            0, or there is one seed, which shows nothing about the next; `none`: nothing to compare, or nothing learned.
        headline: one sentence.
        details: further sentences.
    """

    kind: Kind
    headline: str
    details: tuple[str, ...]


def judge_benchmark(data: BenchmarkData) -> Verdict:
    """Compare the distilled student with its plain twin, seed by seed, in AP; then every other pair."""
    pair = next((pair for pair in data.comparisons() if (pair.after.role, pair.before.role) == _HEADLINE), None)
    gain = None if pair is None else overall_gain(data, pair)
    if pair is None or gain is None:
        return Verdict("none", "There is no pair of a plain and a distilled run with the same seed.", ())
    means = [spread.mean for spread in (arm_spread(arm, _ap) for arm in pair) if spread is not None]
    if max(means) < _NOTHING_LEARNED:
        kind: Kind = "none"
        headline = "Neither student learned anything yet (AP below one point): train longer, then compare."
    else:
        kind = _KINDS[gain.outcome]
        headline = _headline(gain)
    return Verdict(kind, headline, tuple(_details(data, pair, kind)))


def describe_comparison(data: BenchmarkData, pair: Comparison) -> str:
    """Return a comparison as one sentence; empty if the arms share no seed."""
    gain = overall_gain(data, pair)
    if gain is None:
        return ""
    return f"{pair.after.name} against {pair.before.name}: {gain.outcome}, {_facts(gain)}{_improved(gain)}."


def describe_budget(budget: BudgetCheck | None) -> str:
    """Say whether training is long enough: whether more steps change the plain student by less than a point."""
    if budget is None:
        return "Training length: not checked."
    if budget.ap is None or budget.longer_ap is None:
        return f"Training length: not checked, as AP is not defined on {budget.split}."
    change = budget.longer_ap - budget.ap
    word = "long enough" if abs(change) < _BUDGET_LIMIT else "not long enough"
    times = f"{budget.longer_steps / budget.steps:.2g}"
    verb = "change" if abs(change) < _BUDGET_LIMIT else "still change"
    return (
        f"Training length: {word}: {times} x the steps {verb} the plain twin by {signed(change)} points "
        f"({points(budget.ap)} to {points(budget.longer_ap)} on {budget.split}, seed {budget.seed})."
    )


def _headline(gain: Gain) -> str:
    facts = f"{_facts(gain)}{_improved(gain)}"
    if len(gain.by_seed) == 1:
        return f"One seed shows no spread, so neither a gain nor a loss is shown: {facts}; use three seeds or more."
    if gain.outcome == "better":
        return f"The distilled student is better: {facts}."
    if gain.outcome == "worse":
        return f"The distilled student is worse: {facts}."
    return f"No difference is shown, as the interval contains 0: {facts}."


def _teachers_part(data: BenchmarkData, pair: Comparison) -> str:
    """Say whether the distilled student's lead over the control is shown; empty for any other pair."""
    gain = overall_gain(data, pair)
    if gain is None or (pair.after.role, pair.before.role) != ("distilled", "control"):
        return ""
    if len(gain.by_seed) == 1:
        return " The control had no teacher; one seed does not show what is the teacher's."
    if gain.outcome == "better" and gain.over == "images and seeds":
        return " The control had no teacher: this part is the teacher's own."
    return " The control had no teacher: no part of the difference to plain is shown to be the teacher's."


def _details(data: BenchmarkData, pair: Comparison, kind: Kind) -> list[str]:
    lines = []
    before, after = (arm_spread(arm, _ap) for arm in (pair.before, pair.after))
    if before is not None and after is not None:
        split = f"{data.data.name} {data.data.split}, {data.data.n_images} images"
        lines.append(f"AP {points(before.mean)} before, {points(after.mean)} after ({split}).")
        lines += _gap(data, before.mean, after.mean, kind)
    others = [other for other in data.comparisons() if other != pair]
    lines += [describe_comparison(data, other) + _teachers_part(data, other) for other in others]
    if kind == "gain" and not data.with_role("control"):
        lines.append("There is no control, so it is not shown how much of this is the teacher's: add --control.")
    lines.append(describe_budget(data.budget))
    return [line for line in lines if line]


def _gap(data: BenchmarkData, before: float, after: float, kind: Kind) -> list[str]:
    """Return the share of the gap to the teacher's AP that is closed, where a gain is shown."""
    teachers = data.with_role("teacher")
    teacher = arm_spread(teachers[0], _ap) if teachers else None
    if teacher is None:
        return []
    if teacher.mean <= before:
        return [f"The teacher ({points(teacher.mean)}) is not better than the plain student."]
    text = f"The teacher reaches {points(teacher.mean)}"
    if kind != "gain":
        return [f"{text}."]
    share = 100 * (after - before) / (teacher.mean - before)
    return [f"{text}: {share:.0f} % of the gap between plain student and teacher is closed."]


def _facts(gain: Gain) -> str:
    """Format a gain with seeds and interval, in points."""
    count = len(gain.by_seed)
    seeds = f"{count} seed{'' if count == 1 else 's'}"
    interval = interval_text(gain)
    return (
        f"{signed(gain.mean)} AP points ({seeds}{f', 95 % interval over {gain.over} {interval}' if interval else ''})"
    )


def _improved(gain: Gain) -> str:
    """Count the seeds that improved; empty for a single seed."""
    count = len(gain.by_seed)
    improved = sum(value > 0 for value in gain.by_seed.values())
    if count == 1:
        return ""
    if improved in (0, count):
        return f"; {'every' if improved else 'no'} seed improved"
    return f"; {improved} of {count} seeds improved"


def _ap(metrics: Metrics) -> float | None:
    return metrics.ap
