"""The ONNX exporter: trace, slim, describe, prove, and only then name the file.

Shapes: B images, C channels, H W input pixels, A grid points, K classes.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx
import onnxslim
import torch
from pydantic import Field
from torch import Tensor, nn

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import GateError, KDVisionError, RequestError
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.core.version import __version__
from kd_vision.detectors.base import Detector, PredictOptions
from kd_vision.export.graph import (
    OUTPUT,
    NmsSettings,
    append_nms,
    check,
    declare_output,
    free_batch,
    rename_output,
    write_metadata,
)
from kd_vision.export.parity import ParityInputs, ParityReport, check_parity, synthetic_inputs
from kd_vision.runtime.letterbox import GRAY
from kd_vision.teachers.onnx import (
    KEY_CLASSES,
    KEY_OUTPUT_FORMAT,
    KEY_PARITY,
    KEY_PREPROCESSING,
    KEY_TRAINING_RUN,
    KEY_VERSION,
    OnnxPredictor,
    OutputFormat,
)

# 11: TopK, ScatterND and GatherElements as we use them. 20: the last one of torch's tracing exporter.
LOWEST_OPSET, HIGHEST_OPSET = 11, 20
# onnxruntime since 1.14 (early 2023) and ultralytics open opset 18. They open 19 and 20 as well, which give
# these graphs nothing, while onnxruntime's CUDA provider has no kernel for Resize of opset 19: the neck would
# leave the GPU.
DEFAULT_OPSET = 18
# onnxruntime refuses files of a newer format than its own; 10 is that of 1.18 (May 2024).
_NEWEST_IR = 10
_INPUT = "images"


class OnnxExportConfig(StrictModel):
    """How to write the file.

    Attributes:
        image_size: height and width of the input.
        batch: images per call, or ``dynamic``: any number.
        opset: version of the operator set.
        nms: put non-maximum suppression into the graph; rows x1 y1 x2 y2 score label come out.
        score_threshold: baked in with `nms`. The default keeps what COCO evaluation counts; a device
            that wants sure boxes only is faster with 0.25.
        nms_iou: baked in with `nms`.
        max_detections: rows per image with `nms`.
        simplify: fold constants and drop needless operators with onnxslim.
        precision: of the weights.
    """

    image_size: int = Field(gt=0)
    batch: int | Literal["dynamic"] = 1
    opset: int = DEFAULT_OPSET
    nms: bool = False
    score_threshold: float = Field(default=0.001, ge=0.0, lt=1.0)
    nms_iou: float = Field(default=0.7, gt=0.0, lt=1.0)
    max_detections: int = Field(default=300, gt=0)
    simplify: bool = True
    precision: Literal["fp32", "fp16", "int8"] = "fp32"

    @property
    def predict_options(self) -> PredictOptions:
        """Thresholds under which the model and the file must agree."""
        if not self.nms:
            return PredictOptions()
        return PredictOptions(self.score_threshold, self.nms_iou, self.max_detections)


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """What an exporter made.

    Attributes:
        path: of the file.
        parity: of parity with the model; also in the file's metadata.
        output_format: of the output.
        size_bytes: of the file.
    """

    path: Path
    parity: ParityReport
    output_format: OutputFormat
    size_bytes: int


def export_onnx(
    detector: Detector,
    out: Path,
    config: OnnxExportConfig,
    provenance: Mapping[str, str],
    inputs: ParityInputs | None = None,
) -> ExportedFile:
    """Write an ONNX file that finds the same boxes as the detector.

    Args:
        detector: the model.
        out: the file to write.
        config: how.
        provenance: where the model comes from; written into the metadata.
        inputs: what the parity gate looks at; None: seeded noise and drawn shapes.

    Raises:
        RequestError: the request is wrong; nothing was run.
        GateError: the file does not find the same boxes; it was removed.
    """
    refuse_wrong_request(detector.spec, out, config)
    inputs = inputs or synthetic_inputs(detector.spec, config.image_size)
    model, output_format = _build(detector, config, provenance)
    candidate = out.with_name(f".{out.stem}.part{out.suffix}")
    try:
        onnx.save(model, candidate)
        parity = _prove(detector, candidate, inputs, config.predict_options)
        write_metadata(model, {KEY_PARITY: parity.model_dump_json()})
        onnx.save(model, candidate)
        os.replace(candidate, out)
    finally:
        candidate.unlink(missing_ok=True)
    return ExportedFile(out, parity, output_format, out.stat().st_size)


def refuse_wrong_request(spec: DetectorSpec, out: Path, config: OnnxExportConfig) -> None:
    """Raise everything that is wrong with a request, before anything is run.

    Raises:
        RequestError: one line for every mistake.
    """
    problems = []
    if out.suffix.lower() != ".onnx":
        problems.append(f"--out: {out} ends with '{out.suffix}'; an ONNX file ends with .onnx")
    if not out.parent.is_dir():
        problems.append(f"--out: folder {out.parent} does not exist; make it first")
    elif out.is_dir():
        problems.append(f"--out: {out} is a folder; give a file name")
    wrong = spec.wrong_size(config.image_size, "--image-size")
    if wrong:
        problems.append(wrong)
    if isinstance(config.batch, int) and config.batch < 1:
        problems.append(f"--batch: {config.batch} images make no batch; give 1 or more, or 'dynamic'")
    lowest = max(LOWEST_OPSET, spec.lowest_opset)
    if not lowest <= config.opset <= HIGHEST_OPSET:
        problems.append(
            f"--opset: {config.opset} is not supported; possible: {lowest} to {HIGHEST_OPSET}, default {DEFAULT_OPSET}"
        )
    if config.nms and spec.end_to_end:
        problems.append(f"--nms: {spec.name} has an end-to-end head, which needs no NMS; leave --nms out")
    if config.precision != "fp32":
        problems.append(f"--precision: {config.precision} is not available in this version; possible: fp32")
    if problems:
        raise RequestError(*problems)


def _build(
    detector: Detector, config: OnnxExportConfig, provenance: Mapping[str, str]
) -> tuple[onnx.ModelProto, OutputFormat]:
    """Make the described graph in memory."""
    spec = detector.spec
    # The predictor of an end-to-end head reads its one-to-one branch, so that is the one to export.
    module = detector.export_module(nms_free=True if spec.end_to_end else None)
    batch = config.batch if isinstance(config.batch, int) else 2
    image = torch.zeros(batch, spec.input_channels, config.image_size, config.image_size)
    with torch.no_grad():
        sides = tuple(module(image).shape)
    output_format: OutputFormat = "end_to_end" if spec.end_to_end else "dense_cxcywh"
    _check_output_format(sides, output_format, spec)
    model = _trace(module, image, config)
    if config.nms:
        output_format = "nms"
        settings = NmsSettings(
            score_threshold=config.score_threshold,
            nms_iou=config.nms_iou,
            max_detections=config.max_detections,
        )
        model = append_nms(model, settings, len(spec.classes), sides[2])
        sides = (batch, min(config.max_detections, len(spec.classes) * sides[2]), 6)
    if config.simplify:
        model = _slim(model)
    if config.batch == "dynamic":
        free_batch(model, sides[1:])
    else:
        declare_output(model, OUTPUT, sides)
    model.ir_version = min(model.ir_version, _NEWEST_IR)
    model.producer_name, model.producer_version = "kd_vision", __version__
    write_metadata(model, describe(spec, config, output_format, provenance))
    check(model)
    return model, output_format


def _check_output_format(sides: tuple[int, ...], output_format: OutputFormat, spec: DetectorSpec) -> None:
    place, wanted = (2, 6) if output_format == "end_to_end" else (1, 4 + len(spec.classes))
    if len(sides) != 3 or sides[place] != wanted:
        raise KDVisionError(
            f"{spec.name}: the export module of family '{spec.family}' gives {sides}, which is not "
            f"'{output_format}' of {len(spec.classes)} classes; its adapter must be put right"
        )


def _trace(module: nn.Module, image: Tensor, config: OnnxExportConfig) -> onnx.ModelProto:
    """Record the graph with torch's tracing exporter.

    Its newer exporter (dynamo) was tried with torch 2.15 and ultralytics 8.4 on v8, 11, 12 and 26: it
    fails with a fixed batch (data-dependent control flow in the decoding of boxes), needs opset 18 and
    another package, and takes 4 to 8 seconds against 0.5. The tracer does all of them, and is the
    one that older torch builds have.
    """
    axes = {_INPUT: {0: "batch"}, OUTPUT: {0: "batch"}} if config.batch == "dynamic" else None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        traced = Path(folder) / "traced.onnx"
        warnings.simplefilter("ignore")  # of deprecation, and of shapes that are constant here on purpose
        torch.onnx.export(
            module.eval(),
            (image,),
            str(traced),
            opset_version=config.opset,
            input_names=[_INPUT],
            output_names=[OUTPUT],
            dynamic_axes=axes,
            dynamo=False,
        )
        model = onnx.load(traced)
    rename_output(model, OUTPUT)
    return model


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        slimmed = onnxslim.slim(model)
    except Exception as error:  # onnxslim documents no class of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KDVisionError(f"onnxslim cannot simplify the graph ({reason}); export with --no-simplify") from error
    if not isinstance(slimmed, onnx.ModelProto):
        raise KDVisionError("onnxslim gave no graph; export with --no-simplify")
    return slimmed


def describe(
    spec: DetectorSpec, config: OnnxExportConfig, output_format: OutputFormat, provenance: Mapping[str, str]
) -> dict[str, str]:
    """Return the metadata: what `ultralytics.YOLO` asks for, and ours.

    Args:
        spec: of the detector.
        config: of the export.
        output_format: of the output.
        provenance: where the model comes from.
    """
    # 'dynamic' is about height and width to ultralytics; ours are always fixed.
    arguments = {
        "batch": 1 if config.batch == "dynamic" else config.batch,
        "dynamic": False,
        "simplify": config.simplify,
        "opset": config.opset,
        "nms": output_format == "nms",
    }
    return {
        "description": f"{spec.name}, exported by kd_vision",
        "stride": str(spec.size_multiple),
        "task": "detect",
        "batch": str(arguments["batch"]),
        "imgsz": str([config.image_size, config.image_size]),
        "names": str(dict(enumerate(spec.classes))),
        "channels": str(spec.input_channels),
        "end2end": str(output_format == "end_to_end"),
        "args": str(arguments),
        KEY_VERSION: __version__,
        KEY_CLASSES: json.dumps(list(spec.classes)),
        KEY_OUTPUT_FORMAT: output_format,
        KEY_PREPROCESSING: json.dumps(_preprocessing(spec, config)),
        KEY_TRAINING_RUN: json.dumps(dict(provenance)),
    }


def _preprocessing(spec: DetectorSpec, config: OnnxExportConfig) -> dict[str, object]:
    """What must happen to an image before the graph; the edge runtime reads it from the file."""
    return {
        "resize": "letterbox",
        "pad_value": GRAY,
        "scale": "1/255",
        "channel_order": {1: "gray", 3: "RGB", 4: "RGBX"}[spec.input_channels],
        "layout": "NCHW",
        "height": config.image_size,
        "width": config.image_size,
    }


_UNSURE = (
    "the model is sure of nothing on these images (no score of 0.25 or more); of boxes that hardly differ in score, "
    "NMS keeps now one, now another: train it first"
)


def _prove(detector: Detector, candidate: Path, inputs: ParityInputs, options: PredictOptions) -> ParityReport:
    """Let the gate compare; the detector is put back into the mode it was in.

    Raises:
        GateError: the file does not keep to the limits.
    """
    was_training = detector.training
    detector.eval()
    try:
        device = next(detector.parameters()).device
        on_device = replace(inputs, batches=_moved(inputs.batches, device))
        parity = check_parity(detector, OnnxPredictor(candidate), on_device, options)
    finally:
        detector.train(was_training)
    if not parity.passed:
        summary = (
            f"parity: the ONNX file does not find the same boxes as {detector.spec.name} "
            f"({parity.images} images: {parity.source}); no file was written"
        )
        unsure = "" if parity.confident_boxes else _UNSURE
        raise GateError("\n".join((summary, *parity.reasons, unsure)).rstrip())
    return parity


def _moved(batches: Iterable[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    for batch in batches:
        yield batch.to(device)
