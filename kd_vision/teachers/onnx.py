"""A detector that is only an ONNX file: ours, ultralytics' own, or one whose layout is declared.

Shapes: B images, C channels, H W input pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import field_validator
from torch import Tensor

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.detectors.postprocess import to_original
from kd_vision.runtime.class_names import COCO80, COCO91, SHORT_WORDS
from kd_vision.runtime.metadata import (
    KEY_CLASSES,
    KEY_OUTPUT_FORMAT,
    KEY_PARITY,
    KEY_PREPROCESSING,
    KEY_TRAINING_RUN,
    KEY_VERSION,
    RENAMED_FORMATS,
    recorded_classes,
    recorded_output_format,
    recorded_preprocessing,
    recorded_size,
    recorded_stride,
)
from kd_vision.runtime.output_formats import OUTPUT_FORMATS, DecodeContext, OutputFormat, found
from kd_vision.runtime.preprocessing import ChannelOrder, Preprocessing, ValueRange
from kd_vision.runtime.session import OnnxGraph, OnnxInput, OnnxOutput, open_session
from kd_vision.teachers.base import BlackBoxDetector

__all__ = [
    "COCO80",
    "COCO91",
    "KEY_CLASSES",
    "KEY_OUTPUT_FORMAT",
    "KEY_PARITY",
    "KEY_PREPROCESSING",
    "KEY_TRAINING_RUN",
    "KEY_VERSION",
    "OUTPUT_FORMATS",
    "OnnxConfig",
    "OnnxInput",
    "OnnxPredictor",
    "OutputFormat",
    "build",
    "open_session",
]


class OnnxConfig(StrictModel):
    """An ONNX file, and what it does not say of itself.

    Attributes:
        weights: the file.
        output_format: what its outputs mean, a name of `OUTPUT_FORMATS`.
        classes: names in label order, or a short word: `coco80`, or `coco91` for files that answer with
            COCO's category ids.
        channel_order: `rgb` or `bgr`; None: what the layout's files want.
        value_range: `unit` (0 to 1) or `byte` (0 to 255); None: what the layout's files want.
        mean: taken off each channel, in that order and range.
        std: each channel is divided by it afterwards.
        threads: of onnxruntime within one operator; 0: its own choice.
    """

    family: Literal["onnx"] = "onnx"
    weights: Path
    output_format: OutputFormat | None = None
    classes: tuple[str, ...] | Literal["coco80", "coco91"] | None = None
    channel_order: ChannelOrder | None = None
    value_range: ValueRange | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    threads: int = 0

    renamed_keys: ClassVar[Mapping[str, str]] = {"layout": "output_format"}
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"threads"})

    @field_validator("output_format", mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        return RENAMED_FORMATS.get(given, given) if isinstance(given, str) else given

    @field_validator("std")
    @classmethod
    def _above_zero(cls, std: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if std is not None and min(std, default=0.0) <= 0:
            raise ValueError(f"expected numbers above 0, one a channel; given {list(std)}")
        return std

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is declared of it."""
        declared = {key: getattr(self, key) for key in ("channel_order", "value_range", "mean", "std")}
        return {key: value for key, value in declared.items() if value is not None}


