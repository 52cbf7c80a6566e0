"""Each kind of error on hand-made images, and what mending it is worth, computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.tide import ERROR_KINDS, error_costs

Record, Make = Callable[..., ImageRecord], Callable[..., Detections]

CAR, BUS = 0, 1
LEFT, RIGHT, FAR = [0, 0, 100, 100], [200, 0, 300, 100], [300, 200, 380, 280]


@pytest.fixture
def street(make_record: Record) -> DetectionData:
    """One image with two cars, left and right."""
    return DetectionData("val", ("car", "bus"), (1, 2), (make_record(1, [LEFT, RIGHT], [CAR, CAR]),))


@pytest.fixture
def costs(street: DetectionData, make_detections: Make) -> Callable[..., dict[str, tuple[int, float]]]:
    """Return count and cost (rounded) of every kind with errors, for boxes, scores and labels."""

    def compute(boxes: Any, scores: Any, labels: Any, data: DetectionData = street) -> dict[str, tuple[int, float]]:
        found = {1: make_detections(boxes, scores, labels)}
        result = error_costs(data, found)
        assert result.ap50 == pytest.approx(evaluate_detections(data, found).ap50)
        return {
            kind: (result.counts[kind], round(result.costs[kind], 4)) for kind in ERROR_KINDS if result.counts[kind]
        }

    return compute


# The left car is found in each of these. With one of two boxes at precision 1, recall thresholds 0 to 0.5 of 101 are
# reached: AP50 is 51 / 101. With a wrong detection in front of it the precision is 1/2: 25.5 / 101.
HALF, ALL = 51 / 101, 1.0


def test_a_wrong_class(costs: Callable) -> None:
    # The right car is called a bus: put right, both are found. No box is missed: the wrong class found it.
    assert costs([LEFT, RIGHT], [0.9, 0.8], [CAR, BUS]) == {"classification": (1, round(ALL - HALF, 4))}


def test_a_wrong_place(costs: Callable) -> None:
    # IoU 50 x 100 over 150 x 100: 1/3. As it comes last it costs the box alone.
    assert costs([LEFT, [250, 0, 350, 100]], [0.9, 0.8], [CAR, CAR]) == {"localisation": (1, round(ALL - HALF, 4))}


def test_a_wrong_class_in_a_wrong_place(costs: Callable) -> None:
    # Removing it does not find the right car, which is missed; a car less to find makes AP50 1. A bus costs no car.
    result = costs([LEFT, [250, 0, 350, 100]], [0.9, 0.95], [CAR, BUS])
    assert result == {"both": (1, 0.0), "missed": (1, round(ALL - HALF, 4))}


def test_a_duplicate(costs: Callable) -> None:
    # Right, wrong (duplicate), right: precision 1 up to recall 0.5, then 2/3 for the other 50 thresholds.
    with_duplicate = (51 + 50 * 2 / 3) / 101
    result = costs([LEFT, [1, 0, 101, 100], RIGHT], [0.9, 0.8, 0.7], [CAR] * 3)
    assert result == {"duplicate": (1, round(ALL - with_duplicate, 4))}


def test_background(costs: Callable) -> None:
    # The wrong one comes first: precision 1/2, then 2/3, so 2/3 everywhere.
    assert costs([FAR, LEFT, RIGHT], [0.95, 0.9, 0.8], [CAR] * 3) == {"background": (1, round(ALL - 2 / 3, 4))}


def test_a_missed_box(costs: Callable) -> None:
    assert costs([LEFT], [0.9], [CAR]) == {"missed": (1, round(ALL - HALF, 4))}


def test_nothing_found_misses_all(costs: Callable) -> None:
    assert costs([], [], []) == {"missed": (2, 0.0)}, "without boxes to find AP50 counts as 0"


def test_of_two_that_find_one_box_the_better_stays(costs: Callable) -> None:
    # A bus with 0.95 on the left car: put right it replaces the car with 0.9. AP50 without it: 1, with it as well.
    result = costs([LEFT, LEFT, RIGHT], [0.95, 0.9, 0.8], [BUS, CAR, CAR])
    assert result == {"classification": (1, 0.0)}


def test_a_place_near_a_box_of_its_own_class_counts_before_another_class(costs: Callable, make_record: Record) -> None:
    # IoU 1/3 with the car, 1 with the bus under it.
    data = DetectionData("val", ("car", "bus"), (1, 2), (make_record(1, [LEFT, [50, 0, 150, 100]], [CAR, BUS]),))
    assert set(costs([[50, 0, 150, 100]], [0.9], [CAR], data)) == {"localisation", "missed"}


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([50, 0, 150, 100], "localisation"),  # 1/3
        ([0, 0, 100, 49], "localisation"),  # 0.49
        ([0, 0, 100, 10], "localisation"),  # 0.1 exactly
        ([0, 0, 100, 9], "background"),  # 0.09
    ],
)
def test_the_limits_of_iou(costs: Callable, box: list[float], kind: str) -> None:
    assert costs([box], [0.9], [CAR])[kind][0] == 1


def test_crowd_regions_count_for_nothing(make_record: Record, make_detections: Make) -> None:
    image = make_record(1, [LEFT, [200, 0, 400, 300]], [CAR, CAR], crowd=[False, True])
    data = DetectionData("val", ("car", "bus"), (1, 2), (image,))
    found = make_detections([LEFT, [210, 10, 250, 60], [210, 10, 250, 60]], [0.9, 0.8, 0.7], [CAR, CAR, BUS])
    result = error_costs(data, {1: found})
    # The car in the crowd is ignored; the bus there is background, and of a class without boxes.
    assert result.ap50 == 1.0
    assert {kind: count for kind, count in result.counts.items() if count} == {"background": 1}


@pytest.mark.parametrize("seed", [0, 1])
def test_ap50_is_that_of_cocoeval_and_every_detection_has_a_kind(
    coco_tiny: DetectionData, disturb: Callable[..., dict[int, Detections]], seed: int
) -> None:
    found = disturb(coco_tiny, seed)
    result = error_costs(coco_tiny, found)
    assert result.ap50 == pytest.approx(evaluate_detections(coco_tiny, found).ap50, abs=1e-6)
    assert all(cost >= -1e-9 for cost in result.costs.values())
    assert all(np.array(list(result.counts.values())) >= 0)
