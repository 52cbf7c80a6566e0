"""Every image gets exactly one result, without gradients, and progress is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from kd_vision.core.batch import ImageBatch, Targets
from kd_vision.core.predictions import Detections
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import PredictOptions
from kd_vision.evaluation.runner import predict_all


def batch(*image_ids: int, images: int | None = None) -> ImageBatch:
    count = len(image_ids) if images is None else images
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    return ImageBatch(torch.zeros(count, 3, 8, 8), nothing, torch.ones(count, dtype=torch.bool), image_ids)


@dataclass
class OneBoxPerImage:
    """Answers with one box whose left side is the image id."""

    make: Callable[..., Detections]
    answers: int | None = None
    seen: list[tuple[bool, float]] = field(default_factory=list)
    spec: DetectorSpec = DetectorSpec("test", "one-box", ("car",), {}, {}, frozenset({"detections"}))

    def predict(self, given: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        self.seen.append((torch.is_grad_enabled(), options.score_threshold))
        found = [self.make([[image_id, 0, 99, 9]], [0.5], [0]) for image_id in given.image_ids]
        return found if self.answers is None else found[: self.answers]


def test_answers_are_gathered_by_image_id(make_detections: Callable[..., Detections]) -> None:
    predictor = OneBoxPerImage(make_detections)
    done: list[int] = []
    found = predict_all(predictor, [batch(7, 3), batch(5)], PredictOptions(score_threshold=0.3), done.append)
    assert {image_id: answer.boxes_xyxy[0, 0] for image_id, answer in found.items()} == {7: 7, 3: 3, 5: 5}
    assert done == [2, 3]
    assert predictor.seen == [(False, 0.3), (False, 0.3)]


def test_an_image_that_comes_twice_is_an_error(make_detections: Callable[..., Detections]) -> None:
    with pytest.raises(ValueError, match="image 7 comes twice; evaluation needs every image once"):
        predict_all(OneBoxPerImage(make_detections), [batch(7), batch(7)])


def test_a_predictor_that_loses_images_is_an_error(make_detections: Callable[..., Detections]) -> None:
    with pytest.raises(ValueError, match="one-box returned 1 results for 2 images"):
        predict_all(OneBoxPerImage(make_detections, answers=1), [batch(1, 2)])


def test_a_batch_without_ids_is_an_error(make_detections: Callable[..., Detections]) -> None:
    with pytest.raises(ValueError, match="a batch of 2 images has 0 image ids"):
        predict_all(OneBoxPerImage(make_detections), [batch(images=2)])
