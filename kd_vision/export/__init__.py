"""Ways to leave the laboratory: each exporter writes one file and proves it before it gets its name.

The table is data: nothing is imported until an exporter is asked for, and the contract tests run
over every entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kd_vision.core.errors import RequestError


@dataclass(frozen=True, slots=True)
class ExporterEntry:
    """One line of the table.

    Attributes:
        path: ``module:function``; the function is called
            ``(detector, out, config, provenance, evidence) -> ExportedFile``.
        config: ``module:class`` of its settings.
        suffix: of the files it writes.
        summary: one line for people.
    """

    path: str
    config: str
    suffix: str
    summary: str


EXPORTERS: Mapping[str, ExporterEntry] = {
    "onnx": ExporterEntry(
        path="kd_vision.export.onnx:export_onnx",
        config="kd_vision.export.onnx:OnnxExportConfig",
        suffix=".onnx",
        summary="ONNX graph for onnxruntime, TensorRT, OpenVINO and ultralytics.YOLO",
    ),
}


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
