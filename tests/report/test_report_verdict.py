"""The headline says what the numbers say, also when distillation did not help."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kd_vision.report.benchmark_data import BenchmarkData
from kd_vision.report.verdict import judge_benchmark

Build = Callable[..., BenchmarkData]


@pytest.mark.parametrize(
    ("plain", "distilled", "kind", "headline"),
    [
        (
            [0.45, 0.46, 0.47],
            [0.52, 0.51, 0.53],
            "gain",
            "The distilled student gains +6.0 AP points (3 seeds, sd 1.0); every seed improved.",
        ),
        (
            [0.46],
            [0.513],
            "gain",
            "The distilled student gains +5.3 AP points (1 seed, so its spread is not known).",
        ),
        (
            [0.45, 0.46, 0.47],
            [0.48, 0.46, 0.48],
            "unclear",
            "Too close to call: +1.3 AP points (3 seeds, sd 1.5); 2 of 3 seeds improved.",
        ),
        (
            [0.46, 0.46],
            [0.45, 0.46],
            "loss",
            "Distillation did not help: −0.5 AP points (2 seeds, sd 0.7); no seed improved.",
        ),
        (
            [0.46, 0.46],
            [0.44, 0.47],
            "loss",
            "Distillation did not help: −0.5 AP points (2 seeds, sd 2.1); 1 of 2 seeds improved.",
        ),
    ],
)
def test_headline(benchmark: Build, plain: list[float], distilled: list[float], kind: str, headline: str) -> None:
    verdict = judge_benchmark(benchmark(plain, distilled))
    assert (verdict.kind, verdict.headline) == (kind, headline)


def test_details_say_before_after_gap_and_other_arms(benchmark: Build) -> None:
    # Teacher 61.4, plain 46.0, distilled 52.0: 6.0 of 15.4 points are 39 %.
    verdict = judge_benchmark(benchmark([0.46, 0.46], [0.52, 0.52], other=[0.50, 0.51]))
    assert verdict.details == (
        "AP 46.0 before, 52.0 after (bccd test, 72 images).",
        "The teacher reaches 61.4: 39 % of the gap between plain student and teacher is closed.",
        "distilled against built-in: +1.5 AP points (2 seeds, sd 0.7); every seed improved.",
    )


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
        ([0.52, 0.52], [0.50, 0.48], " The control had no teacher: this part of the gain is the teacher's."),
        ([0.52, 0.52], [0.45, 0.46],
         " The control had no teacher and gained nothing: the whole gain is the teacher's."),
        ([0.52, 0.52], [0.53, 0.53], " The control had no teacher: nothing of the gain is shown to be the teacher's."),
        ([0.52, 0.52], [0.53, 0.50],
         " The control had no teacher: whether part of the gain is the teacher's is too close to call."),
        ([0.44, 0.45], [0.40, 0.40], ""),
    ],
)  # fmt: skip
def test_what_the_control_means_is_said(
    benchmark: Build, distilled: list[float], control: list[float], sentence: str
) -> None:
    details = judge_benchmark(benchmark([0.46, 0.46], distilled, control=control)).details
    (said,) = [line for line in details if line.startswith("distilled against control: ")]
    assert said.endswith(f" improved.{sentence}")


def test_students_that_learned_nothing_prove_nothing(benchmark: Build) -> None:
    verdict = judge_benchmark(benchmark([0.0, 0.002], [0.001, 0.003]))
    assert (verdict.kind, verdict.headline) == (
        "none", "Neither student learned anything yet (AP below one point): train longer, then compare.",
    )  # fmt: skip
