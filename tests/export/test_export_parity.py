from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.predictions import Detections
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.detectors.base import PredictOptions
from kd_vision.export.parity import (
    ParityInputs,
    ParityLimits,
    check_parity,
    match_boxes,
    synthetic_inputs,
)

SPEC = DetectorSpec("test", "test", ("a", "b"), {}, {}, frozenset())


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    values = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(values[:, :4].astype(np.float32), values[:, 4].astype(np.float32), values[:, 5].astype(np.int64))


class Says:
    """A predictor that always gives the same answers."""

    def __init__(self, *answers: Detections) -> None:
        self.spec = SPEC
        self.answers = list(answers)

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        return self.answers


def inputs(images: int = 1, data: DetectionData | None = None) -> ParityInputs:
    none = torch.zeros(0, dtype=torch.int64)
    batch = ImageBatch(
        torch.zeros(images, 3, 8, 8),
        Targets(none, none, torch.zeros(0, 4)),
        torch.zeros(images, dtype=torch.bool),
        tuple(range(1, images + 1)),
        (Letterbox(100, 100, 1.0, 1.0, 0, 0),) * images,
    )
    return ParityInputs([batch], "two drawn pictures", data)


FIRST = found((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 90, 0.5, 1))


def test_same_answers_pass_with_zero_differences() -> None:
    parity = check_parity(Says(FIRST, FIRST), Says(FIRST, FIRST), inputs(2))
    assert parity.passed
    assert (parity.images, parity.reference_boxes, parity.exported_boxes, parity.matched_share) == (2, 4, 4, 1.0)
    assert (parity.score_max, parity.pixels_max, parity.unmatched_confident) == (0.0, 0.0, 0)
    assert (parity.ap_reference, parity.source) == (None, "two drawn pictures")


def test_differences_are_measured() -> None:
    other = found((0, 0, 10, 10.5, 0.9, 0), (51, 50, 70, 90, 0.25, 1))
    parity = check_parity(Says(FIRST), Says(other), inputs())
    assert not parity.passed
    assert parity.pixels_max == pytest.approx(1.0)
    assert parity.pixels_p99 == pytest.approx(0.5 + 0.99 * 0.5)
    assert parity.score_max == pytest.approx(0.25)
    assert parity.reasons == (
        "score difference, 99th percentile: 0.247; at most 0.0005 is allowed",
        "coordinate difference in pixels, 99th percentile: 0.995; at most 0.25 is allowed",
    )


def test_another_class_is_another_box() -> None:
    other = found((0, 0, 10, 10, 0.9, 1), (50, 50, 70, 90, 0.5, 1))
    parity = check_parity(Says(FIRST), Says(other), inputs())
    assert parity.matched_share == 0.5
    assert parity.unmatched_confident == 2
    assert parity.reasons == (
        "only 0.5000 of the boxes have a partner; at least 0.995 must",
        "2 of 4 boxes with a score of 0.25 or more have no partner",
    )


def test_box_more_on_the_exported_side_counts() -> None:
    other = found((0, 0, 10, 10, 0.9, 0), (50, 50, 70, 90, 0.5, 1), (20, 20, 30, 30, 0.1, 0))
    parity = check_parity(Says(FIRST), Says(other), inputs())
    assert parity.matched_share == pytest.approx(0.8)
    assert parity.unmatched_confident == 0
    assert not parity.passed


def test_weak_boxes_are_partners_but_not_missed() -> None:
    """A box beside the floor on one side is a partner; far below it, it is nobody's loss."""
    first = found((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.00201, 0), (60, 60, 70, 70, 0.001, 1))
    second = found((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.00199, 0))
    parity = check_parity(Says(first), Says(second), inputs())
    assert parity.passed
    assert (parity.reference_boxes, parity.exported_boxes) == (2, 1)


def test_silence_proves_nothing() -> None:
    parity = check_parity(Says(Detections.empty()), Says(Detections.empty()), inputs())
    assert not parity.passed
    assert parity.reasons == (
        "neither side found a box with a score of 0.002 or more on 1 images, so nothing is proven; "
        "give --data with images the model knows",
    )


def test_pairs_are_the_most_alike_first() -> None:
    """Box 0 overlaps both; its own twin is the second, and what is left goes to box 1."""
    first = found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 8, 0.8, 0))
    second = found((0, 0, 10, 8.1, 0.8, 0), (0, 0, 10, 10, 0.9, 0))
    assert sorted(match_boxes(first, second, 0.5).tolist()) == [[0, 1], [1, 0]]


def test_score_tells_boxes_on_one_spot_apart() -> None:
    first = found((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.2, 0))
    second = found((0, 0, 10, 10, 0.2, 0), (0, 0, 10, 10, 0.9, 0))
    assert sorted(match_boxes(first, second, 0.5).tolist()) == [[0, 1], [1, 0]]


def test_boxes_without_area_match_by_their_corners() -> None:
    """A box off the image is cut to a line on both sides."""
    line = found((0, 10, 0, 30, 0.9, 0))
    assert match_boxes(line, line, 0.5).tolist() == [[0, 0]]
    assert match_boxes(line, found((0, 12, 0, 30, 0.9, 0)), 0.5).tolist() == []


def test_ap_of_both_sides_is_compared() -> None:
    """The file finds the box of class a only where the truth is not."""
    image = ImageRecord(
        1, Path("1.png"), 100, 100,
        np.array([[0, 0, 10, 10], [50, 50, 70, 90]], np.float32), np.array([0, 1]), np.zeros(2, bool),
        np.array([100.0, 800.0]), file_name="1.png",
    )  # fmt: skip
    data = DetectionData("val", ("a", "b"), (1, 2), (image,))
    right = check_parity(Says(FIRST), Says(FIRST), inputs(1, data))
    assert (right.ap_reference, right.ap_exported) == (pytest.approx(1.0), pytest.approx(1.0))
    assert right.passed
    other = found((80, 0, 90, 10, 0.9, 0), (50, 50, 70, 90, 0.5, 1))
    wrong = check_parity(Says(FIRST), Says(other), inputs(1, data))
    assert wrong.ap_exported == pytest.approx(0.5)
    assert wrong.reasons[-1] == "AP: 0.5000 of the file, 1.0000 of the model; at most 0.002 apart"


def test_limits_are_those_given() -> None:
    other = found((0, 0, 10, 10, 0.7, 0), (50, 50, 70, 90, 0.5, 1))
    shown = inputs()
    loose = ParityInputs(shown.batches, shown.source, None, ParityLimits(score_p99=0.5))
    assert check_parity(Says(FIRST), Says(other), loose).passed
    assert not check_parity(Says(FIRST), Says(other), shown).passed


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
