"""A gain is shown only where its 95 % interval is above 0; the headline says so, also where nothing is shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kd_vision.report.benchmark_data import BenchmarkData, BudgetCheck
from kd_vision.report.tables import Cell, difference_table
from kd_vision.report.verdict import judge_benchmark

Build = Callable[..., BenchmarkData]
Intervals = Callable[[BenchmarkData, dict[tuple[str, str], tuple[float, float]]], BenchmarkData]


@pytest.mark.parametrize(
    ("plain", "distilled", "kind", "headline"),
    [
        # Differences 7, 5, 6: mean 6, sd 1, half width 4.3027 / sqrt(3) = 2.48.
        (
            [0.45, 0.46, 0.47],
            [0.52, 0.51, 0.53],
            "gain",
            "The distilled student is better: +6.0 AP points (3 seeds, "
            "95 % interval over seeds alone +3.5 to +8.5); every seed improved.",
        ),
        # Differences 3, 0, 1: mean 4/3, sd 1.53, half width 3.79.
        (
            [0.45, 0.46, 0.47],
            [0.48, 0.46, 0.48],
            "unclear",
            "No difference is shown, as the interval contains 0: +1.3 AP points (3 seeds, "
            "95 % interval over seeds alone −2.5 to +5.1); "
            "2 of 3 seeds improved.",
        ),
        # Differences 1, 3, 5: every seed is up, but 3 - 4.3027 x 2 / sqrt(3) = -1.97.
        (
            [0.45, 0.46, 0.47],
            [0.46, 0.49, 0.52],
            "unclear",
            "No difference is shown, as the interval contains 0: +3.0 AP points (3 seeds, "
            "95 % interval over seeds alone −2.0 to +8.0); "
            "every seed improved.",
        ),
        # Differences -1, 0: t(0.975) of one degree of freedom is 12.706.
        (
            [0.46, 0.46],
            [0.45, 0.46],
            "unclear",
            "No difference is shown, as the interval contains 0: −0.5 AP points (2 seeds, "
            "95 % interval over seeds alone −6.9 to +5.9); "
            "no seed improved.",
        ),
        # Differences -3, -2, -4: mean -3, sd 1.
        (
            [0.46, 0.46, 0.46],
            [0.43, 0.44, 0.42],
            "loss",
            "The distilled student is worse: −3.0 AP points (3 seeds, "
            "95 % interval over seeds alone −5.5 to −0.5); no seed improved.",
        ),
        ([0.46, 0.47], [0.46, 0.47], "unclear", "No difference is shown, as the interval contains 0: +0.0 AP points "
         "(2 seeds, 95 % interval over seeds alone +0.0 to +0.0); no seed improved."),
        (
            [0.46],
            [0.513],
            "unclear",
            "One seed shows no spread, so neither a gain nor a loss is shown: +5.3 AP points (1 seed); "
            "use three seeds or more.",
        ),
        (
            [0.46],
            [0.4],
            "unclear",
            "One seed shows no spread, so neither a gain nor a loss is shown: −6.0 AP points (1 seed); "
            "use three seeds or more.",
        ),
    ],
)  # fmt: skip
def test_headline(benchmark: Build, plain: list[float], distilled: list[float], kind: str, headline: str) -> None:
    verdict = judge_benchmark(benchmark(plain, distilled))
    assert (verdict.kind, verdict.headline) == (kind, headline)


def test_details_say_before_after_gap_and_other_arms(benchmark: Build) -> None:
    # Teacher 61.4, plain 46.0, distilled 52.0: 6.0 of 15.4 points are 39 %.
    # Built-in over plain 4.0 and 5.0 points: mean 4.5, sd 0.71, half width 12.706 x 0.5 = 6.35.
    verdict = judge_benchmark(benchmark([0.46, 0.46], [0.52, 0.52], other=[0.50, 0.51]))
    assert verdict.details == (
        "AP 46.0 before, 52.0 after (bccd test, 72 images).",
        "The teacher reaches 61.4: 39 % of the gap between plain student and teacher is closed.",
        "built-in against plain: no difference shown, +4.5 AP points (2 seeds, 95 % interval over seeds alone −1.9 to "
        "+10.9); every seed improved.",
        "There is no control, so it is not shown how much of this is the teacher's: add --control.",
        "Training length: not checked.",
    )


@pytest.mark.parametrize(("distilled", "share"), [(0.594, 80), (0.614, 100), (0.634, 120)])
def test_the_share_of_the_gap_is_a_percentage(benchmark: Build, distilled: float, share: int) -> None:
    # From 51.4 to the teacher's 61.4 are 10 points.
    details = judge_benchmark(benchmark([0.514, 0.514], [distilled, distilled])).details
    assert details[1] == (
        f"The teacher reaches 61.4: {share} % of the gap between plain student and teacher is closed."
    )


def test_without_a_gain_no_share_of_the_gap_is_named(benchmark: Build) -> None:
    assert judge_benchmark(benchmark([0.5, 0.5], [0.4, 0.41])).details[1] == "The teacher reaches 61.4."


def test_a_teacher_that_is_not_better_is_named(benchmark: Build) -> None:
    verdict = judge_benchmark(benchmark([0.63], [0.65]))
    assert "The teacher (61.4) is not better than the plain student." in verdict.details


def test_nothing_to_compare(benchmark: Build) -> None:
    data = benchmark([0.46], [0.5])
    alone = data.model_copy(update={"arms": data.arms[:2]})
    verdict = judge_benchmark(alone)
    assert verdict.kind == "none"
    assert verdict.headline == "There is no pair of a plain and a distilled run with the same seed."


OWN = " The control had no teacher: this part is the teacher's own."
NOT_SHOWN = " The control had no teacher: no part of the difference to plain is shown to be the teacher's."
ONE_SEED = " The control had no teacher; one seed does not show what is the teacher's."


@pytest.mark.parametrize(
    ("seeds", "interval", "sentence"),
    [
        (3, (0.001, 0.04), OWN),
        (3, (-0.001, 0.04), NOT_SHOWN),
        (3, (-0.04, -0.001), NOT_SHOWN),
        (1, (0.02, 0.04), ONE_SEED),
        (3, None, NOT_SHOWN),  # a file of an earlier version: its interval is over seeds alone
    ],
)
def test_what_the_control_means_is_said(
    benchmark: Build, intervals: Intervals, seeds: int, interval: tuple[float, float] | None, sentence: str
) -> None:
    data = benchmark([0.46] * seeds, [0.52] * seeds, control=[0.5] * seeds)
    if interval is not None:
        data = intervals(data, {("distilled", "control"): interval})
    lines = judge_benchmark(data).details
    (line,) = [line for line in lines if line.startswith("distilled against control: ")]
    assert line.endswith(f".{sentence}")
    assert ("teacher's own" in " ".join(lines)) == (sentence == OWN)


def test_one_seed_has_the_interval_over_images_and_proves_nothing(benchmark: Build, intervals: Intervals) -> None:
    data = intervals(benchmark([0.46], [0.513]), {("distilled", "plain"): (0.02, 0.08)})
    verdict = judge_benchmark(data)
    assert (verdict.kind, verdict.headline) == (
        "unclear",
        "One seed shows no spread, so neither a gain nor a loss is shown: +5.3 AP points (1 seed, 95 % interval over "
        "images alone +2.0 to +8.0); use three seeds or more.",
    )
    assert result_cell(data).tone == ""


def test_several_seeds_have_the_interval_over_images_and_seeds(benchmark: Build, intervals: Intervals) -> None:
    plain, distilled = [0.45, 0.46, 0.47], [0.52, 0.51, 0.53]
    for interval, kind, tone, words in (
        ((0.01, 0.11), "gain", "good", "is better: +6.0 AP points (3 seeds, 95 % interval over images and seeds +1.0"),
        ((-0.01, 0.13), "unclear", "", "No difference is shown, as the interval contains 0"),
        ((-0.13, -0.01), "loss", "bad", "is worse: "),
    ):
        data = intervals(benchmark(plain, distilled), {("distilled", "plain"): interval})
        verdict = judge_benchmark(data)
        assert verdict.kind == kind
        assert words in verdict.headline
        assert result_cell(data).tone == tone


def result_cell(data: BenchmarkData) -> Cell:
    """The AP of the first comparison."""
    return difference_table(data).rows[0][1][1]


@pytest.mark.parametrize(
    ("longer", "sentence"),
    [
        (0.463, "long enough: 1.5 x the steps change the plain twin by +0.3 points (46.0 to 46.3 on val, seed 0)."),
        (0.455, "long enough: 1.5 x the steps change the plain twin by −0.5 points (46.0 to 45.5 on val, seed 0)."),
        (0.48, "not long enough: 1.5 x the steps still change the plain twin by +2.0 points (46.0 to 48.0 on val, "
               "seed 0)."),
        (None, "not checked, as AP is not defined on val."),
    ],
)  # fmt: skip
def test_the_training_length_is_judged(benchmark: Build, longer: float | None, sentence: str) -> None:
    budget = BudgetCheck(split="val", seed=0, steps=100, longer_steps=150, ap=0.46, longer_ap=longer)
    details = judge_benchmark(benchmark([0.46], [0.5], budget=budget)).details
    assert details[-1] == f"Training length: {sentence}"


def test_students_that_learned_nothing_prove_nothing(benchmark: Build) -> None:
    verdict = judge_benchmark(benchmark([0.0, 0.002], [0.001, 0.003]))
    assert (verdict.kind, verdict.headline) == (
        "none", "Neither student learned anything yet (AP below one point): train longer, then compare.",
    )  # fmt: skip
