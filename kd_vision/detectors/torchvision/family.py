"""Builds detectors of torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_vision.detectors.torchvision.common import TorchvisionDetector
from kd_vision.detectors.torchvision.config import TorchvisionConfig
from kd_vision.detectors.torchvision.models import Architecture, construct
from kd_vision.detectors.torchvision.one_stage import FcosDetector, RetinaNetDetector, SsdDetector
from kd_vision.detectors.torchvision.two_stage import FasterRcnnDetector
from kd_vision.detectors.torchvision.weights import load

_ADAPTERS: dict[str, type[TorchvisionDetector]] = {
    "retinanet": RetinaNetDetector,
    "fcos": FcosDetector,
    "fasterrcnn": FasterRcnnDetector,
    "ssd": SsdDetector,
    "ssdlite": SsdDetector,
}


def build(config: TorchvisionConfig, classes: tuple[str, ...] | None, where: str) -> TorchvisionDetector:
    """Build a detector.

    Args:
        config: the model.
        classes: names that the detector predicts. A model to be trained gets a head for them;
            None: the model's own (a teacher, or a model to evaluate).
        where: config path for messages, e.g. ``student``.

    Raises:
        RequestError: the file is missing, unreadable or of another model, or a download fails.
    """
    net, arch, trained_size = load(config, classes, where)
    detector = _ADAPTERS[arch.parts.kind](net, arch)
    detector.trained_size = trained_size
    return detector


def rebuild(architecture: Mapping[str, Any]) -> TorchvisionDetector:
    """Build the bare detector that `TorchvisionDetector.architecture` described, with fresh weights."""
    arch = Architecture.from_mapping(architecture)
    return _ADAPTERS[arch.parts.kind](construct(arch), arch)
