"""The table of detector families: torch packages whose models can be students and teachers.

The table is data: nothing is imported until a family is asked for, and its config is read without torch. A new family
is one package and one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.lazy import load_attribute, refuse_missing_packages
from kd_vision.detectors.checkpoints import read_note

if TYPE_CHECKING:
    from kd_vision.core.validation import StrictModel
    from kd_vision.detectors.base import Detector

HeadKind = Literal["dense_bins", "dense", "anchors", "two_stage", "queries"]
"""What a row of the head is: a grid point whose box sides are distributions over bins (YOLO v8 to v12), a grid point
that regresses its box (YOLO26, FCOS), an anchor (RetinaNet, SSD), a region of a second stage (Faster R-CNN), or a query
of a transformer (RT-DETR)."""


@dataclass(frozen=True, slots=True)
class FamilyEntry:
    """Where a family lives, and what is known of it before it is imported.

    Attributes:
        module: dotted path of the adapter. It offers ``build(config, classes, where) -> Detector`` and
            ``rebuild(architecture) -> Detector``.
        config: ``module:class`` of its typed settings, with `weights` and `trust` among them; importing it loads no
            torch.
        head: ``module:function`` from the typed settings to the kind of head; importing and calling it loads no torch.
        package: import name of the package it adapts.
        extra: of ``pip install kd-vision[EXTRA]``, which installs that package.
        weights: suffixes of the files of weights that `build` opens.
        summary: one line for people.
        roles: what its detectors can be.
    """

    module: str
    config: str
    head: str
    package: str
    extra: str
    weights: frozenset[str]
    summary: str
    roles: frozenset[str] = frozenset({"teacher", "student"})


DEFAULT_FAMILY = "ultralytics"

FAMILIES: Mapping[str, FamilyEntry] = {
    "ultralytics": FamilyEntry(
        module="kd_vision.detectors.ultralytics.family",
        config="kd_vision.detectors.ultralytics.config:UltralyticsConfig",
        head="kd_vision.detectors.ultralytics.config:head_kind",
        package="ultralytics",
        extra="ultralytics",
        weights=frozenset({".pt"}),
        summary="YOLO v3 to v12 and 26, RT-DETR; any scale, from YAML or .pt",
    ),
    "torchvision": FamilyEntry(
        module="kd_vision.detectors.torchvision.family",
        config="kd_vision.detectors.torchvision.config:TorchvisionConfig",
        head="kd_vision.detectors.torchvision.config:head_kind",
        package="torchvision",
        extra="torchvision",
        weights=frozenset({".pt", ".pth"}),
        summary="RetinaNet, FCOS, SSD, SSDLite, Faster R-CNN on ResNets and MobileNets",
    ),
}


def family_entry(family: str, where: str) -> FamilyEntry:
    """Return the entry of a family.

    Args:
        family: its name.
        where: key of the config for messages, e.g. ``student``.

    Raises:
        RequestError: there is no such family.
    """
    entry = FAMILIES.get(family)
    if entry is None:
        raise RequestError(f"{where}.family: unknown family '{family}'{suggest(family, FAMILIES)}")
    return entry


def family_config(family: str, where: str) -> type[StrictModel]:
    """Import the typed settings of a family; no torch is loaded.

    Raises:
        RequestError: see `family_entry`.
    """
    config: type[StrictModel] = load_attribute(family_entry(family, where).config)
    return config


def family_module(family: str, where: str) -> Any:
    """Import the adapter of a family; see `FamilyEntry` for what it offers.

    Raises:
        RequestError: there is no such family, or its package is not installed.
    """
    entry = family_entry(family, where)
    refuse_missing_packages(f"{where}.family", family, [entry.package], entry.extra)
    return importlib.import_module(entry.module)


def head_kind(family: str, config: StrictModel) -> HeadKind:
    """Return the kind of head of the detector that a config describes; no torch is loaded.

    It is read from the model's own description: its YAML, its architecture name, or what a file of weights holds.
    """
    kind: HeadKind = load_attribute(family_entry(family, "model").head)(config)
    return kind


def family_of(path: Path) -> str:
    """Return the family that our note in a file of weights names; the default family for files without a note."""
    family = str(read_note(path).get("family", DEFAULT_FAMILY))
    return family if family in FAMILIES else DEFAULT_FAMILY


def open_detector(path: Path, trust: bool, where: str) -> Detector:
    """Open a file of weights by the family that it is of, with the classes that it names.

    Args:
        path: the file.
        trust: load a pickle that needs classes outside the allow-list.
        where: file or key for messages.

    Raises:
        RequestError: the file cannot be opened, or the package of its family is not installed.
    """
    family = family_of(path)
    config = family_config(family, where).model_validate({"weights": path, "trust": trust})
    detector: Detector = family_module(family, where).build(config, None, where)
    return detector
