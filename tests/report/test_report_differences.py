"""The intervals of a comparison come from the matches of its runs: same images for both, seeds in pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kd_vision.evaluation.match_table import AREAS, MatchTable
from kd_vision.report.benchmark_data import BenchmarkData, Comparison
from kd_vision.report.differences import Differences

IMAGES = 40
EVERY = (1 << 10) - 1
Build = Callable[..., BenchmarkData]


def table(found: list[bool], wrong: int = 0) -> MatchTable:
    """One box of class `a` in each image, found at every IoU where `found` says so; `wrong` false positives first."""
    boxes = np.flatnonzero(found)
    image = np.concatenate([np.arange(wrong), boxes]).astype(np.int32)
    bits = np.concatenate([np.zeros(wrong), np.full(len(boxes), EVERY)]).astype(np.uint16)
    areas = (1, len(AREAS))
    return MatchTable(
        ("a", "b"),
        np.arange(IMAGES),
        image,
        np.zeros(len(image), np.int32),
        np.linspace(0.9, 0.5, len(image)).astype(np.float32),
        np.tile(bits[:, None], areas),
        np.zeros((len(image), len(AREAS)), np.uint16),
        np.arange(IMAGES, dtype=np.int32),
        np.zeros(IMAGES, np.int32),
        np.tile(np.array([False, True, False, True]), (IMAGES, 1)),
    )


@pytest.fixture
def pair(benchmark: Build) -> Comparison:
    """Distilled over plain."""
    return benchmark([0.4], [0.5]).comparisons()[0]


def test_a_twin_that_finds_more_on_every_draw(pair: Comparison) -> None:
    half = [index % 2 == 0 for index in range(IMAGES)]
    tables = {("plain", 0): table(half, wrong=0), ("distilled", 0): table([True] * IMAGES)}
    difference = Differences(tables, draws=200).of(pair)
    assert difference is not None
    assert (difference.seeds, difference.draws) == (1, 200)
    # Recall 20 of 40 at precision 1 is 51 / 101; how much of it is drawn spreads by sqrt(0.25 / 40) = 0.08.
    bounds = difference.overall["AP"]
    assert 0.25 < bounds.low < 50 / 101 - 0.1
    assert 50 / 101 + 0.1 < bounds.high < 0.75
    assert difference.overall["APm"] == bounds, "all boxes are medium"
    assert set(difference.overall) == {"AP", "AP50", "AP75", "APm"}, "there is no small and no large box"
    assert difference.per_class == {"a": bounds}, "class b has no box"
    images = difference.images
    assert (images.won, images.lost, images.equal) == (20, 0, 20)


def test_the_same_run_twice_differs_by_nothing_on_any_draw(pair: Comparison) -> None:
    own = table([index % 3 > 0 for index in range(IMAGES)], wrong=5)
    difference = Differences({("plain", 0): own, ("distilled", 0): own}, draws=50).of(pair)
    assert difference is not None
    assert (difference.overall["AP"].low, difference.overall["AP"].high) == (0.0, 0.0)
    assert difference.images.equal == IMAGES


def test_seeds_widen_the_interval_and_only_common_ones_count(pair: Comparison) -> None:
    def some(count: int) -> MatchTable:
        return table([index < count for index in range(IMAGES)])

    tables = {("plain", seed): some(20) for seed in (0, 1, 2)}
    tables |= {("distilled", 0): some(26), ("distilled", 1): some(30), ("distilled", 7): some(40)}
    both = Differences(tables, draws=200).of(pair)
    first = Differences({run: one for run, one in tables.items() if run[1] == 0}, draws=200).of(pair)
    assert both is not None
    assert first is not None
    assert (both.seeds, first.seeds) == (2, 1)
    assert both.overall["AP"].low < 0 < first.overall["AP"].low, "two seeds, 12.7 standard errors"
    alone = {("plain", 0): some(20), ("distilled", 1): some(30)}
    assert Differences(alone).of(pair) is None
    assert Differences(alone).of_all([pair]) == ()


def test_mistakes_are_averaged_over_seeds(pair: Comparison) -> None:
    """Image 0: one mistake fewer with seed 0, one more with seed 1."""
    all_found, first_missed = [True] * IMAGES, [False] + [True] * (IMAGES - 1)
    tables = {
        ("plain", 0): table(first_missed), ("distilled", 0): table(all_found),
        ("plain", 1): table(all_found), ("distilled", 1): table(first_missed, wrong=0),
    }  # fmt: skip
    difference = Differences(tables, draws=10).of(pair)
    assert difference is not None
    assert difference.images.equal == IMAGES
