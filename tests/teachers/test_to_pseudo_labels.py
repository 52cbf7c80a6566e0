"""Final boxes of a teacher become what a student learns: its classes, every object once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_vision.core.batch import PseudoLabels
from kd_vision.core.label_map import LabelMap, build_label_map
from kd_vision.core.predictions import BatchDetections, Detections
from kd_vision.teachers.pseudo_labels import classwise_nms, drop_outside, to_pseudo_labels

PROBS = np.float32([[0.5, 0.4], [0.5, 0.4], [0.2, 0.6], [0.3, 0.3], [0.3, 0.3]])


def found(ignore: list[bool] | None = None, probs: bool = True) -> Detections:
    """Twice the row of a car .5 and truck .4, a truck .6, twice a row that cannot decide."""
    labels = np.array([0, 1, 1, 0, 1])
    boxes = np.tile(np.float32([0, 0, 8, 8]), (5, 1)) + 20 * np.array([0, 0, 1, 2, 2], np.float32)[:, None]
    scores = PROBS[np.arange(5), labels]
    marks = None if ignore is None else np.array(ignore)
    return Detections(boxes, scores, labels, PROBS if probs else None, marks)


def learned(*images: Detections, labels: LabelMap | None = None) -> PseudoLabels:
    return to_pseudo_labels(BatchDetections.of(images), labels, 2, merge_iou=0.5)


def test_a_row_is_one_box_under_its_likeliest_class() -> None:
    """Where two classes are equally likely both boxes stay."""
    kept = learned(found(), found())
    np.testing.assert_allclose(kept.scores, [0.5, 0.6, 0.3, 0.3] * 2)
    np.testing.assert_allclose(kept.class_probs, np.tile(PROBS[[0, 2, 3, 4]], (2, 1)))
    assert kept.image_index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert kept.labels.tolist()[:2] == [0, 1]
    assert not kept.ignore.any()


def test_places_to_be_ignored_and_boxes_without_probabilities_stay() -> None:
    marked = learned(found([False, True, False, False, False]))
    assert marked.ignore.tolist() == [False, True, False, False, False]
    bare = learned(found(probs=False))
    assert bare.class_probs.tolist() == [
        pytest.approx(row) for row in ([0.5, 0], [0, 0.4], [0, 0.6], [0.3, 0], [0, 0.3])
    ]
    assert len(learned(Detections.empty())) == 0


def test_classes_that_become_one_leave_one_box_of_an_object() -> None:
    """A car of .9 and a truck of .8 in one place are one vehicle; in the next image they are the only ones."""
    vehicle = build_label_map(("car", "truck", "dog"), ("vehicle", "dog"), {"car": "vehicle", "truck": "vehicle"}, "t")
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10]])
    one = Detections(boxes, np.float32([0.9, 0.8, 0.7]), np.array([0, 1, 2]))
    kept = learned(one, one.take(np.array([1, 2])), labels=vehicle)
    np.testing.assert_allclose(kept.scores, [0.9, 0.7, 0.8, 0.7])
    assert kept.labels.tolist() == [0, 1, 0, 1]
    assert kept.image_index.tolist() == [0, 0, 1, 1]


def test_nms_keeps_boxes_that_overlap_no_more_than_asked() -> None:
    """Two squares of ten shifted by three overlap by 70 / 130 = 0.538."""
    boxes = np.float32([[0, 0, 10, 10], [3, 0, 13, 10]])
    batch = BatchDetections.of([Detections(boxes, np.float32([0.9, 0.8]), np.array([0, 0]))])
    assert len(classwise_nms(batch, 0.54).scores) == 2
    assert classwise_nms(batch, 0.53).scores.tolist() == pytest.approx([0.9])
    assert len(classwise_nms(BatchDetections.of([]), 0.5).scores) == 0


def test_boxes_of_which_nothing_lies_on_the_image_go() -> None:
    boxes = [
        [0, 0, 9, 9],
        [5, 5, 5, 20],
        [64, 0, 90, 20],
        [60, 28, 80, 80],
        [-9, 0, 0, 5],
        [0, 31, 5, 40],
        [0, 32, 5, 40],
    ]
    rows = len(boxes)
    one = Detections(np.float32(boxes), np.linspace(0.9, 0.1, rows, dtype=np.float32), np.zeros(rows, np.int64))
    kept = drop_outside(BatchDetections.of([one]), height=32, width=64)
    assert kept.boxes_xyxy.tolist() == [boxes[0], boxes[3], boxes[5]]
    assert torch.equal(kept.scores, torch.from_numpy(one.scores)[[0, 3, 5]])
