"""Weighted boxes fusion against numbers worked out by hand and against a slow writing of its equations."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_vision.core.predictions import Detections
from kd_vision.teachers.fusion import fuse


def detections(boxes: Any, scores: Any, labels: Any, probs: Any = None, ignore: Any = None) -> Detections:
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray(labels, np.int64),
        None if probs is None else np.asarray(probs, np.float32),
        None if ignore is None else np.asarray(ignore, np.bool_),
    )


def test_reference_of_the_authors() -> None:
    first = detections([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]], [0.9, 0.6], [0, 1])
    second = detections([[0.12, 0.1, 0.52, 0.5]], [0.7], [0])
    fused = fuse([first, second])
    np.testing.assert_allclose(fused.boxes_xyxy, [[0.10875, 0.1, 0.50875, 0.5], [0.6, 0.6, 0.9, 0.9]], atol=1e-7)
    np.testing.assert_allclose(fused.scores, [0.8, 0.3], atol=1e-7)
    assert fused.labels.tolist() == [0, 1]
    assert fused.class_probs is None
    assert fused.ignore is None


def test_one_member_comes_back_unchanged() -> None:
    own = detections(
        [[0, 0, 10, 10], [20, 0, 30, 10], [1, 1, 11, 11]],
        [0.9, 0.5, 0.2],
        [1, 0, 0],
        [[0.2, 0.9], [0.5, 0.1], [0.2, 0]],
    )
    fused = fuse([own])
    for name in ("boxes_xyxy", "scores", "labels", "class_probs"):
        np.testing.assert_allclose(getattr(fused, name), getattr(own, name), atol=1e-7)


def test_members_that_agree_are_as_sure_as_each_of_them() -> None:
    own = detections([[0, 0, 10, 10], [20, 0, 30, 10]], [0.9, 0.5], [1, 0])
    fused = fuse([own, own, own], weights=[1.0, 2.0, 0.5])
    np.testing.assert_allclose(fused.boxes_xyxy, own.boxes_xyxy, atol=1e-6)
    np.testing.assert_allclose(fused.scores, own.scores, atol=1e-7)


def test_weights_move_the_box_and_the_score() -> None:
    """Weights 3 and 1, scores .8 and .4: box at (3*.8*0 + .4*2) / 2.8, score (2.4 + .4) / 4."""
    fused = fuse([detections([[0, 0, 10, 10]], [0.8], [0]), detections([[2, 0, 12, 10]], [0.4], [0])], weights=[3, 1])
    np.testing.assert_allclose(fused.boxes_xyxy, [[2 / 7, 0, 10 + 2 / 7, 10]], atol=1e-6)
    np.testing.assert_allclose(fused.scores, [0.7], atol=1e-7)


def test_a_member_without_a_say_in_a_class_neither_adds_nor_takes() -> None:
    """The second never learned class 1: its silence there does not halve the first's score."""
    first = detections([[0, 0, 10, 10], [20, 0, 30, 10]], [0.9, 0.6], [0, 1], [[0.9, 0.1], [0.2, 0.6]])
    second = detections([[0, 0, 10, 10], [21, 0, 31, 10]], [0.4, 0.9], [0, 1])
    fused = fuse([first, second], class_weights=[[1, 1], [1, 0]])
    np.testing.assert_allclose(fused.boxes_xyxy, [[0, 0, 10, 10], [20, 0, 30, 10]], atol=1e-6)
    np.testing.assert_allclose(fused.scores, [0.65, 0.6], atol=1e-7)
    # Class 0 of the second box: only the first saw the object, .2 of two votes; class 1 asks the first alone.
    np.testing.assert_allclose(fused.class_probs, [[0.65, 0.1], [0.1, 0.6]], atol=1e-7)


def test_a_class_nobody_may_speak_of_is_not_found() -> None:
    assert len(fuse([detections([[0, 0, 10, 10]], [0.8], [1])], class_weights=[[1, 0]])) == 0


