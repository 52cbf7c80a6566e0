"""Tiny detectors whose untrained heads nevertheless find boxes of very different scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kd_vision.detectors.ultralytics import UltralyticsConfig, UltralyticsDetector, build
from kd_vision.export.parity import synthetic_inputs

SIZE = 96
CLASSES = ("car", "bus", "truck")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_lively(model: str, channels: int = 3, classes: tuple[str, ...] = CLASSES) -> UltralyticsDetector:
    """Settle BatchNorm on the gate's own images and spread the logits, so that scores do not tie."""
    torch.manual_seed(0)
    detector = build(UltralyticsConfig(model=model, input_channels=channels), classes, "student").train()
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what it sees
        norm.reset_running_stats()
    shown = synthetic_inputs(detector.spec, SIZE).batches
    images = torch.cat([batch.as_float().images for batch in shown])
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
    """Scale the last convolutions so that what they give varies by `spread` around `bias`."""
    for conv in convs:
        conv[-1].bias.zero_()
    now = float(detector.net(images)[branch][what].std()) if detector.spec.end_to_end else None
    now = now or float(detector.net(images)[what].std())
    for conv in convs:
        conv[-1].weight.mul_(spread / now)
        conv[-1].bias.fill_(bias)


@pytest.fixture(scope="session")
def lively() -> Callable[..., UltralyticsDetector]:
    """Give a detector by name, channels and classes; each is made once."""
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
    """student.pt of a run on the squares, 64 px, that nobody has trained but that finds boxes."""
    run = tmp_path_factory.mktemp("runs") / "lively-run"
    run.mkdir()
    (run / "config.yaml").write_text(
        f"data: {squares}\nimage_size: 64\nstudent: {{family: ultralytics, model: yolov8n}}\n"
    )
    lively("yolov8n", 3, ("red", "blue")).save(run / "student.pt", {"image_size": "64"})
    return run / "student.pt"
