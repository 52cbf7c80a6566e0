from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.data.coco_results import read_coco_results, result_entry, to_coco_results
from kd_vision.data.records import DetectionData, ImageRecord

MakeData = Callable[[list[tuple[int, int]]], DetectionData]

coordinates = st.floats(0, 4096, width=32)
entries = st.fixed_dictionaries(
    {
        "image_id": st.one_of(st.sampled_from([1, 2, "1", "²", "9" * 5000, 10**400, True]), st.integers()),
        "category_id": st.one_of(st.sampled_from([1, 2, "2", "²", "evn", None]), st.integers()),
        "bbox": st.one_of(
            st.lists(st.one_of(st.floats(), st.integers(), st.just(10**400), st.text(max_size=1)), max_size=5),
            st.just([1, 2, 3, 4]),
        ),
        "score": st.one_of(st.floats(), st.just(0.5), st.just(10**400), st.none()),
    },
    optional={
        "class_probs": st.one_of(
            st.lists(st.one_of(st.floats(0, 1), st.floats(), st.just(10**400)), max_size=3),
            st.dictionaries(st.sampled_from(["1", "2", "3"]), st.floats(-1, 2)),
        ),
        "file_name": st.one_of(st.text(max_size=3), st.just("001.png"), st.integers()),
    },
)


def test_entry_of_a_box() -> None:
    assert result_entry(7, 3, np.float32([1.5, 2.0, 11.5, 22.25]), np.float32(0.5)) == {
        "image_id": 7,
        "category_id": 3,
        "bbox": [1.5, 2.0, 10.0, 20.25],
        "score": 0.5,
    }


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates, st.integers(0, 1)), max_size=6),
    seed=st.integers(0, 99),
)
def test_written_detections_are_read_back_best_first(boxes: list[tuple[float, ...]], seed: int) -> None:
    data = _data()
    corners = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d, _ in boxes], np.float32)
    scores = np.random.default_rng(seed).random(len(boxes), np.float32)
    labels = np.array([box[4] for box in boxes], np.int64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        detections = Detections(corners.reshape(-1, 4), scores, labels)
        path.write_text(json.dumps(to_coco_results(data, {2: detections})))
        back = read_coco_results(path, data)
    order = np.argsort(-scores, kind="stable")
    assert list(back) == [1, 2]
    assert len(back[1]) == 0
    # Left and width are written; adding them up again may cost the last bit of the right side.
    np.testing.assert_allclose(back[2].boxes_xyxy, detections.boxes_xyxy[order], rtol=1e-6)
    np.testing.assert_array_equal(back[2].scores, scores[order])
    np.testing.assert_array_equal(back[2].labels, labels[order])


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(st.lists(entries, max_size=3), st.lists(st.one_of(st.integers(), st.none()), max_size=2)))
@example(content=[{"image_id": "²", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}])
@example(content=[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 10**400], "score": 0.5}])
def test_any_entries_are_read_or_refused(content: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        path.write_text(json.dumps(content))
        try:
            back = read_coco_results(path, _data())
        except RequestError as error:
            lines = error.problems
            assert all(line.startswith(f"{path}: entry ") for line in lines)
            return
    assert sum(map(len, back.values())) == len(content)
    for detections in back.values():
        assert np.isfinite(detections.boxes_xyxy).all()
        assert ((detections.scores >= 0) & (detections.scores <= 1)).all()


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "9" * 5000, "[1", ""], ids=["nested", "digits", "cut", "empty"])
def test_what_is_not_json_is_refused_by_name(text: str, make_data: MakeData, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        read_coco_results(path, make_data([(8, 8)]))
    assert str(caught.value).startswith(str(path))


def _data() -> DetectionData:
    """Two images whose files nobody opens."""
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0)
    images = tuple(ImageRecord(number, Path(f"{number:03}.png"), 64, 48, *none) for number in (1, 2))
    return DetectionData("val", ("even", "odd"), (1, 2), images)