def test_probabilities_are_averaged_like_the_score() -> None:
    """Three members, one silent: (.8 + .5) / 3 and (.1 + .4) / 3; the label's column is the score."""
    first = detections([[0, 0, 10, 10]], [0.8], [0], [[0.8, 0.1]])
    second = detections([[0, 0, 10, 10]], [0.5], [0], [[0.5, 0.4]])
    fused = fuse([first, second, Detections.empty()])
    np.testing.assert_allclose(fused.class_probs, [[1.3 / 3, 0.5 / 3]], atol=1e-7)
    np.testing.assert_allclose(fused.scores, [1.3 / 3], atol=1e-7)


def test_more_boxes_than_members_do_not_raise_a_score_above_their_mean() -> None:
    """One member, three boxes of one object: the mean of .9, .6, .3; a heavy member changes nothing."""
    own = detections([[0, 0, 10, 10]] * 3, [0.9, 0.6, 0.3], [0, 0, 0])
    np.testing.assert_allclose(fuse([own]).scores, [0.6], atol=1e-7)
    both = fuse([own, Detections.empty()], weights=[10.0, 1.0])
    np.testing.assert_allclose(both.scores, [0.6], atol=1e-7)


def test_ignored_regions_meet_only_ignored_regions() -> None:
    first = detections([[0, 0, 10, 10], [50, 50, 60, 60]], [0.8, 0.6], [0, 0], ignore=[True, False])
    second = detections([[0, 0, 10, 10], [0, 0, 12, 10]], [0.4, 0.8], [0, 1], ignore=[False, True])
    fused = fuse([first, second])
    assert fused.ignore is not None
    assert fused.ignore.tolist() == [True, False, False]
    np.testing.assert_allclose(fused.boxes_xyxy, [[0, 0, 11, 10], [50, 50, 60, 60], [0, 0, 10, 10]], atol=1e-6)
    np.testing.assert_allclose(fused.scores, [0.8, 0.3, 0.2], atol=1e-7)


def test_boxes_without_any_score_or_area_are_no_trouble() -> None:
    fused = fuse([detections([[0, 0, 10, 10], [5, 5, 5, 5]], [0.0, 0.0], [0, 0])] * 2)
    assert np.isfinite(fused.boxes_xyxy).all()
    assert fused.scores.tolist() == [0.0, 0.0, 0.0]  # boxes without area overlap nothing, not even themselves
    assert len(fuse([Detections.empty(), Detections.empty()])) == 0


def slow_fusion(found: list[Detections], iou: float, weights: list[float]) -> list[tuple[list[float], float, int]]:
    """The equations of the docstring, one box at a time."""
    rows = [
        (weights[m] * float(s), m, list(map(float, b)), float(s), int(k))
        for m, one in enumerate(found)
        for b, s, k in zip(one.boxes_xyxy, one.scores, one.labels)
    ]
    clusters: list[list[tuple[float, int, list[float], float, int]]] = []

    def mean(cluster: Any) -> list[float]:
        total = sum(row[0] for row in cluster)
        return [sum(row[0] * row[2][side] for row in cluster) / total for side in range(4)]

    def overlap(a: list[float], b: list[float]) -> float:
        shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return shared / (sum(area) - shared)

    for row in sorted(rows, key=lambda each: -each[0]):
        met = [(overlap(mean(c), row[2]), c) for c in clusters if c[0][4] == row[4]]
        best = max(met, key=lambda each: each[0], default=(0.0, []))
        if best[0] > iou:
            best[1].append(row)
        else:
            clusters.append([row])
    everyone = sum(weights)
    answer = []
    for cluster in clusters:
        cast = sum(weights[row[1]] for row in cluster)
        score = sum(row[0] for row in cluster) / cast * min(everyone, cast) / everyone
        answer.append((mean(cluster), score, cluster[0][4]))
    return sorted(answer, key=lambda each: -each[1])


