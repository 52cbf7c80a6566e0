from __future__ import annotations

import math

import numpy as np
import pytest

from kd_vision.core.predictions import Detections
from kd_vision.knowledge.ranking import (
    BEYOND,
    CHOSEN,
    AcquisitionScore,
    acquisition_scores,
    choose,
    class_rarity,
    disagreement,
    picture_hash,
    uncertainty,
)


def said(*boxes: tuple[float, float, int]) -> Detections:
    """Boxes of 10 x 10 at (left, 0) with score and label."""
    places = np.array([[left, 0, left + 10, 10] for left, _, _ in boxes], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in boxes], np.float32)
    return Detections(places, scores, np.array([label for _, _, label in boxes], np.int64))


def test_disagreement_by_hand() -> None:
    teacher = said((0, 0.8, 0), (30, 0.6, 1))
    assert disagreement(teacher, teacher) == pytest.approx(0, abs=1e-6)
    assert disagreement(teacher, said()) == disagreement(said(), teacher) == 1
    assert disagreement(said(), said()) == 0
    # The first is seen with .4 at IoU 7/13 > .5; the second under another label.
    student = said((3, 0.4, 0), (30, 0.6, 0))
    assert disagreement(teacher, student) == pytest.approx(1 - 2 * 0.4 / (1.4 + 1.0))
    # At IoU 6/14 nothing is paired.
    assert disagreement(said((0, 0.8, 0)), said((4, 0.4, 0))) == 1
    # A box is paired once: the surer of two takes it.
    assert disagreement(said((0, 0.9, 0), (1, 0.5, 0)), said((0, 0.9, 0))) == pytest.approx(1 - 1.8 / 2.3)


def test_uncertainty_is_entropy_in_bits() -> None:
    assert uncertainty(np.array([0.5, 0.5], np.float32)) == pytest.approx(1)
    assert uncertainty(np.array([0.25], np.float32)) == pytest.approx(2 - 0.75 * math.log2(3), abs=1e-6)
    assert uncertainty(np.array([1.0, 0.0], np.float32)) < 1e-6
    assert uncertainty(np.zeros(0, np.float32)) == 0


def test_rarity_is_the_root_of_inverse_frequency() -> None:
    images = [said((0, 0.5, 0), (20, 0.5, 0)), said((0, 0.5, 0), (20, 0.5, 0)), said((0, 0.5, 2)), said()]
    np.testing.assert_allclose(class_rarity(images, 4), [0.5, 0, 1, 0])
    found = acquisition_scores(images, 4)
    assert [one.rarity for one in found] == pytest.approx([0.25, 0.25, 0.5, 0])
    assert [one.score for one in found] == pytest.approx([0.625, 0.625, 0.75, 0])
    assert acquisition_scores(images, 4, [0.2, 0.2, 0.3, 1.0])[2].score == pytest.approx((0.3 + 1 + 0.5) / 3)
    assert class_rarity([said()], 2).tolist() == [0, 0]


def test_alike_pictures_have_near_hashes_and_others_far_ones() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (8, 9, 1), np.uint8)
    picture = coarse.repeat(20, axis=0).repeat(20, axis=1)
    brighter = (picture * 0.8 + 20).astype(np.uint8)
    noisy = (picture.astype(int) + rng.integers(-3, 4, picture.shape)).clip(0, 255).astype(np.uint8)
    other = rng.integers(0, 255, (8, 9, 1), np.uint8).repeat(20, axis=0).repeat(20, axis=1)
    own, *rest = (np.unpackbits(picture_hash(one)) for one in (picture, brighter, noisy, other))
    expected = (coarse[:, 1:, 0] > coarse[:, :-1, 0]).ravel()
    np.testing.assert_array_equal(own, expected)
    assert [int((own != bits).sum()) <= 4 for bits in rest] == [True, True, False]


def test_the_best_are_taken_but_none_that_looks_like_one_taken() -> None:
    hashes = np.zeros((5, 8), np.uint8)
    hashes[1, 0] = 0b1111  # four bits from image 0: alike
    hashes[2, 0] = 0b11111  # five bits from image 0, one from image 1, which is not taken
    hashes[3] = hashes[4] = 255
    found = [AcquisitionScore(None, score, 0.0) for score in (0.9, 0.8, 0.7, 0.6, 0.6)]
    names = ["a", "b", "c", "e", "d"]
    ranked = choose(found, names, hashes, budget=3)
    assert [(names[one.index], one.reason) for one in ranked] == [
        ("a", CHOSEN), ("b", "looks like a"), ("c", CHOSEN), ("d", CHOSEN), ("e", BEYOND),
    ]  # fmt: skip
    assert [one.like for one in ranked] == [None, 0, None, None, None]
    assert [names[one.index] for one in choose(found, names, hashes, 9) if one.reason == CHOSEN] == ["a", "c", "d"]