class OnnxPredictor(BlackBoxDetector):
    """Final boxes from an ONNX file, on the CPU provider of onnxruntime.

    Boxes pass through the same post-processing as those of a torch detector, so that figures are
    comparable. A file with NMS in its graph has baked its thresholds in: `PredictOptions` can only
    narrow what it gives.

    Args:
        path: the file.
        classes: names in label order (or a short word, see `OnnxConfig`), for a file that does not say them.
        output_format: what the output means, for a file that does not say it.
        threads: of onnxruntime within one operator; 0: its own choice.
        preprocessing: what is declared of it, in the words of `Preprocessing`.

    Raises:
        RequestError: the file is missing, corrupt, or its input or output has no known meaning.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str] | str | None = None,
        output_format: OutputFormat | None = None,
        threads: int = 0,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._graph = OnnxGraph(path, threads)
        self.metadata = self._graph.metadata
        self.input = self._graph.input
        outputs = self._graph.outputs
        said = recorded_classes(self.metadata, path)
        names = _spelled_out(classes, output_format, path) or said
        self.output_format: OutputFormat = _find_output_format(self._graph, names, output_format)
        if names is None:
            raise RequestError(f"{path}: the file does not name its classes; declare them, in label order")
        self._order = _fit(self.output_format, outputs, names, path)
        self.preprocessing = _find_preprocessing(self._graph, self.output_format, preprocessing or {})
        self.fixed_size = self.input.size
        multiple = recorded_stride(self.metadata) or OUTPUT_FORMATS[self.output_format].multiple
        self.spec = DetectorSpec(
            family="onnx",
            name=path.stem,
            classes=names,
            level_channels={},
            level_strides={},
            provides=frozenset({"detections"}),
            input_channels=self.input.channels,
            size_multiple=math.gcd(multiple, self.input.size or 0),  # the only size it takes fits it
            end_to_end=not OUTPUT_FORMATS[self.output_format].needs_nms,
        )

    @property
    def image_size(self) -> int | None:
        """Height and width the file wants; None where it takes any size and recommends none."""
        return self.input.size or recorded_size(self.metadata)

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `PixelPredictor.detect`.

        Raises:
            RequestError: the images do not have the size or the channels that the file takes, or its answer
                is no set of boxes.
        """
        return self._found(images, options, [f"image {number} of the batch" for number in range(1, len(images) + 1)])

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image; see `detect`."""
        images = replace(batch, teacher_images=None).as_float().images
        names = [f"image id {image_id}" for image_id in batch.image_ids]
        answers = self._found(images, options, names) if names else self.detect(images, options)
        return [to_original(one, letterbox) for one, letterbox in zip(answers, batch.letterboxes, strict=True)]

    def run(self, images: npt.NDArray[np.floating[Any]]) -> list[list[npt.NDArray[Any]]]:
        """Run the graph alone.

        Args:
            images: (B, C, H, W) RGB in [0, 1]; any B: a fixed batch is filled up with zeros.

        Returns:
            For each image the raw outputs in the file's order, without the batch axis.
        """
        return self._graph.run(self.preprocessing.apply(images), OUTPUT_FORMATS[self.output_format].max_batch)

    def _found(self, images: Tensor, options: PredictOptions, names: Sequence[str]) -> list[Detections]:
        self._check_images(images.shape)
        question = DecodeContext(len(self.spec.classes), int(images.shape[2]), int(images.shape[3]), options)
        answers = self.run(images.detach().cpu().float().numpy())
        return [self._decode(outputs, question, name) for outputs, name in zip(answers, names, strict=True)]

    def _check_images(self, shape: torch.Size) -> None:
        channels, height, width = shape[1:]
        problems = []
        if channels != self.input.channels:
            problems.append(f"{self.path}: takes {self.input.channels} channels, the images have {channels}")
        size = self.input.size
        if size is not None and (height, width) != (size, size):
            problems.append(
                f"{self.path}: takes images of {size}x{size} pixels, given {height}x{width}; use image size {size}"
            )
        if problems:
            raise RequestError(*problems)

    def _decode(self, outputs: Sequence[npt.NDArray[Any]], question: DecodeContext, name: str) -> Detections:
        """Turn the outputs for one image into boxes in input pixels."""
        values = [torch.from_numpy(outputs[position]) for position in self._order]
        if any(bool(value.isnan().any()) for value in values):
            raise RequestError(f"{self.path}: the output for {name} holds NaN; the file is broken, export it again")
        try:
            answer = OUTPUT_FORMATS[self.output_format].decode(values, question)
        except ValueError as error:
            raise RequestError(f"{self.path}: {name}: {error}; is its layout really '{self.output_format}'?") from None
        if not np.isfinite(answer.boxes_xyxy).all():
            raise RequestError(
                f"{self.path}: {name}: boxes are not finite; is its layout really '{self.output_format}'?"
            )
        return answer


def build(config: OnnxConfig, classes: tuple[str, ...] | None, where: str) -> OnnxPredictor:
    """Open a file.

    Args:
        config: which, and what it does not say.
        classes: names it must answer with; None: its own.
        where: key for messages, e.g. ``teacher``.

    Raises:
        RequestError: see `OnnxPredictor`; its classes are others.
    """
    try:
        predictor = OnnxPredictor(
            config.weights, config.classes, config.output_format, config.threads, config.preprocessing
        )
    except RequestError as error:
        raise RequestError(*(f"{where}: {line}" for line in error.problems)) from None
    if classes is not None and predictor.spec.classes != classes:
        raise RequestError(f"{where}: {config.weights} answers in other classes than asked for; map them with labels")
    return predictor


def _spelled_out(
    classes: Sequence[str] | str | None, output_format: OutputFormat | None, path: Path
) -> tuple[str, ...] | None:
    if classes is None or not isinstance(classes, str):
        return None if classes is None else tuple(classes)
    if classes not in SHORT_WORDS:
        raise RequestError(f"{path}: classes: '{classes}' is no list and no short word{suggest(classes, SHORT_WORDS)}")
    if output_format != "torchvision":
        return SHORT_WORDS[classes]
    if classes == "coco80":
        raise RequestError(
            f"{path}: classes: torchvision's COCO detectors answer with COCO's category ids; use coco91, or list the "
            f"names"
        )
    return SHORT_WORDS[classes][1:]  # 0 is the background


def _find_output_format(
    graph: OnnxGraph, classes: tuple[str, ...] | None, declared: OutputFormat | None
) -> OutputFormat:
    """What the file says counts; what the user declares counts only where the file says nothing."""
    path, outputs = graph.path, graph.outputs
    count = None if classes is None else len(classes)
    said = recorded_output_format(graph.metadata, outputs[0].shape, count, path)
    if said is not None and said not in get_args(OutputFormat):
        raise RequestError(f"{path}: layout '{said}' is unknown{suggest(said, get_args(OutputFormat))}")
    if said is not None and declared is not None and declared != said:
        raise RequestError(f"{path}: declared as '{declared}', but the file says '{said}'; leave the layout out")
    if said is not None or declared is not None:
        return cast(OutputFormat, said or declared)
    if count is not None and len(outputs) == 1 and len(outputs[0].shape) == 3 and outputs[0].shape[1] == 4 + count:
        return "dense_cxcywh"
    known = "; ".join(f"{name} {entry.meaning}" for name, entry in OUTPUT_FORMATS.items())
    raise RequestError(
        f"{path}: output layout not recognised: found {found(outputs)}, and no metadata says more; "
        f"declare one of the supported layouts: {known}"
    )


def _fit(
    output_format: OutputFormat, outputs: Sequence[OnnxOutput], classes: tuple[str, ...], path: Path
) -> tuple[int, ...]:
    try:
        return OUTPUT_FORMATS[output_format].match_outputs(outputs, len(classes))
    except ValueError as error:
        raise RequestError(f"{path}: layout '{output_format}' {error}") from None


def _find_preprocessing(graph: OnnxGraph, output_format: OutputFormat, declared: dict[str, Any]) -> Preprocessing:
    """What the file says, then what is declared, then what the layout's files want."""
    said = recorded_preprocessing(graph.metadata, graph.path)
    wrong = [
        f"{graph.path}: {key} declared as {declared[key]}, but the file says {said[key]}; leave it out"
        for key in declared
        if key in said and said[key] != declared[key]
    ]
    found = {**declared, **said}
    if ("mean" in found) != ("std" in found):
        wrong.append(f"{graph.path}: mean and std go together; declare both, or neither")
    for key in ("mean", "std"):
        if key in found and len(found[key]) != graph.input.channels:
            wrong.append(
                f"{graph.path}: {key} has {len(found[key])} numbers, the file takes {graph.input.channels} channels"
            )
    usual = OUTPUT_FORMATS[output_format].preprocessing
    if usual is None and "mean" not in found and not said:
        wrong.append(
            f"{graph.path}: files of layout '{output_format}' differ in how images are normalised; declare mean and "
            f"std, e.g. [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225] (DETR), or [0, 0, 0] and [1, 1, 1] (RT-DETR)"
        )
    if wrong:
        raise RequestError(*wrong)
    return replace(usual or Preprocessing(), **found)
