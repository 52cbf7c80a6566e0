"""Export formats: who writes a format, who opens it, and how closely it must agree with the model.

The table is data: nothing is imported until a format is asked for, and the contract tests run over every entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.lazy import load_attribute, refuse_missing_packages

if TYPE_CHECKING:
    from kd_vision.core.latency import Latency
    from kd_vision.core.spec import DetectorSpec
    from kd_vision.detectors.base import Predictor
    from kd_vision.export.base import ExportConfig
    from kd_vision.export.parity import ParityLimits, ParityReport


@dataclass(frozen=True, slots=True)
class PrecisionEntry:
    """Number type in which a format stores and computes.

    Attributes:
        limits: ``module:attribute``, the `ParityLimits` that an export must keep to.
        calibration_images: training images from which the exporter measures value ranges; 0: it needs none.
    """

    limits: str
    calibration_images: int = 0


@dataclass(frozen=True, slots=True)
class ExporterEntry:
    """One export format. What is named ``module:attribute`` is imported by `load_exporter`.

    Attributes:
        suffix: of the file, or of the main file of several.
        exporter: ``(detector, path, config, provenance, calibration) -> output format``; writes `path`, and files
            that belong to it into the same folder. `calibration` is an iterable of `ImageBatch`, or None.
        config: class of its settings, an `ExportConfig`.
        check: ``(spec, config) -> list of errors``, what only this format refuses.
        opener: ``(path) -> Predictor``, for the parity gate and for ``evaluate`` and ``predict``.
        recorder: ``(path, ParityReport) -> None``, writes the report of the parity gate into the file.
        timer: ``(path) -> Latency`` of one image; None: latency is not measured.
        precisions: supported number types.
        packages: import names of what the exporter needs.
        extra: ``pip install kd-vision[EXTRA]`` installs them.
        summary: one line for people.
    """

    suffix: str
    exporter: str
    config: str
    check: str
    opener: str
    recorder: str
    timer: str | None
    precisions: Mapping[str, PrecisionEntry]
    packages: tuple[str, ...]
    extra: str
    summary: str


EXPORTERS: Mapping[str, ExporterEntry] = {
    "onnx": ExporterEntry(
        suffix=".onnx",
        exporter="kd_vision.export.onnx:write_onnx",
        config="kd_vision.export.onnx:OnnxExportConfig",
        check="kd_vision.export.onnx:config_errors",
        opener="kd_vision.teachers.onnx:OnnxPredictor",
        recorder="kd_vision.export.onnx:record_parity",
        timer="kd_vision.export.latency:measure_latency",
        precisions={"fp32": PrecisionEntry(limits="kd_vision.export.parity:FP32_LIMITS")},
        packages=("onnx", "onnxslim", "onnxruntime"),
        extra="onnx",
        summary="ONNX graph for onnxruntime, TensorRT, OpenVINO and ultralytics.YOLO",
    ),
}


@dataclass(frozen=True, slots=True)
class Exporter:
    """One export format, imported; attributes as in `ExporterEntry`."""

    format: str
    entry: ExporterEntry
    config: type[ExportConfig]
    check: Callable[[DetectorSpec, Any], list[str]]
    write: Callable[..., str]
    open: Callable[[Path], Predictor]
    record: Callable[[Path, ParityReport], None]
    time: Callable[[Path], Latency] | None

    def limits(self, precision: str) -> ParityLimits:
        """Return the parity limits of a supported precision."""
        limits: ParityLimits = load_attribute(self.entry.precisions[precision].limits)
        return limits


def load_exporter(name: str) -> Exporter:
    """Import an export format by its name in the table.

    Raises:
        RequestError: there is no such format, or its packages are not installed.
    """
    if name not in EXPORTERS:
        raise RequestError(f"--format: '{name}' is unknown{suggest(name, EXPORTERS)}")
    entry = EXPORTERS[name]
    refuse_missing_packages("--format", name, entry.packages, entry.extra)
    return Exporter(
        format=name,
        entry=entry,
        config=load_attribute(entry.config),
        check=load_attribute(entry.check),
        write=load_attribute(entry.exporter),
        open=load_attribute(entry.opener),
        record=load_attribute(entry.recorder),
        time=None if entry.timer is None else load_attribute(entry.timer),
    )


def exporter_for(out: Path, name: str | None = None) -> Exporter:
    """Import the export format that was asked for by name, else by the suffix of the file to write.

    Raises:
        RequestError: no format has this name or suffix, or several have this suffix; see also `load_exporter`.
    """
    if name is not None:
        return load_exporter(name)
    names = formats_of(out)
    if len(names) > 1:
        raise RequestError(
            f"--out: {out}: the formats {', '.join(names)} end with '{out.suffix}'; choose one by --format"
        )
    if not names:
        raise RequestError(f"--out: {out}: no exporter writes '{out.suffix}' files; possible: {_possible()}")
    return load_exporter(names[0])


def formats_of(path: Path) -> tuple[str, ...]:
    """Return the names of the export formats whose files end like `path`."""
    return tuple(name for name, entry in EXPORTERS.items() if path.suffix.lower() == entry.suffix)


def open_exported(path: Path) -> Predictor:
    """Open an exported model by its suffix; formats of one suffix share an opener.

    Raises:
        RequestError: no format has this suffix, or the file cannot be read.
    """
    names = formats_of(path)
    if not names:
        raise RequestError(f"{path}: '{path.suffix}' is not an exported model; possible: {_possible()}")
    predictor: Predictor = load_attribute(EXPORTERS[names[0]].opener)(path)
    return predictor


def _possible() -> str:
    return ", ".join(f"{entry.suffix} ({name})" for name, entry in EXPORTERS.items())
