"""What all export formats share: settings, request checks, the parity gate, files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import GateError, RequestError
from kd_vision.core.predictions import PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.detectors.base import Detector, Predictor
from kd_vision.export import Exporter
from kd_vision.export.parity import ParityInputs, ParityReport, check_parity, synthetic_inputs

_NO_CONFIDENT_BOX = (
    "no box of these images has a score of 0.25 or more; where scores hardly differ, NMS may keep another box of the "
    "same object: train the model first"
)


class ExportConfig(StrictModel):
    """Settings of every export format.

    Attributes:
        image_size: height and width of the input.
        batch: images per call, or ``dynamic``: any number.
        precision: number type of the exported model.
    """

    image_size: int = Field(gt=0)
    batch: int | Literal["dynamic"] = 1
    precision: Literal["fp32", "fp16", "int8"] = "fp32"

    @property
    def predict_options(self) -> PredictOptions:
        """Thresholds under which the model and the exported file must agree."""
        return PredictOptions()


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """Result of `export_detector`.

    Attributes:
        path: the file, or the main file of several.
        files: all files that were written, sorted; `path` is one of them.
        parity: report of the parity gate; also recorded in the file.
        output_format: meaning of the output, e.g. ``dense_cxcywh``.
    """

    path: Path
    files: tuple[Path, ...]
    parity: ParityReport
    output_format: str

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.stat().st_size for each in self.files for file in (each, *each.rglob("*")) if file.is_file())


def export_detector(
    exporter: Exporter,
    detector: Detector,
    out: Path,
    config: ExportConfig,
    provenance: Mapping[str, str],
    inputs: ParityInputs | None = None,
    calibration: Iterable[ImageBatch] | None = None,
) -> ExportedModel:
    """Write an exported model and keep it only if it detects the same boxes as the detector.

    Args:
        exporter: export format.
        detector: the model.
        out: the file to write.
        config: settings, of the class `exporter.config`.
        provenance: where the model comes from; written into the metadata.
        inputs: images that both sides predict on; None: seeded noise and drawn shapes.
        calibration: images for precisions that need them.

    Raises:
        RequestError: the request is wrong; nothing was run.
        GateError: the exported file does not detect the same boxes; `out` is as it was.
    """
    refuse_wrong_request(exporter, detector.spec, out, config, calibration is not None)
    inputs = inputs or synthetic_inputs(detector.spec, config.image_size)
    if inputs.limits is None:
        inputs = replace(inputs, limits=exporter.limits(config.precision))
    with _staging_folder(out) as folder:
        candidate = folder / out.name
        output_format = exporter.write(detector, candidate, config, provenance, calibration)
        parity = _prove(detector, exporter.open(candidate), inputs, config.predict_options)
        exporter.record(candidate, parity)
        files = tuple(sorted(out.parent / file.name for file in folder.iterdir()))
    return ExportedModel(out, files, parity, output_format)


def refuse_wrong_request(
    exporter: Exporter, spec: DetectorSpec, out: Path, config: ExportConfig, calibrated: bool = False
) -> None:
    """Raise everything that is wrong with a request, before anything is run.

    Args:
        exporter: export format.
        spec: of the detector.
        out: the file to write.
        config: settings.
        calibrated: calibration images are at hand.

    Raises:
        RequestError: one line for every mistake.
    """
    errors = [*_path_errors(exporter, out)]
    if wrong_size := spec.wrong_size(config.image_size, "--image-size"):
        errors.append(wrong_size)
    if isinstance(config.batch, int) and config.batch < 1:
        errors.append(f"--batch: {config.batch} images make no batch; give 1 or more, or 'dynamic'")
    errors += exporter.check(spec, config)
    precision = exporter.entry.precisions.get(config.precision)
    if precision is None:
        possible = ", ".join(exporter.entry.precisions)
        errors.append(f"--precision: {config.precision} is not available in this version; possible: {possible}")
    elif precision.calibration_images and not calibrated:
        count = precision.calibration_images
        errors.append(f"--data: {config.precision} needs {count} calibration images; give a data descriptor")
    if errors:
        raise RequestError(*errors)


def _path_errors(exporter: Exporter, out: Path) -> Iterator[str]:
    suffix = exporter.entry.suffix
    if out.suffix.lower() != suffix:
        yield f"--out: {out} ends with '{out.suffix}'; a file of the format {exporter.format} ends with {suffix}"
    if not out.parent.is_dir():
        yield f"--out: folder {out.parent} does not exist; make it first"
    elif out.is_dir():
        yield f"--out: {out} is a folder; give a file name"


@contextmanager
def _staging_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`; its content moves beside `out` on success and is removed on an error.

    A folder, and not a temporary name, because files that name each other must have their final names already.
    """
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as name:
        folder = Path(name)
        yield folder
        for file in sorted(folder.iterdir(), key=lambda file: file.name == out.name):
            os.replace(file, out.parent / file.name)  # the main file last: where it is, the others are


def _prove(detector: Detector, exported: Predictor, inputs: ParityInputs, options: PredictOptions) -> ParityReport:
    """Run the parity gate; the detector is put back into the mode it was in.

    Raises:
        GateError: a parity limit is broken.
    """
    was_training = detector.training
    detector.eval()
    try:
        device = next(detector.parameters()).device
        on_device = replace(inputs, batches=_moved(inputs.batches, device))
        parity = check_parity(detector, exported, on_device, options)
    finally:
        detector.train(was_training)
    if not parity.passed:
        summary = (
            f"parity: the exported file does not detect the same boxes as {detector.spec.name} "
            f"({parity.images} images: {parity.source}); no file was written"
        )
        hint = () if parity.confident_boxes else (_NO_CONFIDENT_BOX,)
        raise GateError("\n".join((summary, *parity.reasons, *hint)))
    return parity


def _moved(batches: Iterable[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    for batch in batches:
        yield batch.to(device)
