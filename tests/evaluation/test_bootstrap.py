"""AP of resampled images is COCOeval's on the images repeated; intervals cover what they claim to cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.evaluation.bootstrap import NUMBERS, draw_images, drawn_ap, paired_bootstrap
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.match_table import match_table
from kd_vision.evaluation.statistics import paired_interval

CLASSES = ("car", "bus")


@st.composite
def small_sets(draw: st.DrawFn) -> tuple[DetectionData, dict[int, Detections]]:
    """One to four images with boxes of all sizes, some crowd; detections are boxes moved, or anywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, found = [], {}
    for image_id in range(1, draw(st.integers(1, 4)) + 1):
        boxes = random_boxes(rng, draw(st.integers(0, 5)))
        images.append(make_image(rng, image_id, boxes))
        moved = boxes[rng.integers(0, len(boxes), 6)] if len(boxes) else boxes
        moved = np.sort((moved + rng.normal(0, 8, moved.shape)).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        every = np.concatenate([moved, random_boxes(rng, draw(st.integers(0, 4)))]).astype(np.float32)
        scores = rng.permutation(1000)[: len(every)].astype(np.float32) / 1000
        found[image_id] = Detections(every, scores, rng.integers(0, len(CLASSES), len(every)))
    return DetectionData("small", CLASSES, (3, 17), tuple(images)), found


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 200, (count, 2))
    return np.concatenate([corners, corners + rng.choice([12, 50, 150], (count, 1)) * rng.uniform(0.7, 1.3)], axis=1)


def make_image(rng: np.random.Generator, image_id: int, boxes: np.ndarray) -> ImageRecord:
    sides = boxes[:, 2:] - boxes[:, :2]
    return ImageRecord(
        image_id, Path("x.jpg"), 400, 400, boxes.astype(np.float32), rng.integers(0, len(CLASSES), len(boxes)),
        rng.random(len(boxes)) < 0.15, sides[:, 0] * sides[:, 1],
    )  # fmt: skip


def numbers_of(data: DetectionData, detections: dict[int, Detections]) -> list[float]:
    metrics = evaluate_detections(data, detections)
    overall = [metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium, metrics.ap_large]
    values = [*overall, *(one.ap for one in metrics.per_class.values())]
    return [np.nan if value is None else value for value in values]


def repeated(
    data: DetectionData, detections: dict[int, Detections], times: np.ndarray
) -> tuple[DetectionData, dict[int, Detections]]:
    """The set with each image as often as `times` says, under ids of its own."""
    images, found = [], {}
    for image, count in zip(data.images, times, strict=True):
        for _ in range(int(count)):
            images.append(replace(image, image_id=len(images) + 1))
            found[len(images)] = detections[image.image_id]
    return replace(data, images=tuple(images)), found


@settings(max_examples=60, deadline=None)
@given(small_sets())
def test_each_image_once_gives_cocoevals_numbers(case: tuple[DetectionData, dict[int, Detections]]) -> None:
    data, found = case
    drawn = drawn_ap(match_table(data, found), np.ones((len(data), 1), np.float32))
    assert [*drawn.overall[0], *drawn.per_class[0]] == pytest.approx(numbers_of(data, found), abs=1e-6, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(small_sets(), arrays(np.int64, 4, elements=st.integers(0, 3)))
def test_images_drawn_several_times_count_as_several_images(
    case: tuple[DetectionData, dict[int, Detections]], times: np.ndarray
) -> None:
    data, found = case
    times = times[: len(data)]
    times[0] = max(times[0], 1)
    drawn = drawn_ap(match_table(data, found), times[:, None].astype(np.float32))
    expected = numbers_of(*repeated(data, found, times))
    assert [*drawn.overall[0], *drawn.per_class[0]] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_real_images_drawn_several_times(coco_tiny: DetectionData, disturb: Callable[..., dict]) -> None:
    found = {image.image_id: Detections.empty() for image in coco_tiny.images} | disturb(coco_tiny)
    times = draw_images(len(coco_tiny), 3)
    drawn = drawn_ap(match_table(coco_tiny, found), times)
    for number in range(3):
        in_order = [image for image in np.argsort([image.image_id for image in coco_tiny.images])]
        expected = numbers_of(*repeated(coco_tiny.subset(in_order), found, times[:, number]))
        assert [*drawn.overall[number], *drawn.per_class[number]] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_draws_are_of_as_many_images_and_repeat() -> None:
    drawn = draw_images(30, 200)
    assert (drawn.sum(axis=0) == 30).all()
    assert np.array_equal(drawn, draw_images(30, 200))
    assert not np.array_equal(drawn, draw_images(30, 200, seed=1))
    assert drawn.mean(axis=1) == pytest.approx(np.ones(30), abs=0.3)
    assert len(NUMBERS) == 6


def test_with_one_seed_the_interval_is_the_percentiles_of_the_draws() -> None:
    after = np.linspace(0.5, 0.6, 1001)
    interval = paired_bootstrap([after], [np.full(1001, 0.5)], [0.05])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.05, 0.0025, 0.0975))


def test_without_spread_over_images_it_is_students_interval_over_seeds() -> None:
    differences = [0.07, 0.05, 0.06]
    same = [np.full(1000, value) for value in differences]
    interval, expected = paired_bootstrap(same, [np.zeros(1000)] * 3, differences), paired_interval(differences)
    assert expected is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=4e-4)


def test_draws_without_the_class_are_left_out() -> None:
    after = np.array([np.nan, 0.2, 0.2])
    assert paired_bootstrap([after], [np.zeros(3)], [0.2]).low == pytest.approx(0.2)
    nothing = np.full(3, np.nan)
    assert paired_bootstrap([nothing], [nothing], [0.1]).low == pytest.approx(0.1)


def test_runs_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="1 runs after, 2 before, 1 differences"):
        paired_bootstrap([np.zeros(3)], [np.zeros(3)] * 2, [0.0])


@pytest.mark.parametrize(("image_noise", "seed_noise"), [(0.01, 0.0), (0.01, 0.01), (0.0, 0.01)])
def test_the_interval_covers_the_truth(image_noise: float, seed_noise: float) -> None:
    """Differences of three pairs whose truth is 0: the mean of 40 images of noise, plus noise of each pair."""
    rng, covered, trials, images = np.random.default_rng(0), 0, 200, 40
    for _ in range(trials):
        by_image = rng.normal(0, image_noise * np.sqrt(images), images)
        by_seed = rng.normal(0, seed_noise, 3)
        weights = draw_images(images, 300, int(rng.integers(2**31))) / images
        after = [by_image @ weights + noise for noise in by_seed]
        interval = paired_bootstrap(after, [np.zeros(300)] * 3, [float(by_image.mean() + noise) for noise in by_seed])
        covered += interval.contains(0.0)
    assert covered / trials > 0.9  # percentiles of 40 images are a little narrow
