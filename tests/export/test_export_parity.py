from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_vision.core.batch import ImageBatch, Letterbox
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.export.parity import (
    ParityInputs,
    ParityLimits,
    check_parity,
    match_boxes,
    synthetic_inputs,
)

SPEC = DetectorSpec("test", "test", ("a", "b"), {}, {}, frozenset())


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    values = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(values[:, :4].astype(np.float32), values[:, 4].astype(np.float32), values[:, 5].astype(np.int64))


class Fixed:
    """A predictor with the same detections for every batch."""

    def __init__(self, *by_image: Detections) -> None:
        self.spec = SPEC
        self.by_image = list(by_image)

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        return self.by_image


def inputs(images: int = 1, data: DetectionData | None = None) -> ParityInputs:
    letterboxes = (Letterbox(100, 100, 1.0, 1.0, 0, 0),) * images
    batch = ImageBatch.of_images(torch.zeros(images, 3, 8, 8), range(1, images + 1), letterboxes)
    return ParityInputs([batch], "two drawn pictures", data)


FIRST = detections((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 90, 0.5, 1))


def test_equal_detections_pass_with_zero_differences() -> None:
    parity = check_parity(Fixed(FIRST, FIRST), Fixed(FIRST, FIRST), inputs(2))
    assert parity.passed
    assert (parity.images, parity.reference_boxes, parity.exported_boxes, parity.matched_share) == (2, 4, 4, 1.0)
    assert (parity.score_max, parity.pixels_max, parity.unmatched_confident) == (0.0, 0.0, 0)
    assert (parity.ap_reference, parity.source) == (None, "two drawn pictures")


def test_differences_are_measured() -> None:
    other = detections((0, 0, 10, 10.5, 0.9, 0), (51, 50, 70, 90, 0.25, 1))
    parity = check_parity(Fixed(FIRST), Fixed(other), inputs())
    assert not parity.passed
    assert parity.pixels_max == pytest.approx(1.0)
    assert parity.pixels_p99 == pytest.approx(0.5 + 0.99 * 0.5)
    assert parity.score_max == pytest.approx(0.25)
    assert parity.reasons == (
        "score difference, 99th percentile: 0.247; at most 0.0005 is allowed",
        "coordinate difference in pixels, 99th percentile: 0.995; at most 0.25 is allowed",
    )


def test_another_class_is_another_box() -> None:
    other = detections((0, 0, 10, 10, 0.9, 1), (50, 50, 70, 90, 0.5, 1))
    parity = check_parity(Fixed(FIRST), Fixed(other), inputs())
    assert parity.matched_share == 0.5
    assert parity.unmatched_confident == 2
    assert parity.reasons == (
        "only 0.5000 of the boxes have a partner; at least 0.995 must",
        "2 of 4 boxes with a score of 0.25 or more have no partner",
    )


def test_box_more_on_the_exported_side_counts() -> None:
    other = detections((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 90, 0.5, 1), (20, 20, 30, 30, 0.1, 0))
    parity = check_parity(Fixed(FIRST), Fixed(other), inputs())
    assert parity.matched_share == pytest.approx(0.8)
    assert parity.unmatched_confident == 0
    assert not parity.passed


def test_boxes_below_the_floor_are_partners_but_do_not_count() -> None:
    """A box just below the floor is the partner of one just above it; without a partner it does not count."""
    first = detections((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.00201, 0), (60, 60, 70, 70, 0.001, 1))
    second = detections((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.00199, 0))
    parity = check_parity(Fixed(first), Fixed(second), inputs())
    assert parity.passed
    assert (parity.reference_boxes, parity.exported_boxes) == (2, 1)


def test_no_detections_prove_nothing() -> None:
    parity = check_parity(Fixed(Detections.empty()), Fixed(Detections.empty()), inputs())
    assert not parity.passed
    assert parity.reasons == (
        "neither the model nor the file detects a box with a score of 0.002 or more on 1 images, so nothing is proven; "
        "give --data with images of the model's classes",
    )


def test_most_similar_pairs_first() -> None:
    """Box 0 overlaps both boxes; the second equals it, so that box 1 gets the first."""
    first = detections((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 8, 0.8, 0))
    second = detections((0, 0, 10, 8.1, 0.8, 0), (0, 0, 10, 10, 0.9, 0))
    assert sorted(match_boxes(first, second, 0.5).tolist()) == [[0, 1], [1, 0]]


def test_boxes_at_one_place_are_paired_by_score() -> None:
    first = detections((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.2, 0))
    second = detections((0, 0, 10, 10, 0.2, 0), (0, 0, 10, 10, 0.9, 0))
    assert sorted(match_boxes(first, second, 0.5).tolist()) == [[0, 1], [1, 0]]


