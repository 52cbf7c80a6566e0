"""The torchvision family behind our contract, as teacher and as student.

Dense heads (RetinaNet, FCOS, SSD, SSDLite) are in `one_stage`, Faster R-CNN in `two_stage`, names and networks in
`config` and `models`, files in `weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_vision.detectors.torchvision.common import TorchvisionDetector
from kd_vision.detectors.torchvision.config import TorchvisionConfig, known_models
from kd_vision.detectors.torchvision.models import Architecture, construct
from kd_vision.detectors.torchvision.one_stage import FcosDetector, OneStageDetector, RetinaNetDetector, SsdDetector
from kd_vision.detectors.torchvision.two_stage import FasterRcnnDetector
from kd_vision.detectors.torchvision.weights import load

__all__ = [
    "FasterRcnnDetector",
    "FcosDetector",
    "OneStageDetector",
    "RetinaNetDetector",
    "SsdDetector",
    "TorchvisionConfig",
    "TorchvisionDetector",
    "build",
    "known_models",
    "rebuild",
]

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
        config: which model.
        classes: names the detector must answer with. A model to be trained gets a head for them;
            None: the model's own (a teacher, or a model to evaluate).
        where: config path for messages, e.g. ``student``.

    Raises:
        RequestError: the file is missing, unreadable or of another model, or a download fails.
    """
    loaded = load(config, classes, where)
    detector = _adapted(loaded.net, loaded.arch)
    detector.trained_size = loaded.size
    return detector


def rebuild(architecture: Mapping[str, Any]) -> TorchvisionDetector:
    """Build the bare detector that `TorchvisionDetector.architecture` described, with fresh weights."""
    arch = Architecture.from_mapping(architecture)
    return _adapted(construct(arch), arch)


def _adapted(net: Any, arch: Architecture) -> TorchvisionDetector:
    return _ADAPTERS[arch.parts.kind](net, arch)
