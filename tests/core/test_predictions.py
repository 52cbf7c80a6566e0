"""Final boxes of a batch: there and back between one value for all images and one for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_vision.core.predictions import BatchDetections, Detections, class_probabilities

CLASSES = 3


def drawn(seed: int, count: int, probs: bool, ignore: bool) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (count, 2))], axis=1).astype(np.float32)
    table = rng.uniform(0, 1, (count, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, count)
    scores = np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1].copy()
    return Detections(boxes, scores, labels, table if probs else None, rng.random(count) < 0.5 if ignore else None)


images = st.lists(
    st.builds(drawn, st.integers(0, 9), st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=5
)


@given(images)
def test_every_image_comes_back_with_all_that_was_known_of_its_boxes(given_: list[Detections]) -> None:
    """Probabilities of one image never depend on whether its neighbours have any, or have any box."""
    back = BatchDetections.of(given_).per_image()
    assert len(back) == len(given_)
    with_probs = any(one.class_probs is not None for one in given_)
    with_marks = any(one.ignore is not None for one in given_)
    for one, other in zip(given_, back, strict=True):
        np.testing.assert_array_equal(other.boxes_xyxy, one.boxes_xyxy)
        np.testing.assert_array_equal(other.scores, one.scores)
        np.testing.assert_array_equal(other.labels, one.labels)
        assert (other.class_probs is not None, other.ignore is not None) == (with_probs, with_marks)
        np.testing.assert_array_equal(class_probabilities(other, CLASSES), class_probabilities(one, CLASSES))
        marks = np.zeros(len(one), np.bool_) if one.ignore is None else one.ignore
        np.testing.assert_array_equal(np.zeros(len(one), np.bool_) if other.ignore is None else other.ignore, marks)


@given(images, st.integers(0, 99))
def test_a_choice_of_boxes_is_the_choice_of_each_image(given_: list[Detections], seed: int) -> None:
    batch = BatchDetections.of(given_)
    chosen = np.random.default_rng(seed).random(len(batch.scores)) < 0.5
    first = 0
    for one, other in zip(given_, batch.take(torch.from_numpy(chosen)).per_image(), strict=True):
        np.testing.assert_array_equal(other.boxes_xyxy, one.boxes_xyxy[chosen[first : first + len(one)]])
        first += len(one)


def test_an_image_without_boxes_does_not_cost_the_others_their_probabilities() -> None:
    """Ensembles, stores and result files give no probabilities for an image on which they have no box."""
    seen = Detections(np.float32([[0, 0, 4, 4]]), np.float32([0.6]), np.array([1]), np.float32([[0.3, 0.6, 0.1]]))
    batch = BatchDetections.of([Detections.empty(), seen])
    assert batch.class_probs is not None
    assert batch.class_probs.tolist() == [pytest.approx([0.3, 0.6, 0.1])]


def test_a_box_without_probabilities_has_its_score_at_its_label() -> None:
    bare = Detections(np.zeros((2, 4), np.float32), np.float32([0.9, 0.4]), np.array([2, 0]))
    expected = [pytest.approx([0, 0, 0.9]), pytest.approx([0.4, 0, 0])]
    assert BatchDetections.of([bare]).class_probs is None
    assert BatchDetections.of([bare]).probabilities(CLASSES).tolist() == expected
    known = drawn(0, 1, probs=True, ignore=False)
    assert known.class_probs is not None
    mixed = BatchDetections.of([known, bare]).class_probs
    assert mixed is not None
    assert mixed.tolist() == [pytest.approx(known.class_probs[0].tolist()), *expected]


def test_no_images_are_no_images() -> None:
    assert BatchDetections.of([]).per_image() == []
    (nothing,) = BatchDetections.of([Detections.empty()]).per_image()
    assert nothing.boxes_xyxy.shape == (0, 4)


def test_all_parts_move_to_the_device() -> None:
    moved = BatchDetections.of([drawn(0, 2, probs=True, ignore=True)]).to("meta")
    parts = (moved.image_index, moved.boxes_xyxy, moved.scores, moved.labels, moved.class_probs, moved.ignore)
    assert {part.device.type for part in parts if part is not None} == {"meta"}
    assert None not in [type(part) for part in parts]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((np.zeros((2, 4)), np.zeros(1), np.zeros(1)), r"boxes \(2, 4\), scores \(1,\), labels \(1,\)"),
        ((np.zeros((1, 4)), np.zeros(1), np.zeros(2)), r"labels \(2,\)"),
        ((np.zeros((1, 4)), np.zeros(1), np.zeros(1), np.zeros((2, 3))), r"class_probs \(2, 3\) do not fit 1 boxes"),
        ((np.zeros((1, 4)), np.zeros(1), np.zeros(1), None, np.zeros(2)), r"ignore \(2,\) do not fit 1 boxes"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(parts: tuple[np.ndarray, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Detections(*parts)
