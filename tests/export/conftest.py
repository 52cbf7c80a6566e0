"""Tiny detectors whose untrained heads nevertheless find boxes of very different scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kd_vision.detectors.ultralytics import UltralyticsConfig, UltralyticsDetector, build

SIZE = 96
CLASSES = ("car", "bus", "truck")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_lively(model: str, channels: int = 3) -> UltralyticsDetector:
    """Settle BatchNorm on noise and spread the logits, so that scores and sizes do not tie."""
    torch.manual_seed(0)
    detector = build(UltralyticsConfig(model=model, input_channels=channels), CLASSES, "student").train()
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what it sees
        norm.reset_running_stats()
    with torch.no_grad():
        for _ in range(2):
            detector(torch.rand(4, channels, SIZE, SIZE))
    head = detector.head
    branches = [(head.cv2, head.cv3)]
    if detector.spec.end_to_end:
        branches.append((head.one2one_cv2, head.one2one_cv3))
    for box_convs, class_convs in branches:
        for box, label in zip(box_convs, class_convs):
            box[-1].weight.data *= 4.0
            label[-1].weight.data *= 8.0
            label[-1].bias.data.fill_(-3.0)
    return detector.eval()


@pytest.fixture(scope="session")
def lively() -> Callable[[str], UltralyticsDetector]:
    made: dict[str, UltralyticsDetector] = {}

    def get(model: str) -> UltralyticsDetector:
        if model not in made:
            made[model] = make_lively(model)
        return made[model]

    return get
