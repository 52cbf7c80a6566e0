"""MODEL to a file for the device, proven against the model it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kd_vision.core.batch import ImageBatch
from kd_vision.core.console import ProgressBar
from kd_vision.core.errors import RequestError
from kd_vision.core.validation import validate
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.loader import eval_batches
from kd_vision.detectors.base import Detector
from kd_vision.export import exporter_for, load_exporter
from kd_vision.export.latency import Latency, measure_latency
from kd_vision.export.onnx import ExportedFile
from kd_vision.export.parity import ParityInputs, ParityReport
from kd_vision.pipeline.evaluate import check_classes
from kd_vision.pipeline.models import LoadedModel, load_model

_PARITY_BATCH = 8


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export made.

    Attributes:
        path: of the file.
        parity: of parity with the model.
        latency: of one image on one CPU thread; None for a fixed batch above one, or where the
            caller did not want it.
        output_format: of the output.
        size_bytes: of the file.
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
    quiet: bool = True,
) -> ExportResult:
    """Export a model and prove that the file finds the same boxes.

    Args:
        model: run directory, ``.ckpt`` or ``.pt``.
        out: the file to write; its suffix chooses the exporter.
        data: data descriptor; the gate then compares on its split, AP included. None: on seeded
            noise and drawn shapes.
        split: of the data.
        image_size: input side; None: as trained.
        options: of the exporter's config, without `image_size`, e.g. those of `OnnxExportConfig`.
        trust: allow a pickle outside the allow-list.
        with_latency: measure the time of one image.
        quiet: no progress bar.

    Raises:
        RequestError: the request is wrong.
        GateError: the file does not find the same boxes; it was not kept.
    """
    out = Path(out)
    exporter = load_exporter(exporter_for(out))
    loaded = load_model(Path(model), image_size, trust)
    detector = _torch_detector(loaded)
    config = validate(exporter.config, {"image_size": loaded.image_size, **(options or {})}, "export")
    exporter.check(detector.spec, out, config)
    with ProgressBar("parity", quiet=quiet or data is None) as bar:
        inputs = None if data is None else _inputs(detector, Path(data), split, config.image_size, bar)
        exported = exporter.export(detector, out, config, provenance(loaded.path), inputs)
    return _result(exported, config, with_latency)


def provenance(path: Path) -> dict[str, str]:
    """Say where a model comes from, without the paths of this machine.

    Args:
        path: the file that was opened.
    """
    found = {
        "model": path.name,
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    for folder in path.resolve().parents[:2]:
        config = folder / "config.yaml"
        if config.is_file():
            found["run"] = folder.name
            found["config_sha256"] = hashlib.sha256(config.read_bytes()).hexdigest()
            break
    return found


def _torch_detector(loaded: LoadedModel) -> Detector:
    if loaded.detector is None:
        raise RequestError(
            f"{loaded.path}: a model of the kind '{loaded.kind}' cannot be exported; give a run directory, .ckpt or .pt"
        )
    return loaded.detector


def _inputs(detector: Detector, data: Path, split: str, image_size: int, bar: ProgressBar) -> ParityInputs:
    truth = load_split(load_descriptor(data), split)
    check_classes(detector, truth, detector.spec.name)
    batches = eval_batches(truth, image_size, _PARITY_BATCH, detector.spec.input_channels)
    source = f"all {len(truth)} images of the split '{split}' of {data.name}"
    return ParityInputs(_shown(batches, len(truth), bar), source, truth)


def _shown(batches: Iterable[ImageBatch], total: int, bar: ProgressBar) -> Iterator[ImageBatch]:
    """Hand batches on, and say how many images are done."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        bar.step(done, total)


def _result(exported: ExportedFile, config: Any, with_latency: bool) -> ExportResult:
    one_by_one = config.batch in (1, "dynamic")
    return ExportResult(
        path=exported.path,
        parity=exported.parity,
        latency=measure_latency(exported.path) if with_latency and one_by_one else None,
        output_format=exported.output_format,
        size_bytes=exported.size_bytes,
        image_size=config.image_size,
    )
