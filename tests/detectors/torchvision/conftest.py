"""Small models of every kind, built once, and the family's own forward pass to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.detectors.torchvision.common import TorchvisionDetector
from kd_vision.detectors.torchvision.config import TorchvisionConfig
from kd_vision.detectors.torchvision.family import build

SIZE = 64
CLASSES = ("car", "bus", "person")
PROPOSALS = {"fasterrcnn_resnet18_fpn": 60}


@pytest.fixture(scope="session")
def make() -> Callable[..., TorchvisionDetector]:
    """Return a function that gives a copy of a model in training mode; those of one name are alike."""
    built: dict[str, TorchvisionDetector] = {}

    def of(name: str) -> TorchvisionDetector:
        if name not in built:
            torch.manual_seed(0)
            built[name] = build(TorchvisionConfig(model=name, proposals=PROPOSALS.get(name)), CLASSES, "student")
        return copy.deepcopy(built[name]).train()

    return of


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def truth() -> Targets:
    """Two boxes in image 1, one in image 0, in no order."""
    boxes = torch.tensor([[20.0, 8.0, 60.0, 50.0], [4.0, 6.0, 36.0, 40.0], [2.0, 30.0, 22.0, 62.0]])
    return Targets(torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1]), boxes)


@pytest.fixture
def pseudo_labels(truth: Targets) -> PseudoLabels:
    """The same boxes as a teacher would say them."""
    probs = torch.full((3, 3), 0.1)
    probs[torch.arange(3), truth.labels] = 0.8
    return PseudoLabels(truth.image_index, truth.boxes_xyxy, probs, torch.full((3,), 0.8), torch.zeros(3).bool())


@pytest.fixture(scope="session")
def own_model() -> Callable[..., Any]:
    """Return a function that gives the package's own model with a detector's weights, its resizing switched off."""

    def of(detector: TorchvisionDetector, size: int = SIZE) -> Any:
        net = copy.deepcopy(detector.net)
        net.transform.min_size, net.transform.max_size = (size,), size
        net.transform.fixed_size, net.transform.size_divisible = None, 1
        return net

    return of
