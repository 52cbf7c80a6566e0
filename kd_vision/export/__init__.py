"""Ways to leave the laboratory: each exporter writes one file and proves it before it gets its name.

The table is data: nothing is imported until an exporter is asked for, and the contract tests run
over every entry.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_vision.core.errors import RequestError

if TYPE_CHECKING:
    from kd_vision.export.onnx import ExportedFile


@dataclass(frozen=True, slots=True)
class ExporterEntry:
    """One line of the table.

    Attributes:
        path: ``module:function``; the function is called
            ``(detector, out, config, provenance, evidence) -> ExportedFile``.
        config: ``module:class`` of its settings, with at least `image_size` and `batch`.
        check: ``module:function``, called ``(spec, out, config)``; raises what is wrong before anything is run.
        suffix: of the files it writes.
        summary: one line for people.
    """

    path: str
    config: str
    check: str
    suffix: str
    summary: str


EXPORTERS: Mapping[str, ExporterEntry] = {
    "onnx": ExporterEntry(
        path="kd_vision.export.onnx:export_onnx",
        config="kd_vision.export.onnx:OnnxExportConfig",
        check="kd_vision.export.onnx:refuse_wrong_request",
        suffix=".onnx",
        summary="ONNX graph for onnxruntime, TensorRT, OpenVINO and ultralytics.YOLO",
    ),
}


@dataclass(frozen=True, slots=True)
class Exporter:
    """What a line of the table names, imported."""

    export: Callable[..., ExportedFile]
    config: type[Any]
    check: Callable[..., None]


def load_exporter(name: str) -> Exporter:
    """Import an exporter by its name in the table."""
    entry = EXPORTERS[name]
    parts = (path.partition(":") for path in (entry.path, entry.config, entry.check))
    return Exporter(*(getattr(importlib.import_module(module), attribute) for module, _, attribute in parts))


def exporter_for(out: Path) -> str:
    """Return the name of the exporter that writes files like `out`.

    Raises:
        RequestError: no exporter writes this suffix.
    """
    for name, entry in EXPORTERS.items():
        if out.suffix.lower() == entry.suffix:
            return name
    possible = ", ".join(f"{entry.suffix} ({name})" for name, entry in EXPORTERS.items())
    raise RequestError(f"--out: {out}: no exporter writes '{out.suffix}' files; possible: {possible}")