@pytest.mark.parametrize("seed", range(6))
def test_equals_its_equations_written_slowly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner, size, labels = rng.random((25, 2)) * 80, rng.random((25, 2)) * 30 + 5, rng.integers(0, 2, 25)
    found = []
    for _ in range(3):
        low = corner + rng.normal(size=(25, 2)) * 2
        found.append(detections(np.concatenate((low, low + size), 1), rng.random(25), labels))
    weights = [1.0, 2.0, 0.5]
    fused, slow = fuse(found, 0.5, weights), slow_fusion(found, 0.5, weights)
    assert len(fused) == len(slow) < 60
    np.testing.assert_allclose(fused.boxes_xyxy, [row[0] for row in slow], atol=1e-4)
    np.testing.assert_allclose(fused.scores, [row[1] for row in slow], atol=1e-6)
    assert fused.labels.tolist() == [row[2] for row in slow]


@st.composite
def members(draw: st.DrawFn) -> list[Detections]:
    """Boxes of several members, close to each other; no two have the same score."""
    counts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    total = sum(counts)
    scores = iter(np.float32(draw(st.permutations(range(1, total + 1)))) / np.float32(total + 1))
    place, side = st.integers(0, 12), st.integers(1, 12)

    def member(count: int) -> Detections:
        boxes = [(x, y, x + draw(side), y + draw(side)) for x, y in draw(_lists(st.tuples(place, place), count))]
        return detections(boxes, [next(scores) for _ in range(count)], draw(_lists(st.integers(0, 2), count)))

    return [member(count) for count in counts]


def _lists(elements: st.SearchStrategy[Any], count: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(elements, min_size=count, max_size=count)


@given(members(), st.floats(0.1, 0.9))
def test_a_fused_box_lies_among_its_members_and_is_no_surer_than_the_surest(
    found: list[Detections], iou: float
) -> None:
    fused = fuse(found, iou)
    boxes, scores, labels = (
        np.concatenate(parts) for parts in zip(*((o.boxes_xyxy, o.scores, o.labels) for o in found))
    )
    assert len(fused) <= len(scores)
    assert set(fused.labels.tolist()) == set(labels.tolist())
    for box, score, label in zip(fused.boxes_xyxy, fused.scores, fused.labels):
        own = boxes[labels == label]
        assert (box[:2] >= own[:, :2].min(axis=0) - 1e-4).all()
        assert (box[2:] <= own[:, 2:].max(axis=0) + 1e-4).all()
        assert 0 < score <= scores[labels == label].max() + 1e-6
    assert (np.diff(fused.scores) <= 0).all()


@given(members(), st.floats(0.1, 0.9), st.randoms(use_true_random=False))
def test_the_order_of_members_and_of_their_boxes_means_nothing(
    found: list[Detections], iou: float, random: Any
) -> None:
    weights = [random.choice((0.5, 1.0, 1.0)) for _ in found]
    shuffled = [one.take(np.array(random.sample(range(len(one)), len(one)), np.int64)) for one in found]
    order = random.sample(range(len(found)), len(found))
    # Weights of one half would make two products of weight and score equal, which are then taken in order.
    weights = [1.0] * len(found) if _ties(found, weights) else weights
    one = fuse(found, iou, weights)
    other = fuse([shuffled[place] for place in order], iou, [weights[place] for place in order])
    for name in ("boxes_xyxy", "scores", "labels"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6)


def _ties(found: list[Detections], weights: list[float]) -> bool:
    products = np.concatenate([weight * one.scores for weight, one in zip(weights, found)])
    return len(np.unique(products)) < len(products)


def test_three_hundred_boxes_of_three_members_take_milliseconds() -> None:
    rng = np.random.default_rng(0)
    low = rng.random((300, 2)) * 600
    boxes = np.concatenate((low, low + 40), 1)
    members = [detections(boxes + rng.normal(size=boxes.shape), rng.random(300), np.zeros(300)) for _ in range(3)]
    best = min(_timed(members) for _ in range(5))
    assert best < 0.05  # about 0.007 on an idle core; the bound leaves room for a busy one


def _timed(members: list[Detections]) -> float:
    start = time.process_time()
    fuse(members)
    return time.process_time() - start
