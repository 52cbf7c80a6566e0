from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.teachers.base import BlackBoxDetector
from kd_vision.teachers.build import parse_member
from kd_vision.teachers.predictions_file import PredictionsConfig, PredictionsFile, build

WEAK = Detections(
    np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32), np.array([0.9, 0.0002], np.float32), np.array([1, 0])
)


def record(image_id: int) -> ImageRecord:
    none = np.zeros(0)
    return ImageRecord(
        image_id, Path(f"{image_id}.png"), 16, 16, np.zeros((0, 4), np.float32), none.astype(np.int64),
        none.astype(np.bool_), none,
    )  # fmt: skip


SPLIT = DetectionData("train", ("a", "b"), (1, 2), (record(7), record(9)))
FILE = PredictionsFile({7: WEAK, 9: Detections.empty()}, SPLIT, Path("teacher.json"))


def batch(*image_ids: int) -> ImageBatch:
    none = torch.zeros(0, dtype=torch.int64)
    count = len(image_ids)
    return ImageBatch(
        torch.zeros(count, 3, 8, 8),
        Targets(none, none, torch.zeros(0, 4)),
        torch.zeros(count, dtype=torch.bool),
        image_ids,
        (Letterbox(16, 16, 0.5, 0.5, 0, 0),) * count,
    )


def test_answers_by_image_id_in_original_pixels() -> None:
    first, second = FILE.predict(batch(9, 7))
    assert len(first) == 0
    assert second.boxes_xyxy.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert second.labels.tolist() == [1, 0]


def test_the_file_is_given_whole_so_that_figures_equal_cocoeval() -> None:
    found = FILE.predict(batch(7), PredictOptions(score_threshold=0.5, max_detections=1))[0]
    assert found.scores.tolist() == WEAK.scores.tolist()


def test_spec_says_what_it_is() -> None:
    assert (FILE.spec.family, FILE.spec.name, FILE.spec.classes) == ("predictions", "teacher", ("a", "b"))
    assert FILE.spec.provides == frozenset({"detections"})


def test_an_image_it_does_not_know_is_an_error() -> None:
    with pytest.raises(RequestError) as caught:
        FILE.predict(batch(7, 8, 11))
    assert str(caught.value) == (
        "teacher.json: has no predictions for image id 8, 11; evaluate it on the split it was made for"
    )


def test_images_without_ids_are_an_error() -> None:
    with pytest.raises(RequestError) as caught:
        FILE.predict(dataclasses.replace(batch(7), image_ids=()))
    assert str(caught.value) == "teacher.json: holds boxes by image id, and these images have no ids; give a data set"


def test_it_teaches_the_images_of_its_split_by_their_path() -> None:
    """The same id in another folder is another image."""
    assert FILE.of(record(7)) is WEAK
    assert len(FILE.of(record(9))) == 0
    with pytest.raises(
        RequestError, match=r"^elsewhere.png: is not among the images of 'train', for which teacher.json"
    ):
        FILE.of(dataclasses.replace(record(7), path=Path("elsewhere.png")))


def test_a_run_reads_it_for_its_training_split(tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    path.write_text(json.dumps([{"image_id": 9, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    teacher = build(PredictionsConfig(weights=path), SPLIT, "c.yaml: teacher")
    assert teacher.of(record(9)).boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    assert len(teacher.of(record(7))) == 0
    assert (teacher.classes, teacher.missing_classes, teacher.score_threshold) == (("a", "b"), (), 0.0)


def test_it_predicts_nothing_so_it_is_no_member_of_an_ensemble() -> None:
    with pytest.raises(RequestError) as caught:
        parse_member({"family": "predictions", "weights": "teacher.json"}, "teacher.members.0")
    assert str(caught.value) == (
        "teacher.members.0.family: 'predictions' cannot be a member of an ensemble: it holds boxes by image id and "
        "predicts nothing; give it as another teacher"
    )
    assert not isinstance(FILE, BlackBoxDetector)
