"""Tiny detectors whose untrained heads give boxes of very different scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.detectors.ultralytics.family import build
from kd_vision.export.parity import synthetic_inputs

SIZE = 96
CLASSES = ("car", "bus", "truck")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_lively(model: str, channels: int = 3, classes: tuple[str, ...] = CLASSES) -> UltralyticsDetector:
    """Set the BatchNorm statistics on the gate's own images and spread the logits, so that scores do not tie."""
    torch.manual_seed(0)
    detector = build(UltralyticsConfig(model=model, input_channels=channels), classes, "student").train()
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches
        norm.reset_running_stats()
    batches = synthetic_inputs(detector.spec, SIZE).batches
    images = torch.cat([batch.as_float().images for batch in batches])
    with torch.no_grad():
        detector(images)
    head = detector.head
    branches = {"one2many": (head.cv2, head.cv3)}
    if detector.spec.end_to_end:
        branches["one2one"] = (head.one2one_cv2, head.one2one_cv3)
    detector.eval()
    for name, (box_convs, class_convs) in branches.items():
        _spread(detector, images, name, "scores", class_convs, spread=2.0, bias=-3.0)
        direct = head.reg_max == 1  # distances themselves: they must stay positive
        _spread(detector, images, name, "boxes", box_convs, spread=0.5 if direct else 3.0, bias=2.0)
    return detector


@torch.no_grad()
def _spread(
    detector: UltralyticsDetector,
    images: torch.Tensor,
    branch: str,
    what: str,
    convs: torch.nn.ModuleList,
    spread: float,
    bias: float,
) -> None:
    """Scale the last convolutions so that their outputs have the standard deviation `spread` and the mean `bias`."""
    for conv in convs:
        conv[-1].bias.zero_()
    outputs = detector.net(images)
    deviation = float((outputs[branch] if detector.spec.end_to_end else outputs)[what].std())
    for conv in convs:
        conv[-1].weight.mul_(spread / deviation)
        conv[-1].bias.fill_(bias)


@pytest.fixture(scope="session")
def lively() -> Callable[..., UltralyticsDetector]:
    """Return a function from name, channels and classes to a detector; each is made once."""
    made: dict[tuple[str, int, tuple[str, ...]], UltralyticsDetector] = {}

    def get(model: str, channels: int = 3, classes: tuple[str, ...] = CLASSES) -> UltralyticsDetector:
        key = (model, channels, classes)
        if key not in made:
            made[key] = make_lively(model, channels, classes)
        return made[key]

    return get


@pytest.fixture(scope="session")
def student_file(
    lively: Callable[..., UltralyticsDetector], tmp_path_factory: pytest.TempPathFactory, squares: Path
) -> Path:
    """student.pt of a run on the squares at 64 px: untrained, but it detects boxes."""
    run = tmp_path_factory.mktemp("runs") / "lively-run"
    run.mkdir()
    (run / "config.yaml").write_text(
        f"data: {squares}\nimage_size: 64\nstudent: {{family: ultralytics, model: yolov8n}}\n"
    )
    lively("yolov8n", 3, ("red", "blue")).save(run / "student.pt", {"image_size": "64"})
    return run / "student.pt"
