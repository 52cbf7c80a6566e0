"""Detector families. A new family is one file and one line here.

The table is data: nothing is imported until a family is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError, suggest


@dataclass(frozen=True, slots=True)
class FamilyEntry:
    """Where a family lives.

    Attributes:
        module: dotted path of the adapter; it offers `build(config, classes, where)`.
        config: name of its typed config in that module.
        roles: what its detectors can be.
        summary: one line for people.
    """

    module: str
    config: str
    roles: frozenset[str]
    summary: str


DEFAULT_FAMILY = "ultralytics"

FAMILIES: dict[str, FamilyEntry] = {
    "ultralytics": FamilyEntry(
        "kd_vision.detectors.ultralytics",
        "UltralyticsConfig",
        frozenset({"teacher", "student"}),
        "YOLO v3 to v12 and 26, RT-DETR; any scale, from YAML or .pt",
    ),
    "onnx": FamilyEntry(
        "kd_vision.teachers.onnx",
        "OnnxConfig",
        frozenset({"teacher"}),
        "an ONNX file: ours, ultralytics, torchvision, YOLOX, DETR and RT-DETR",
    ),
    "predictions": FamilyEntry(
        "kd_vision.teachers.predictions_file",
        "PredictionsConfig",
        frozenset({"teacher"}),
        "a COCO result file: boxes by image id, made by anything",
    ),
    "ensemble": FamilyEntry(
        "kd_vision.teachers.ensemble",
        "EnsembleConfig",
        frozenset({"teacher"}),
        "several teachers whose boxes are fused into one answer",
    ),
    "torchvision": FamilyEntry(
        "kd_vision.detectors.torchvision",
        "TorchvisionConfig",
        frozenset({"teacher", "student"}),
        "RetinaNet, FCOS, SSD, SSDLite, Faster R-CNN on ResNets and MobileNets",
    ),
    "labels": FamilyEntry(
        "kd_vision.teachers.ground_truth",
        "LabelsConfig",
        frozenset({"teacher"}),
        "the training labels themselves: a control that knows nothing more",
    ),
    "self": FamilyEntry(
        "kd_vision.teachers.ema",
        "SelfConfig",
        frozenset({"teacher"}),
        "the student's own moving average",
    ),
}


def family_of(path: Path) -> str:
    """Family of a ``.pt`` file: as our own files say; any other is of the family that hands out whole models."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a pickle of foreign classes, a torn file: the family's own reader says what is wrong with it
        return DEFAULT_FAMILY
    note = content.get("kd_vision") if isinstance(content, dict) else None
    family = str(note.get("family", DEFAULT_FAMILY)) if isinstance(note, dict) else DEFAULT_FAMILY
    return family if family in FAMILIES else DEFAULT_FAMILY


def family_module(family: str, where: str) -> Any:
    """Import the adapter of a family.

    Raises:
        RequestError: there is no such family.
    """
    entry = FAMILIES.get(family)
    if entry is None:
        raise RequestError(f"{where}.family: unknown family '{family}'{suggest(family, FAMILIES)}")
    return importlib.import_module(entry.module)
