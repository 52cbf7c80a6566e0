"""True and false positives are those that COCOeval counted, crowd boxes and duplicates included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import IGNORED, UNMATCHED, Detections
from kd_vision.data.records import DetectionData
from kd_vision.evaluation.coco import prepare_cocoeval
from kd_vision.evaluation.matches import ImageMatches, match_detections

Make = Callable[..., Detections]


def counts(matches: ImageMatches) -> tuple[int, int, int]:
    return int(matches.tp.sum()), int(matches.fp.sum()), int(matches.fn.sum())


def test_matches_of_a_hand_made_image(scene: DetectionData, make_detections: Make) -> None:
    # Image 10 holds a car (index 0) and a bus (index 1).
    boxes = [[10, 10, 60, 60], [12, 10, 62, 60], [100, 100, 300, 220], [10, 10, 60, 35], [10, 10, 60, 34]]
    detections = make_detections(boxes, [0.4, 0.9, 0.8, 0.3, 0.2], [0, 0, 0, 1, 1])
    matches = match_detections(scene, {10: detections})[10]
    # The stronger of two cars matches, the duplicate does not; the bus was called a car, so it is missed.
    assert matches.matched_idx.tolist() == [UNMATCHED, 0, UNMATCHED, UNMATCHED, UNMATCHED]
    assert matches.tp.tolist() == [False, True, False, False, False]
    assert matches.fn.tolist() == [False, True]
    assert counts(matches) == (1, 4, 1)
    assert matches.mistakes == 5
    assert str(matches) == "1 TP, 4 FP, 1 FN"


def test_an_iou_of_exactly_one_half_matches(scene: DetectionData, make_detections: Make) -> None:
    detections = {10: make_detections([[10, 10, 60, 35], [100, 100, 300, 159]], [0.9, 0.9], [0, 1])}
    assert match_detections(scene, detections)[10].matched_idx.tolist() == [0, UNMATCHED]  # 25 and 59 of 50 and 120


def test_detections_in_a_crowd_region_are_ignored_and_it_is_never_missed(
    scene: DetectionData, make_detections: Make
) -> None:
    boxes = [[60, 60, 90, 90], [120, 120, 150, 150], [5, 5, 25, 25], [300, 5, 330, 25]]
    matches = match_detections(scene, {11: make_detections(boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0])})
    assert matches[11].matched_idx.tolist() == [IGNORED, IGNORED, 0, UNMATCHED]
    assert counts(matches[11]) == (1, 1, 0)
    assert counts(matches[10]) == (0, 0, 2), "an image without an entry misses all its boxes"
    assert counts(matches[12]) == (0, 0, 0)


def test_weak_detections_are_ignored_and_what_they_matched_is_missed(
    scene: DetectionData, make_detections: Make
) -> None:
    found = {10: make_detections([[100, 100, 300, 220], [10, 10, 60, 60], [0, 0, 9, 9]], [0.25, 0.9, 0.1], [1, 0, 0])}
    assert match_detections(scene, found, 0.25)[10].matched_idx.tolist() == [1, 0, IGNORED]
    assert match_detections(scene, found, 0.26)[10].matched_idx.tolist() == [IGNORED, 0, IGNORED]
    assert match_detections(scene, found, 0.26)[10].fn.tolist() == [False, True]


def test_detections_beyond_a_hundred_of_a_class_are_ignored(scene: DetectionData, make_detections: Make) -> None:
    boxes = [[300, 5, 330, 25]] * 101 + [[10, 10, 60, 60]]
    scores = np.linspace(0.9, 0.5, 102)
    matches = match_detections(scene, {10: make_detections(boxes, scores, [0] * 102)})[10]
    assert matches.matched_idx.tolist() == [UNMATCHED] * 100 + [IGNORED] * 2


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.6])
def test_counts_are_those_of_cocoeval_on_real_coco_with_crowds_and_duplicates(
    coco_tiny: DetectionData, disturb: Callable[..., dict[int, Detections]], threshold: float
) -> None:
    detections = disturb(coco_tiny)
    matches = match_detections(coco_tiny, detections, threshold)
    confident = {key: one.take(one.scores >= threshold) for key, one in detections.items()}
    evaluation = prepare_cocoeval(coco_tiny, confident, "pycocotools")
    evaluation.evaluate()
    evaluation.accumulate()
    tp = fp = positives = 0
    all_sizes = [one for one in evaluation.evalImgs if one is not None and one["aRng"] == [0, 1e10]]
    for one in all_sizes:
        counted = ~one["dtIgnore"][0].astype(bool)
        tp += int((counted & (one["dtMatches"][0] > 0)).sum())
        fp += int((counted & (one["dtMatches"][0] == 0)).sum())
        positives += int((one["gtIgnore"] == 0).sum())
    total = tuple(sum(values) for values in zip(*map(counts, matches.values()), strict=True))
    assert total == (tp, fp, positives - tp)
    assert min(total) > 10
    # The recall that COCOeval reports is made of the same true positives, class by class.
    recall = evaluation.eval["recall"][0, :, 0, -1]
    for label, category in enumerate(coco_tiny.category_ids):
        boxes = sum(int((image.labels[~image.crowd] == label).sum()) for image in coco_tiny.images)
        hits = sum(
            int((detections[key].labels[one.tp] == label).sum()) for key, one in matches.items() if key in detections
        )
        assert recall[evaluation.params.catIds.index(category)] == (pytest.approx(hits / boxes) if boxes else -1)


def test_no_detection_at_all(scene: DetectionData) -> None:
    assert [counts(one) for one in match_detections(scene, {}).values()] == [(0, 0, 2), (0, 0, 1), (0, 0, 0)]


def test_matching_prints_nothing_and_refuses_what_evaluation_refuses(
    scene: DetectionData, make_detections: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    match_detections(scene, {10: make_detections([[10, 10, 60, 60]], [0.9], [0])})
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RequestError, match="image id 99 is not in 'val'"):
        match_detections(scene, {99: make_detections([[0, 0, 5, 5]], [0.5], [0])})
