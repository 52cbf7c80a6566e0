"""Exports a model to a file for the device and proves that both detect the same boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.core.fingerprint import file_sha256
from kd_vision.core.latency import Latency
from kd_vision.core.progress import Progress, ProgressFactory, log_progress, no_progress
from kd_vision.core.validation import validate
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.loader import eval_batches
from kd_vision.detectors.base import Detector
from kd_vision.export import Exporter, exporter_for
from kd_vision.export.base import ExportConfig, export_detector, refuse_wrong_request
from kd_vision.export.parity import ParityInputs, ParityReport
from kd_vision.pipeline.evaluate import check_classes
from kd_vision.pipeline.models import LoadedModel, load_model

_BATCH = 8
_CALIBRATION_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Result of an export.

    Attributes:
        path: the file, or the main file of several.
        parity: report of the parity gate.
        latency: of one image on one CPU thread; None for a fixed batch above one, for a format that is not
            timed, or without `with_latency`.
        output_format: meaning of the output.
        size_bytes: of all files that were written.
        image_size: height and width of the input.
    """

    path: Path
    parity: ParityReport
    latency: Latency | None
    output_format: str
    size_bytes: int
    image_size: int


def run_export(
    model: Path | str,
    out: Path | str,
    data: Path | str | None = None,
    split: str = "val",
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    trust: bool = False,
    with_latency: bool = True,
    progress: ProgressFactory = log_progress,
    export_format: str | None = None,
) -> ExportResult:
    """Export a model and prove that the file detects the same boxes.

    Args:
        model: run directory, ``.ckpt`` or ``.pt``.
        out: the file to write.
        data: data descriptor; the parity gate then compares on its split, AP included. None: on seeded
            noise and drawn shapes.
        split: of the data.
        image_size: input side; None: as trained.
        options: of the format's config, without `image_size`, e.g. those of `OnnxExportConfig`.
        trust: allow a pickle outside the allow-list.
        with_latency: measure the time of one image.
        progress: receives the progress.
        export_format: key of `EXPORTERS`; None: the one whose suffix `out` has.

    Raises:
        RequestError: the request is wrong.
        GateError: the file does not detect the same boxes; it was not kept.
    """
    out = Path(out)
    exporter = exporter_for(out, export_format)
    loaded = load_model(Path(model), image_size, trust)
    detector = _torch_detector(loaded)
    config = validate(exporter.config, {"image_size": loaded.image_size, **(options or {})}, "export")
    refuse_wrong_request(exporter, detector.spec, out, config, calibrated=data is not None)
    with (no_progress if data is None else progress)("parity") as bar:
        inputs = None if data is None else _parity_inputs(detector, Path(data), split, config.image_size, bar)
        calibration = None if data is None else _calibration(exporter, detector, Path(data), config)
        exported = export_detector(exporter, detector, out, config, provenance(loaded.path), inputs, calibration)
    one_by_one = config.batch in (1, "dynamic")
    return ExportResult(
        path=exported.path,
        parity=exported.parity,
        latency=exporter.time(exported.path) if with_latency and one_by_one and exporter.time else None,
        output_format=exported.output_format,
        size_bytes=exported.size_bytes,
        image_size=config.image_size,
    )


def provenance(path: Path) -> dict[str, str]:
    """Return where a model comes from, without the paths of this machine.

    Args:
        path: the file that was opened.
    """
    origin = {
        "model": path.name,
        "model_sha256": file_sha256(path),
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    for folder in path.resolve().parents[:2]:
        config = folder / "config.yaml"
        if config.is_file():
            return origin | {"run": folder.name, "config_sha256": file_sha256(config)}
    return origin


def _torch_detector(loaded: LoadedModel) -> Detector:
    if loaded.detector is None:
        raise RequestError(
            f"{loaded.path}: a model of the kind '{loaded.kind}' cannot be exported; give a run directory, .ckpt or .pt"
        )
    return loaded.detector


def _parity_inputs(detector: Detector, data: Path, split: str, image_size: int, bar: Progress) -> ParityInputs:
    truth = load_split(load_descriptor(data), split)
    check_classes(detector, truth, detector.spec.name)
    batches = eval_batches(truth, image_size, _BATCH, detector.spec.input_channels)
    source = f"all {len(truth)} images of the split '{split}' of {data.name}"
    return ParityInputs(_with_progress(batches, len(truth), bar), source, truth)


def _with_progress(batches: Iterable[ImageBatch], total: int, bar: Progress) -> Iterator[ImageBatch]:
    """Yield the batches and move the bar by the images that are done."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        bar.step(done, total)


def _calibration(
    exporter: Exporter, detector: Detector, data: Path, config: ExportConfig
) -> Iterator[ImageBatch] | None:
    """Return training images at equal distances; None for a precision that needs none."""
    count = exporter.entry.precisions[config.precision].calibration_images
    if not count:
        return None
    images = load_split(load_descriptor(data), _CALIBRATION_SPLIT)
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int).tolist()
    return eval_batches(images.subset(chosen), config.image_size, _BATCH, detector.spec.input_channels)
