"""Inference on a device: images, letterbox, ONNX sessions, decoding and NMS. Needs no torch.

The public names are imported when they are first used, so that reading an image does not load onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kd_vision.core.lazy import load_attribute

if TYPE_CHECKING:
    from kd_vision.core.predictions import Detections, PredictOptions
    from kd_vision.runtime.detector import OnnxDetector
    from kd_vision.runtime.images import read_image
    from kd_vision.runtime.letterbox import letterbox_image
    from kd_vision.runtime.media import open_source
    from kd_vision.runtime.metadata import ModelMetadata
    from kd_vision.runtime.preprocessing import Preprocessing

__all__ = [
    "Detections",
    "ModelMetadata",
    "OnnxDetector",
    "PredictOptions",
    "Preprocessing",
    "letterbox_image",
    "open_source",
    "read_image",
]

_MODULES: Mapping[str, str] = {
    "Detections": "kd_vision.core.predictions",
    "ModelMetadata": "kd_vision.runtime.metadata",
    "OnnxDetector": "kd_vision.runtime.detector",
    "PredictOptions": "kd_vision.core.predictions",
    "Preprocessing": "kd_vision.runtime.preprocessing",
    "letterbox_image": "kd_vision.runtime.letterbox",
    "open_source": "kd_vision.runtime.media",
    "read_image": "kd_vision.runtime.images",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return load_attribute(f"{_MODULES[name]}:{name}")
