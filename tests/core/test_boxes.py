"""Conversions there and back, hand-computed overlaps, and matching against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from kd_vision.core.boxes import box_area, box_iou, cxcywh_to_xyxy, greedy_match, xywh_to_xyxy, xyxy_to_xywh

# Multiples of 1/4 up to 1000: sums and products of them are exact in float32 and float64.
exact = st.integers(0, 4000).map(lambda quarters: quarters / 4)
corners_and_sizes = st.integers(0, 8).flatmap(lambda count: arrays(np.float64, (count, 4), elements=exact))


def xyxy(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_three_formats_of_one_box(dtype: type) -> None:
    corners = np.array([[10, 20, 40, 80]], dtype)
    np.testing.assert_array_equal(xywh_to_xyxy(np.array([[10, 20, 30, 60]], dtype)), corners)
    np.testing.assert_array_equal(cxcywh_to_xyxy(np.array([[25, 50, 30, 60]], dtype)), corners)
    np.testing.assert_array_equal(xyxy_to_xywh(corners), [[10, 20, 30, 60]])
    assert xywh_to_xyxy(corners).dtype == cxcywh_to_xyxy(corners).dtype == xyxy_to_xywh(corners).dtype == dtype


@given(corners_and_sizes)
def test_corner_and_size_come_back(boxes: np.ndarray) -> None:
    np.testing.assert_array_equal(xyxy_to_xywh(xywh_to_xyxy(boxes)), boxes)
    centres = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    np.testing.assert_array_equal(cxcywh_to_xyxy(centres), xywh_to_xyxy(boxes))


def test_area_and_iou_by_hand() -> None:
    boxes = xyxy((0, 0, 40, 40), (20, 0, 60, 40), (0, 0, 40, 80), (100, 100, 110, 110))
    assert box_area(boxes).tolist() == [1600, 1600, 3200, 100]
    # Shifted by half a width: 800 / (1600 + 1600 - 800); one inside the other: 1600 / 3200.
    assert box_iou(boxes[:1], boxes).tolist() == [[1.0, pytest.approx(1 / 3), 0.5, 0.0]]


def test_boxes_without_area_overlap_nothing() -> None:
    degenerate = xyxy((5, 5, 5, 30), (30, 5, 10, 30), (30, 30, 10, 10))  # a line; one side crossed; both crossed
    assert box_area(degenerate).tolist() == [0, 0, 0]
    boxes = np.concatenate([degenerate, xyxy((0, 0, 50, 50))])
    assert box_iou(degenerate, boxes).tolist() == [[0.0] * 4] * 3
    assert box_iou(xyxy(), boxes).shape == (0, 4)
    assert box_iou(boxes, xyxy()).shape == (4, 0)


@given(corners_and_sizes, corners_and_sizes)
def test_iou_is_that_of_pycocotools_and_symmetric(first: np.ndarray, second: np.ndarray) -> None:
    first[:, 2:] += 1
    second[:, 2:] += 1
    iou = box_iou(xywh_to_xyxy(first), xywh_to_xyxy(second))
    np.testing.assert_array_equal(iou, box_iou(xywh_to_xyxy(second), xywh_to_xyxy(first)).T)
    if len(first) and len(second):
        np.testing.assert_allclose(iou, coco_mask.iou(first, second, [0] * len(second)), rtol=1e-12)


def test_the_row_with_the_higher_score_chooses_first() -> None:
    similarity = np.array([[0.9, 0.6], [0.8, 0.1]])
    allowed = similarity >= 0.5
    assert greedy_match(similarity, allowed, np.array([0.9, 0.3])).tolist() == [[0, 0]]
    assert greedy_match(similarity, allowed, np.array([0.3, 0.9])).tolist() == [[1, 0], [0, 1]]


def test_without_scores_the_most_similar_pair_is_first() -> None:
    similarity = np.array([[0.6, 0.7], [0.5, 0.9]])
    assert greedy_match(similarity, np.ones((2, 2), bool)).tolist() == [[1, 1], [0, 0]]


def test_ties_go_to_the_lower_index_and_nothing_gives_no_pair() -> None:
    everything = np.ones((2, 3), bool)
    assert greedy_match(np.ones((2, 3)), everything).tolist() == [[0, 0], [1, 1]]
    assert greedy_match(np.ones((2, 3)), everything, np.ones(2)).tolist() == [[0, 0], [1, 1]]
    assert greedy_match(np.ones((2, 3)), ~everything).shape == (0, 2)
    assert greedy_match(np.ones((0, 3)), np.ones((0, 3), bool), np.ones(0)).shape == (0, 2)


# Few values, so that ties are common.
sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))
matrices = sizes.flatmap(lambda size: arrays(np.float64, size, elements=st.integers(0, 4).map(float)))


@given(matrices, st.data())
def test_matching_with_scores_is_a_loop_over_rows(similarity: np.ndarray, data: st.DataObject) -> None:
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(similarity), max_size=len(similarity))), float)
    expected, left = [], similarity.copy()
    for row in sorted(range(len(similarity)), key=lambda row: -scores[row]):
        column = int(left[row].argmax())
        if left[row, column] >= 2:
            expected.append([row, column])
            left[:, column] = -1
    assert greedy_match(similarity, similarity >= 2, scores).tolist() == expected


@given(matrices)
def test_matching_without_scores_takes_the_best_pair_that_is_left(similarity: np.ndarray) -> None:
    expected, left = [], similarity.copy()
    while left.max() >= 2:
        row, column = np.unravel_index(left.argmax(), left.shape)
        expected.append([row, column])
        left[row, :] = left[:, column] = -1
    assert greedy_match(similarity, similarity >= 2).tolist() == expected
