"""A gain is shown only where its 95 % interval is above 0; the headline says so, also where nothing is shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kd_vision.report.benchmark_data import BenchmarkData
from kd_vision.report.verdict import judge_benchmark

Build = Callable[..., BenchmarkData]


@pytest.mark.parametrize(
    ("plain", "distilled", "kind", "headline"),
    [
        # Differences 7, 5, 6: mean 6, sd 1, half width 4.3027 / sqrt(3) = 2.48.
        (
            [0.45, 0.46, 0.47],
            [0.52, 0.51, 0.53],
            "gain",
            "The distilled student gains +6.0 AP points (3 seeds, 95 % interval +3.5 to +8.5); every seed improved.",
        ),
        # Differences 3, 0, 1: mean 4/3, sd 1.53, half width 3.79.
        (
            [0.45, 0.46, 0.47],
            [0.48, 0.46, 0.48],
            "unclear",
            "No difference is shown, as the interval contains 0: +1.3 AP points (3 seeds, 95 % interval −2.5 to +5.1); "
            "2 of 3 seeds improved.",
        ),
        # Differences 1, 3, 5: every seed is up, but 3 - 4.3027 x 2 / sqrt(3) = -1.97.
        (
            [0.45, 0.46, 0.47],
            [0.46, 0.49, 0.52],
            "unclear",
            "No difference is shown, as the interval contains 0: +3.0 AP points (3 seeds, 95 % interval −2.0 to +8.0); "
            "every seed improved.",
        ),
        # Differences -1, 0: t(0.975) of one degree of freedom is 12.706.
        (
            [0.46, 0.46],
            [0.45, 0.46],
            "unclear",
            "No difference is shown, as the interval contains 0: −0.5 AP points (2 seeds, 95 % interval −6.9 to +5.9); "
            "no seed improved.",
        ),
        # Differences -3, -2, -4: mean -3, sd 1.
        (
            [0.46, 0.46, 0.46],
            [0.43, 0.44, 0.42],
            "loss",
            "The distilled student is worse: −3.0 AP points (3 seeds, 95 % interval −5.5 to −0.5); no seed improved.",
        ),
        ([0.46, 0.47], [0.46, 0.47], "unclear", "No difference is shown, as the interval contains 0: +0.0 AP points "
         "(2 seeds, 95 % interval +0.0 to +0.0); no seed improved."),
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
    # Over the built-in arm 2.0 and 1.0 points: mean 1.5, sd 0.71, half width 12.706 x 0.5 = 6.35.
    verdict = judge_benchmark(benchmark([0.46, 0.46], [0.52, 0.52], other=[0.50, 0.51]))
    assert verdict.details == (
        "AP 46.0 before, 52.0 after (bccd test, 72 images).",
        "The teacher reaches 61.4: 39 % of the gap between plain student and teacher is closed.",
        "distilled against built-in: +1.5 AP points (2 seeds, 95 % interval −4.9 to +7.9); every seed improved.",
    )


@pytest.mark.parametrize(("distilled", "share"), [(0.594, 80), (0.614, 100), (0.634, 120), (0.5145, 0)])
def test_the_share_of_the_gap_is_a_percentage(benchmark: Build, distilled: float, share: int) -> None:
    # From 51.4 to the teacher's 61.4 are 10 points.
    details = judge_benchmark(benchmark([0.514, 0.514], [distilled, distilled])).details
    assert details[1] == (
        f"The teacher reaches 61.4: {share} % of the gap between plain student and teacher is closed."
    )


def test_without_a_gain_no_share_of_the_gap_is_named(benchmark: Build) -> None:
    assert judge_benchmark(benchmark([0.5, 0.5], [0.4, 0.41])).details[1] == "The teacher reaches 61.4."


def test_a_small_difference_on_few_images_is_called_so(benchmark: Build) -> None:
    verdict = judge_benchmark(benchmark([0.46, 0.46], [0.463, 0.462]))
    assert verdict.details[-1] == "A difference below one point on 72 images can be chance: use more seeds."


def test_a_teacher_that_is_not_better_is_named(benchmark: Build) -> None:
    verdict = judge_benchmark(benchmark([0.63], [0.65]))
    assert "The teacher (61.4) is not better than the plain student." in verdict.details


def test_nothing_to_compare(benchmark: Build) -> None:
    data = benchmark([0.46], [0.5])
    alone = data.model_copy(update={"arms": data.arms[:2]})
    verdict = judge_benchmark(alone)
    assert verdict.kind == "none"
    assert verdict.headline == "There is no pair of a plain and a distilled run with the same seed."


@pytest.mark.parametrize(
    ("distilled", "control", "sentence"),
    [
        ([0.52, 0.52], [0.49, 0.4905], " The control had no teacher: this part of the gain is the teacher's."),
        ([0.52, 0.52], [0.45, 0.4505],
         " The control had no teacher and gained nothing: the whole gain is the teacher's."),
        ([0.52, 0.52], [0.53, 0.53], " The control had no teacher: nothing of the gain is shown to be the teacher's."),
        ([0.52, 0.52], [0.50, 0.48],  # both seeds up, but the interval contains 0
         " The control had no teacher: whether part of the gain is the teacher's is too close to call."),
        ([0.52, 0.52], [0.53, 0.50],
         " The control had no teacher: whether part of the gain is the teacher's is too close to call."),
        ([0.44, 0.4405], [0.40, 0.40], ""),  # a loss against the plain twin
        ([0.47, 0.52], [0.40, 0.40], ""),  # no gain is shown against the plain twin
        ([0.52], [0.50], ""),  # one seed shows nothing
    ],
)  # fmt: skip
def test_what_the_control_means_is_said(
    benchmark: Build, distilled: list[float], control: list[float], sentence: str
) -> None:
    details = judge_benchmark(benchmark([0.46] * len(distilled), distilled, control=control)).details
    (line,) = [line for line in details if line.startswith("distilled against control: ")]
    assert line.endswith(f".{sentence}") if sentence else " The control" not in line


def test_students_that_learned_nothing_prove_nothing(benchmark: Build) -> None:
    verdict = judge_benchmark(benchmark([0.0, 0.002], [0.001, 0.003]))
    assert (verdict.kind, verdict.headline) == (
        "none", "Neither student learned anything yet (AP below one point): train longer, then compare.",
    )  # fmt: skip
