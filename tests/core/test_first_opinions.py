"""A row of a head that answers for several classes is one box to learn from."""

from __future__ import annotations

import numpy as np

from kd_vision.core.predictions import Detections, collate_pseudo_labels, keep_top_class

PROBS = np.float32([[0.5, 0.4], [0.5, 0.4], [0.2, 0.6], [0.3, 0.3], [0.3, 0.3]])


def found(ignore: list[bool] | None = None, probs: bool = True) -> Detections:
    """Twice the row of a car .5 and truck .4, a truck .6, twice a row that cannot decide."""
    labels = np.array([0, 1, 1, 0, 1])
    boxes = np.tile(np.float32([0, 0, 8, 8]), (5, 1)) + 20 * np.array([0, 0, 1, 2, 2], np.float32)[:, None]
    scores = PROBS[np.arange(5), labels]
    marks = None if ignore is None else np.array(ignore)
    return Detections(boxes, scores, labels, PROBS if probs else None, marks)


def test_the_second_opinion_on_a_box_goes() -> None:
    kept = keep_top_class(found())
    assert kept.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(kept.scores, [0.5, 0.6, 0.3, 0.3])
    assert collate_pseudo_labels([kept], 2).labels.tolist()[:2] == [0, 1]


def test_places_to_be_ignored_and_boxes_without_probabilities_stay() -> None:
    assert len(keep_top_class(found([False, True, False, False, False]))) == 5
    assert len(keep_top_class(found(probs=False))) == 5
    assert len(keep_top_class(Detections.empty())) == 0
