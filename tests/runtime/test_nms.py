"""NMS in numpy against torchvision, against the torch post-processing, and against its own definition."""

from __future__ import annotations

from random import Random

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from kd_vision.core.boxes import box_iou
from kd_vision.core.predictions import PredictOptions
from kd_vision.detectors import postprocess
from kd_vision.runtime.nms import nms
from kd_vision.runtime.output_formats import OUTPUT_FORMATS, DecodeContext

Candidates = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]
THRESHOLDS = st.sampled_from([0.25, 0.3, 0.5, 0.6, 0.7, 0.9])


@st.composite
def candidates(draw: st.DrawFn, ties: bool = False) -> Candidates:
    """Boxes (M, 4) on whole pixels, many of which overlap, some without area; scores (M,); labels (M,)."""
    count = draw(st.integers(0, 30))
    whole = st.integers(0, 12)
    rows = draw(st.lists(st.tuples(whole, whole, whole, whole), min_size=count, max_size=count))
    corners = np.array(rows, np.float32).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    ranks = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count) if ties else st.permutations(range(count)))
    labels = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return boxes, np.array(ranks, np.float32) / 64 + 0.25, np.array(labels, np.int64)


@given(candidates(ties=True), THRESHOLDS, st.integers(0, 31))
@settings(deadline=None)
def test_keeps_what_torchvision_keeps(case: Candidates, threshold: float, most: int) -> None:
    """Also where scores tie (stable order) and where the IoU is the threshold itself (its rounding decides)."""
    boxes, scores, labels = case
    expected = batched_nms(*map(torch.from_numpy, case), threshold)[:most]
    assert nms(boxes, scores, threshold, most, labels).tolist() == expected.tolist()


@given(candidates(), THRESHOLDS, st.integers(1, 31))
@settings(deadline=None)
def test_decodes_a_dense_head_as_the_torch_postprocessing_does(case: Candidates, threshold: float, most: int) -> None:
    boxes, scores, labels = case
    table = np.zeros((len(boxes), 4), np.float32)
    table[np.arange(len(boxes)), labels] = scores
    options = PredictOptions(0.3, threshold, most)
    expected = postprocess.nms(torch.from_numpy(boxes)[None], torch.from_numpy(table)[None], options).per_image()[0]
    centres = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    output = np.concatenate([centres, table], axis=1).T
    actual = OUTPUT_FORMATS["dense_cxcywh"].decode([output], DecodeContext(4, 32, 32, options))
    np.testing.assert_array_equal(actual.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(actual.scores, expected.scores)
    np.testing.assert_array_equal(actual.labels, expected.labels)
    np.testing.assert_array_equal(actual.class_probs, expected.class_probs)


@given(candidates(ties=True), THRESHOLDS)
def test_is_the_greedy_rule(case: Candidates, threshold: float) -> None:
    """No two kept boxes of a class overlap too much, and each dropped box does so with a better one that is kept."""
    boxes, scores, labels = case
    kept = nms(boxes, scores, threshold, groups=labels)
    iou = box_iou(boxes, boxes).astype(np.float32).astype(np.float64)  # 0.6 in float32 is more than 0.6, as in torch
    overlaps = (iou > threshold) & (labels[:, None] == labels)
    assert (np.diff(scores[kept]) <= 0).all()
    assert not np.triu(overlaps[kept][:, kept], k=1).any()
    for dropped in set(range(len(boxes))) - set(kept.tolist()):
        assert (overlaps[dropped, kept] & (scores[kept] >= scores[dropped])).any()


@given(candidates(ties=True), THRESHOLDS)
def test_is_idempotent(case: Candidates, threshold: float) -> None:
    boxes, scores, labels = case
    kept = nms(boxes, scores, threshold, groups=labels)
    again = nms(boxes[kept], scores[kept], threshold, groups=labels[kept])
    assert again.tolist() == list(range(len(kept)))


@given(candidates(), THRESHOLDS, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(case: Candidates, threshold: float, random: Random) -> None:
    boxes, scores, labels = case
    order = np.array(random.sample(range(len(boxes)), len(boxes)), np.int64)
    kept = nms(boxes, scores, threshold, groups=labels)
    shuffled = nms(boxes[order], scores[order], threshold, groups=labels[order])
    assert order[shuffled].tolist() == kept.tolist()


@given(candidates(), THRESHOLDS, st.integers(0, 31))
def test_the_cut_takes_the_best(case: Candidates, threshold: float, most: int) -> None:
    boxes, scores, labels = case
    every = nms(boxes, scores, threshold, groups=labels)
    assert nms(boxes, scores, threshold, most, labels).tolist() == every[:most].tolist()


def test_class_agnostic_by_hand() -> None:
    """IoU of the first two: 50 / 150 = 1/3; the third lies apart and has the class of the first."""
    boxes = np.float32([[0, 0, 10, 10], [5, 0, 15, 10], [40, 40, 50, 50]])
    scores = np.float32([0.5, 0.9, 0.1])
    assert nms(boxes, scores, 0.3).tolist() == [1, 2]
    assert nms(boxes, scores, 0.34).tolist() == [1, 0, 2]
    assert nms(boxes, scores, 0.3, groups=np.array([7, -1, 7])).tolist() == [1, 0, 2]


@pytest.mark.parametrize(("count", "classes"), [(4_000, 1), (30_000, 80)])
def test_many_candidates(count: int, classes: int) -> None:
    generator = np.random.default_rng(classes)
    corner, size = generator.uniform(0, 640, (count, 2)), generator.uniform(10, 120, (count, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    scores, labels = generator.random(count, np.float32), generator.integers(0, classes, count)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), 0.6)[:100]
    assert nms(boxes, scores, 0.6, 100, labels).tolist() == expected.tolist()
