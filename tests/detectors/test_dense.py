"""What every head can do with its rows, by hand-computed numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_vision.core.predictions import PredictOptions
from kd_vision.detectors.dense import refine_by_rows
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.family import build


@pytest.mark.parametrize(
    ("width", "scores", "best"),
    [
        (7.0, (0.04, 0.90), 1),  # 0.9^6 * 0.2 = 0.106 < 0.7^6 * 0.949 = 0.112
        (8.0, (0.25, 0.90), 0),  # 0.9^6 * 0.5 = 0.266 > 0.8^6 * 0.949 = 0.249
    ],
)
def test_a_box_is_judged_by_overlap_to_the_sixth_times_the_root_of_the_score(
    width: float, scores: tuple[float, float], best: int
) -> None:
    own = torch.tensor([[[0.0, 0.0, 9.0, 10.0], [0.0, 0.0, width, 10.0]]])
    probs = torch.tensor([[[scores[0], 0.01], [0.02, scores[1]]]])
    found = refine_by_rows(own, probs, torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]))
    assert torch.equal(found.class_probs[0, 0], probs[0, best])
    assert torch.equal(found.boxes_xyxy[0, 0], own[0, best])


def test_a_box_that_meets_no_row_is_of_no_class_and_stays_as_it_is() -> None:
    own, probs = torch.tensor([[[0.0, 0.0, 9.0, 10.0]]]), torch.tensor([[[0.8, 0.1]]])
    far = torch.tensor([[[50.0, 50.0, 60.0, 60.0]]])
    found = refine_by_rows(own, probs, far)
    assert found.class_probs.tolist() == [[[0.0, 0.0]]]
    assert torch.equal(found.boxes_xyxy, far)


def test_a_detector_settled_for_inference_says_the_same(awake_file: Callable[[str], Path]) -> None:
    for name in ("yolov8n", "yolo26n"):
        detector = build(UltralyticsConfig(weights=awake_file(name)), None, "teacher").eval()
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        before = detector.detect(images, PredictOptions(max_detections=20))
        detector.fuse()
        for one, other in zip(before, detector.detect(images, PredictOptions(max_detections=20)), strict=True):
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        assert not [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert len(detector(images, signals=frozenset({"grid"})).grids) == (2 if name == "yolo26n" else 1)
