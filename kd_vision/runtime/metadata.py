"""What an ONNX file says of itself, in our keys or in those of ultralytics."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError

KEY_CLASSES = "kd_vision.classes"
KEY_OUTPUT_FORMAT = "kd_vision.layout"
KEY_PREPROCESSING = "kd_vision.preprocessing"
KEY_TRAINING_RUN = "kd_vision.training_run"
KEY_VERSION = "kd_vision.version"
KEY_PARITY = "kd_vision.parity"

RENAMED_FORMATS = {"dense_xywh": "dense_cxcywh"}
"""Names that earlier files carry: the boxes were centres all along."""

_DETR_HEAD = "RTDETRDecoder"
_ROW = 6


def recorded_classes(metadata: Mapping[str, str], path: Path) -> tuple[str, ...] | None:
    """Return the class names in label order; None: the file does not say them."""
    if KEY_CLASSES in metadata:
        return tuple(str(name) for name in json.loads(metadata[KEY_CLASSES]))
    if "names" not in metadata:
        return None
    try:
        names = ast.literal_eval(metadata["names"])
        if isinstance(names, Mapping):
            names = [names[index] for index in range(len(names))]
        return tuple(str(name) for name in names)
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise RequestError(f"{path}: metadata 'names' is not a list of classes: {metadata['names'][:80]}") from None


def recorded_output_format(
    metadata: Mapping[str, str], shape: tuple[int | str | None, ...], classes: int | None, path: Path
) -> str | None:
    """Return the layout; None: the file does not say it.

    Args:
        metadata: of the file.
        shape: of its first output; RT-DETR of ultralytics is known by it where the file does not name its head.
        classes: how many, where they are known.
        path: for messages.
    """
    if KEY_OUTPUT_FORMAT in metadata:
        recorded = metadata[KEY_OUTPUT_FORMAT]
        return RENAMED_FORMATS.get(recorded, recorded)
    task = metadata.get("task")
    if task is None:
        return None
    if task != "detect":
        raise RequestError(f"{path}: is a model for '{task}'; only 'detect' is supported")
    arguments = _literal(metadata.get("args", "{}"))
    if isinstance(arguments, Mapping) and arguments.get("nms"):
        return "nms"
    if metadata.get("end2end", "False") == "True":
        return "end_to_end"
    if metadata.get("head") == _DETR_HEAD:
        return _detr_format(shape, classes)
    if "head" in metadata or classes is None or len(shape) != 3 or shape[1] == 4 + classes:
        return "dense_cxcywh"
    if shape[2] == _ROW and (classes == _ROW - 4 or "end2end" not in metadata):
        return None  # YOLOv10 before that key, or RT-DETR before the other one
    return _detr_format(shape, classes) or "dense_cxcywh"


def _detr_format(shape: tuple[int | str | None, ...], classes: int | None) -> str | None:
    """Old exports give every class of a query, newer ones rows of six; with two classes nobody can tell."""
    if classes is None or len(shape) != 3 or classes == _ROW - 4:
        return None
    return {4 + classes: "detr", _ROW: "detr_rows"}.get(shape[2]) if isinstance(shape[2], int) else None


def recorded_preprocessing(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return what the file says of its preprocessing, in the words of `Preprocessing`; empty: nothing."""
    if KEY_PREPROCESSING not in metadata:
        return {}
    content = json.loads(metadata[KEY_PREPROCESSING])
    order, scale = str(content.get("channel_order", "RGB")).upper(), str(content.get("scale", "1/255"))
    ranges = {"1/255": "unit", "1": "byte"}
    if scale not in ranges:
        raise RequestError(f"{path}: metadata '{KEY_PREPROCESSING}' has scale {scale}; possible: {', '.join(ranges)}")
    said: dict[str, Any] = {
        "channel_order": "bgr" if order.startswith("BGR") else "rgb",
        "value_range": ranges[scale],
    }
    for key in ("mean", "std"):
        if content.get(key) is not None:
            said[key] = tuple(float(value) for value in content[key])
    return said


def recorded_stride(metadata: Mapping[str, str]) -> int | None:
    """Return what height and width must be multiples of; None: the file does not say it."""
    text = metadata.get("stride", "")
    return int(text) if text.isdigit() and int(text) > 0 else None


def recorded_size(metadata: Mapping[str, str]) -> int | None:
    """Return the height and width that the file recommends."""
    sizes = _literal(metadata.get("imgsz", "None"))
    if isinstance(sizes, int):
        return sizes
    return max(sizes) if isinstance(sizes, (list, tuple)) and sizes else None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
