"""Builds detectors of the ultralytics package."""

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

from kd_vision.detectors.ultralytics.common import FamilyDetector
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.detectors.ultralytics.rtdetr import RtdetrDetector
from kd_vision.detectors.ultralytics.weights import construct, load

SETTINGS._save = lambda: None  # our use of the package must not rewrite the user's settings file
dict.update(SETTINGS, sync=False)


def build(config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str) -> FamilyDetector:
    """Build a detector with the adapter that its head needs.

    Args:
        config: the model.
        classes: names that the detector predicts. A model to be trained gets a head for them;
            None: the model's own (a teacher, or a model to evaluate).
        where: config path for messages, e.g. ``student``.

    Raises:
        RequestError: the model is unknown, the file is missing, unreadable, or not a detector.
    """
    loaded = load(config, classes, where)
    detector = _adapter(loaded.net)(loaded.net, loaded.classes, loaded.name)
    detector.trained_size = loaded.trained_size
    return detector


def rebuild(architecture: Mapping[str, Any]) -> FamilyDetector:
    """Build the bare detector that `FamilyDetector.architecture` described, with fresh weights."""
    layout, classes = copy.deepcopy(architecture["yaml"]), architecture["classes"]
    net = construct(layout, int(layout.get("channels", 3)), len(classes))
    return _adapter(net)(net, classes, architecture["name"])


def _adapter(net: tasks.DetectionModel) -> type[FamilyDetector]:
    return RtdetrDetector if isinstance(net.model[-1], RTDETRDecoder) else UltralyticsDetector
