"""Detector families. A new family is one file and one line here.

The table is data: nothing is imported until a family is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
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


FAMILIES: dict[str, FamilyEntry] = {
    "ultralytics": FamilyEntry(
        "kd_vision.detectors.ultralytics",
        "UltralyticsConfig",
        frozenset({"teacher", "student"}),
        "YOLO v3 to v12 and 26, any scale, from YAML or .pt",
    ),
}


def family_module(family: str, where: str) -> Any:
    """Import the adapter of a family.

    Raises:
        RequestError: there is no such family.
    """
    entry = FAMILIES.get(family)
    if entry is None:
        raise RequestError(f"{where}.family: unknown family '{family}'{suggest(family, FAMILIES)}")
    return importlib.import_module(entry.module)
