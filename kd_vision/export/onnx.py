"""The ONNX format: trace, simplify, append NMS, describe.

Shapes: B images, C channels, H W input pixels, A grid points, K classes.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
import onnxslim
import torch
from pydantic import Field
from torch import Tensor, nn

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import KDVisionError, first_line
from kd_vision.core.predictions import PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.version import __version__
from kd_vision.detectors.base import Detector
from kd_vision.export.base import ExportConfig
from kd_vision.export.graph import (
    OUTPUT,
    append_nms,
    check,
    declare_output,
    free_batch,
    rename_output,
    write_metadata,
)
from kd_vision.export.parity import ParityReport
from kd_vision.runtime.metadata import KEY_PARITY, ModelMetadata
from kd_vision.runtime.output_formats import OutputFormat
from kd_vision.runtime.preprocessing import Preprocessing

# 11: first opset with TopK, ScatterND and GatherElements as used here. 20: last opset of torch's tracing exporter.
LOWEST_OPSET, HIGHEST_OPSET = 11, 20
# onnxruntime since 1.14 (early 2023) and ultralytics open opset 18. They open 19 and 20 too, but these graphs gain
# nothing from them, and onnxruntime's CUDA provider has no kernel for Resize of opset 19: the neck would run on
# the CPU.
DEFAULT_OPSET = 18
# onnxruntime refuses files of a newer IR version than its own; 10 is that of 1.18 (May 2024).
_NEWEST_IR = 10
_INPUT = "images"


class OnnxExportConfig(ExportConfig):
    """Settings of an ONNX file.

    Attributes:
        opset: version of the operator set.
        nms: append non-maximum suppression to the graph; the output rows are x1 y1 x2 y2 score label.
        score_threshold: fixed in the graph with `nms`. The default keeps what COCO evaluation counts; 0.25 is
            faster on a device that needs confident boxes only.
        nms_iou: fixed in the graph with `nms`.
        max_detections: rows per image with `nms`.
        simplify: fold constants and remove redundant operators with onnxslim.
    """

    opset: int = DEFAULT_OPSET
    nms: bool = False
    score_threshold: float = Field(default=0.001, ge=0.0, lt=1.0)
    nms_iou: float = Field(default=0.7, gt=0.0, lt=1.0)
    max_detections: int = Field(default=300, gt=0)
    simplify: bool = True

    @property
    def predict_options(self) -> PredictOptions:
        """Thresholds under which the model and the file must agree: those fixed in the graph, if any."""
        if not self.nms:
            return PredictOptions()
        return PredictOptions(self.score_threshold, self.nms_iou, self.max_detections)


def write_onnx(
    detector: Detector,
    path: Path,
    config: OnnxExportConfig,
    provenance: Mapping[str, str],
    calibration: Iterable[ImageBatch] | None = None,
) -> OutputFormat:
    """Write a detector as an ONNX file, without any proof; `export_detector` is for users.

    Args:
        detector: the model.
        path: the file to write.
        config: settings.
        provenance: where the model comes from; written into the metadata.
        calibration: not used by 32-bit files.

    Returns:
        The meaning of the output.
    """
    model, output_format = _build(detector, config, provenance)
    onnx.save(model, path)
    return output_format


def record_parity(path: Path, parity: ParityReport) -> None:
    """Write the report of the parity gate into the metadata of an ONNX file."""
    model = onnx.load(path)
    write_metadata(model, {KEY_PARITY: parity.model_dump_json()})
    onnx.save(model, path)


def config_errors(spec: DetectorSpec, config: OnnxExportConfig) -> list[str]:
    """Return what ONNX files of this detector cannot have, one line each."""
    errors = []
    lowest = max(LOWEST_OPSET, spec.lowest_opset)
    if not lowest <= config.opset <= HIGHEST_OPSET:
        errors.append(
            f"--opset: {config.opset} is not supported; possible: {lowest} to {HIGHEST_OPSET}, default {DEFAULT_OPSET}"
        )
    if config.nms and spec.end_to_end:
        errors.append(f"--nms: {spec.name} has an end-to-end head, which needs no NMS; leave --nms out")
    return errors


def _build(
    detector: Detector, config: OnnxExportConfig, provenance: Mapping[str, str]
) -> tuple[onnx.ModelProto, OutputFormat]:
    """Return the graph with NMS, output shape and metadata, and the meaning of its output."""
    spec = detector.spec
    # Predictions of an end-to-end head come from its one-to-one branch, so that is the one to export.
    module = detector.export_module(nms_free=True if spec.end_to_end else None)
    batch = config.batch if isinstance(config.batch, int) else 2
    image = torch.zeros(batch, spec.input_channels, config.image_size, config.image_size)
    with torch.no_grad():
        shape = tuple(module(image).shape)
    output_format: OutputFormat = "end_to_end" if spec.end_to_end else "dense_cxcywh"
    _check_output_shape(shape, output_format, spec)
    model = _trace(module, image, config)
    if config.nms:
        output_format = "nms"
        append_nms(model, config.predict_options, len(spec.classes), shape[2])
        shape = (batch, min(config.max_detections, len(spec.classes) * shape[2]), 6)
    if config.simplify:
        model = _slim(model)
    if config.batch == "dynamic":
        free_batch(model, shape[1:])
    else:
        declare_output(model, OUTPUT, shape)
    model.ir_version = min(model.ir_version, _NEWEST_IR)
    model.producer_name, model.producer_version = "kd_vision", __version__
    write_metadata(model, describe(spec, config, output_format, provenance).to_properties())
    check(model)
    return model, output_format


def _check_output_shape(shape: tuple[int, ...], output_format: OutputFormat, spec: DetectorSpec) -> None:
    """Refuse an adapter whose export module breaks its contract."""
    axis, length = (2, 6) if output_format == "end_to_end" else (1, 4 + len(spec.classes))
    if len(shape) != 3 or shape[axis] != length:
        raise KDVisionError(
            f"{spec.name}: the export module of family '{spec.family}' returns an output of shape {shape}, which is "
            f"not '{output_format}' of {len(spec.classes)} classes; this is a bug of the adapter of that family"
        )


def _trace(module: nn.Module, image: Tensor, config: OnnxExportConfig) -> onnx.ModelProto:
    """Record the graph with torch's tracing exporter.

    The newer exporter (dynamo), tried with torch 2.15 and ultralytics 8.4 on v8, 11, 12 and 26, fails with
    a fixed batch (data-dependent control flow in the decoding of boxes), needs opset 18 and another
    package, and takes 4 to 8 seconds against 0.5. The tracer exports all of them, and older torch builds
    have it too.
    """
    axes = {_INPUT: {0: "batch"}, OUTPUT: {0: "batch"}} if config.batch == "dynamic" else None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        traced = Path(folder) / "traced.onnx"
        warnings.simplefilter("ignore")  # deprecation; shapes become constants, which is intended
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
        raise KDVisionError(
            f"onnxslim cannot simplify the graph ({first_line(error)}); export with --no-simplify"
        ) from error
    if not isinstance(slimmed, onnx.ModelProto):
        raise KDVisionError("onnxslim returned no graph; export with --no-simplify")
    return slimmed


def describe(
    spec: DetectorSpec, config: OnnxExportConfig, output_format: OutputFormat, provenance: Mapping[str, str]
) -> ModelMetadata:
    """Return the metadata of the file, except for the report of the parity gate.

    Args:
        spec: of the detector.
        config: of the export.
        output_format: of the output.
        provenance: where the model comes from.
    """
    return ModelMetadata(
        classes=spec.classes,
        output_format=output_format,
        preprocessing=Preprocessing(),
        image_size=config.image_size,
        size_multiple=spec.size_multiple,
        channels=spec.input_channels,
        description=f"{spec.name}, exported by kd_vision",
        export_args={
            "batch": 1 if config.batch == "dynamic" else config.batch,
            "simplify": config.simplify,
            "opset": config.opset,
        },
        training_run=provenance,
        version=__version__,
    )