def test_boxes_without_area_match_by_their_corners() -> None:
    """A box outside the image is clipped to a line, by both sides."""
    line = detections((0, 10, 0, 30, 0.9, 0))
    assert match_boxes(line, line, 0.5).tolist() == [[0, 0]]
    assert match_boxes(line, detections((0, 12, 0, 30, 0.9, 0)), 0.5).tolist() == []


def test_ap_of_both_sides_is_compared() -> None:
    """The file detects the object of class a in a wrong place: its AP is 0, and the mean of two classes 0.5."""
    image = ImageRecord(
        1, Path("1.png"), 100, 100,
        np.array([[0, 0, 10, 10], [50, 50, 70, 90]], np.float32), np.array([0, 1]), np.zeros(2, bool),
        np.array([100.0, 800.0]), file_name="1.png",
    )  # fmt: skip
    data = DetectionData("val", ("a", "b"), (1, 2), (image,))
    right = check_parity(Fixed(FIRST), Fixed(FIRST), inputs(1, data))
    assert (right.ap_reference, right.ap_exported) == (pytest.approx(1.0), pytest.approx(1.0))
    assert right.passed
    other = detections((80, 0, 90, 10, 0.9, 0), (50, 50, 70, 90, 0.5, 1))
    wrong = check_parity(Fixed(FIRST), Fixed(other), inputs(1, data))
    assert wrong.ap_exported == pytest.approx(0.5)
    assert wrong.reasons[-1] == "AP: 0.5000 of the file, 1.0000 of the model; at most 0.002 apart"
    better = check_parity(Fixed(other), Fixed(FIRST), inputs(1, data))
    assert better.reasons[-1] == "AP: 1.0000 of the file, 0.5000 of the model; at most 0.002 apart"


@pytest.mark.parametrize(("limit", "broken"), [(0.499, True), (0.501, False)])
def test_ap_alone_breaks_its_limit(limit: float, broken: bool) -> None:
    """All limits but that of AP are open; AP differs by 0.5."""
    image = ImageRecord(
        1, Path("1.png"), 100, 100, np.array([[0, 0, 10, 10], [50, 50, 70, 90]], np.float32), np.array([0, 1]),
        np.zeros(2, bool), np.array([100.0, 800.0]), file_name="1.png",
    )  # fmt: skip
    open_limits = ParityLimits(matched_share=0, confident_matched_share=0, score_p99=1, pixels_p99=100, ap=limit)
    shown = replace(inputs(1, DetectionData("val", ("a", "b"), (1, 2), (image,))), limits=open_limits)
    other = detections((80, 0, 90, 10, 0.9, 0), (50, 50, 70, 90, 0.5, 1))
    parity = check_parity(Fixed(FIRST), Fixed(other), shown)
    line = f"AP: 0.5000 of the file, 1.0000 of the model; at most {limit:g} apart"
    assert parity.reasons == ((line,) if broken else ())
    assert parity.passed is not broken


def test_data_without_ground_truth_has_no_ap_to_compare() -> None:
    nothing = ImageRecord(
        1, Path("1.png"), 100, 100, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool),
        np.zeros(0), file_name="1.png",
    )  # fmt: skip
    parity = check_parity(Fixed(FIRST), Fixed(FIRST), inputs(1, DetectionData("val", ("a", "b"), (1, 2), (nothing,))))
    assert (parity.ap_reference, parity.ap_exported, parity.reasons) == (None, None, ())


def test_limits_are_those_given() -> None:
    other = detections((0, 0, 10, 10, 0.7, 0), (50, 50, 70, 90, 0.5, 1))
    shown = inputs()
    loose = ParityInputs(shown.batches, shown.source, None, ParityLimits(score_p99=0.5))
    assert check_parity(Fixed(FIRST), Fixed(other), loose).passed
    assert not check_parity(Fixed(FIRST), Fixed(other), shown).passed


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_synthetic_images_are_the_same_every_time(channels: int) -> None:
    spec = DetectorSpec("test", "test", ("a",), {}, {}, frozenset(), input_channels=channels)
    first, second = (list(synthetic_inputs(spec, 64, images=4).batches) for _ in range(2))
    assert [batch.image_ids for batch in first] == [(1,), (2,), (3,), (4,)]
    for one, two in zip(first, second):
        assert one.images.shape == (1, channels, 64, 64)
        assert one.images.dtype == torch.uint8
        assert torch.equal(one.images, two.images)
    assert not torch.equal(first[0].images, first[2].images)
