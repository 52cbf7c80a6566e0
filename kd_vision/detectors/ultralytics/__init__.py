"""The ultralytics family behind our contract. The only package that imports ultralytics.

Dense heads (YOLO v3 to v12, 26) are in `dense`, the transformer head (RT-DETR) in `rtdetr`, files in `weights`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

# Before the import: no checks, no downloads, no installs on the user's behalf, nothing sent home.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")

from ultralytics.nn import tasks
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.utils import SETTINGS

from kd_vision.detectors.ultralytics.assign import assign_aligned
from kd_vision.detectors.ultralytics.common import FamilyDetector
from kd_vision.detectors.ultralytics.config import UltralyticsConfig, known_models
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.detectors.ultralytics.rtdetr import RtdetrDetector, assign_hungarian
from kd_vision.detectors.ultralytics.weights import construct, load

__all__ = [
    "RtdetrDetector",
    "UltralyticsConfig",
    "UltralyticsDetector",
    "assign_aligned",
    "assign_hungarian",
    "build",
    "known_models",
    "rebuild",
]

SETTINGS._save = lambda: None  # our use of the package must not rewrite the user's settings file
dict.update(SETTINGS, sync=False)


def build(config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str) -> FamilyDetector:
    """Build a detector; its head says which adapter it gets.

    Args:
        config: which model.
        classes: names the detector must answer with. A model to be trained gets a head for them;
            None: the model's own (a teacher, or a model to evaluate).
        where: config path for messages, e.g. ``student``.

    Raises:
        RequestError: the model is unknown, the file is missing, unreadable, or not a detector.
    """
    loaded = load(config, classes, where)
    detector = _adapter(loaded.net)(loaded.net, loaded.classes, loaded.name)
    detector.trained_size = loaded.size
    return detector


def rebuild(architecture: Mapping[str, Any]) -> FamilyDetector:
    """Build the bare detector that `FamilyDetector.architecture` described, with fresh weights."""
    layout, classes = copy.deepcopy(architecture["yaml"]), architecture["classes"]
    net = construct(layout, int(layout.get("channels", 3)), len(classes))
    return _adapter(net)(net, classes, architecture["name"])


def _adapter(net: tasks.DetectionModel) -> type[FamilyDetector]:
    return RtdetrDetector if isinstance(net.model[-1], RTDETRDecoder) else UltralyticsDetector
