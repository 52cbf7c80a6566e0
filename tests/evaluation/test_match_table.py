"""Kept matches give the numbers of COCOeval, come back from disk, and count mistakes like `match_detections`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData
from kd_vision.evaluation.bootstrap import drawn_ap
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.match_table import MatchTable, evaluate_with_matches, match_table
from kd_vision.evaluation.matches import match_detections

Disturb = Callable[..., dict[int, Detections]]


def check_identity(data: DetectionData, detections: dict[int, Detections]) -> None:
    """Each image once: AP, AP50, AP75, by size and by class are those of COCOeval to 1e-6."""
    expected = evaluate_detections(data, detections)
    drawn = drawn_ap(match_table(data, detections), np.ones((len(data), 1), np.float32))
    numbers = (expected.ap, expected.ap50, expected.ap75, expected.ap_small, expected.ap_medium, expected.ap_large)
    for computed, wanted in zip(drawn.overall[0], numbers, strict=True):
        assert computed == pytest.approx(np.nan if wanted is None else wanted, abs=1e-6, nan_ok=True)
    for computed, one in zip(drawn.per_class[0], expected.per_class.values(), strict=True):
        assert computed == pytest.approx(np.nan if one.ap is None else one.ap, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_image_once_gives_cocoevals_numbers_with_crowd(
    coco_tiny: DetectionData, disturb: Disturb, seed: int
) -> None:
    check_identity(coco_tiny, disturb(coco_tiny, seed))


def test_each_image_once_gives_cocoevals_numbers_on_bccd(bccd_test: DetectionData, disturb: Disturb) -> None:
    check_identity(bccd_test, disturb(bccd_test))


def test_without_detections_ap_is_0_and_without_boxes_it_is_not_defined(scene: DetectionData) -> None:
    check_identity(scene, {})
    drawn = drawn_ap(match_table(scene, {}), np.array([[0, 1], [0, 0], [1, 0]], np.float32))
    assert np.isnan(drawn.overall[0]).all(), "only the image without boxes was drawn"
    assert drawn.overall[1, 0] == 0.0


def test_comes_back_from_disk(coco_tiny: DetectionData, disturb: Disturb, tmp_path: Path) -> None:
    table = match_table(coco_tiny, disturb(coco_tiny))
    table.save(tmp_path / "matches.npz")
    read = MatchTable.load(tmp_path / "matches.npz")
    assert read.classes == table.classes
    for name in ("image_ids", "image", "label", "score", "matched", "ignored", "box_image", "box_label", "box_ignored"):
        assert np.array_equal(getattr(read, name), getattr(table, name)), name
    assert read.fits(coco_tiny)
    assert not read.fits(coco_tiny.subset(range(3)))


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"matches\.npz: cannot be read \(No such file or directory\)"):
        MatchTable.load(tmp_path / "matches.npz")
    for content in (b"no archive", b"PK\x03\x04 torn"):
        (tmp_path / "matches.npz").write_bytes(content)
        with pytest.raises(RequestError, match=r"is no file of matches; delete it, and it is made again"):
            MatchTable.load(tmp_path / "matches.npz")


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.9])
def test_mistakes_are_those_of_the_pictures(coco_tiny: DetectionData, disturb: Disturb, threshold: float) -> None:
    detections = disturb(coco_tiny)
    table = match_table(coco_tiny, detections)
    pictures = match_detections(coco_tiny, detections, threshold)
    by_id = dict(zip(table.image_ids.tolist(), table.mistakes(threshold).tolist(), strict=True))
    assert by_id == {image_id: one.mistakes for image_id, one in pictures.items()}


def test_the_threshold_keeps_as_many_detections_as_boxes(coco_tiny: DetectionData, disturb: Disturb) -> None:
    table = match_table(coco_tiny, disturb(coco_tiny))
    counted = table.score[table.counted(0, 0)]
    boxes = table.box_counts()["all"]
    threshold = table.matched_count_threshold()
    kept = int((counted >= threshold).sum())
    assert kept >= min(boxes, len(counted))
    assert int((counted > threshold).sum()) < min(boxes, len(counted))


def test_boxes_are_counted_by_size_without_crowd(scene: DetectionData) -> None:
    # Areas: 50 x 50, 200 x 120, 20 x 20; the crowd region of 200 x 200 does not count.
    assert match_table(scene, {}).box_counts() == {"all": 3, "small": 1, "medium": 1, "large": 1}


def test_one_evaluation_gives_numbers_and_matches(coco_tiny: DetectionData, disturb: Disturb) -> None:
    detections = disturb(coco_tiny)
    metrics, table = evaluate_with_matches(coco_tiny, detections)
    alone = match_table(coco_tiny, detections)
    assert metrics == evaluate_detections(coco_tiny, detections)
    assert np.array_equal(table.matched, alone.matched)
    assert np.array_equal(table.box_ignored, alone.box_ignored)
