from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.detectors.base import PixelPredictor, PredictOptions
from kd_vision.teachers.predictions_file import PredictionsConfig, PredictionsFile, build

WEAK = Detections(
    np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32), np.array([0.9, 0.0002], np.float32), np.array([1, 0])
)
FILE = PredictionsFile({7: WEAK, 9: Detections.empty()}, ("a", "b"), Path("teacher.json"))


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
        "teacher.json: was not read for image id 8, 11; evaluate it on the split it was made for"
    )


def test_images_without_ids_are_an_error() -> None:
    with pytest.raises(RequestError) as caught:
        FILE.predict(dataclasses.replace(batch(7), image_ids=()))
    assert str(caught.value) == "teacher.json: answers by image id, and these images have none; give a data set"


def test_it_cannot_be_built_as_something_that_sees() -> None:
    config = PredictionsConfig(weights=Path("teacher.json"))
    with pytest.raises(RequestError) as caught:
        build(config, None, "teacher")
    assert str(caught.value) == (
        "teacher: teacher.json answers by image id and looks at no pixels, so it can be neither a member of an "
        "ensemble nor shown tiles; give it as the teacher itself, or as 'knowledge'"
    )
    assert not isinstance(FILE, PixelPredictor)
