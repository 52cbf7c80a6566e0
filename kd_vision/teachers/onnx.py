"""An ONNX file as a teacher or as a model to evaluate: `runtime.detector` for torch tensors.

Shapes: B images, C channels, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import field_validator

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.runtime.detector import OnnxDetector
from kd_vision.runtime.metadata import RENAMED_FORMATS
from kd_vision.runtime.output_formats import OUTPUT_FORMATS, OutputFormat, unknown_output_format
from kd_vision.runtime.preprocessing import ChannelOrder, ValueRange
from kd_vision.teachers.base import BlackBoxDetector

if TYPE_CHECKING:
    from torch import Tensor


class OnnxConfig(StrictModel):
    """An ONNX file, and the properties that its metadata does not record.

    Attributes:
        weights: the file.
        output_format: meaning of the outputs, a key of `OUTPUT_FORMATS`.
        classes: names in label order; `coco80` for COCO's 80 classes; `coco91` for files whose labels are COCO's
            category ids.
        channel_order: `rgb` or `bgr`; None: that of the output format's files.
        value_range: `unit` (0 to 1) or `byte` (0 to 255); None: that of the output format's files.
        mean: subtracted from each channel, in that order and range.
        std: each channel is divided by it afterwards.
        threads: of onnxruntime within one operator; 0: chosen by onnxruntime.
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

    @field_validator("output_format")
    @classmethod
    def _in_the_table(cls, given: OutputFormat | None) -> OutputFormat | None:
        name = None if given is None else RENAMED_FORMATS.get(given, given)
        if name is not None and name not in OUTPUT_FORMATS:
            raise ValueError(unknown_output_format(name))
        return name

    @field_validator("std")
    @classmethod
    def _above_zero(cls, std: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if std is not None and min(std, default=0.0) <= 0:
            raise ValueError(f"expected numbers above 0, one a channel; given {list(std)}")
        return std

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The declared fields of `Preprocessing`."""
        declared = {key: getattr(self, key) for key in ("channel_order", "value_range", "mean", "std")}
        return {key: value for key, value in declared.items() if value is not None}


class OnnxPredictor(BlackBoxDetector):
    """Final boxes from an ONNX file, for batches of torch tensors; see `OnnxDetector`.

    Args:
        path: the file.
        classes: see `OnnxConfig`; for a file that does not record them.
        output_format: for a file that does not record it.
        threads: of onnxruntime within one operator; 0: chosen by onnxruntime.
        preprocessing: fields of `Preprocessing` that the file does not record.

    Raises:
        RequestError: the file is missing or corrupt, or its input or output has no known meaning.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str] | str | None = None,
        output_format: OutputFormat | None = None,
        threads: int = 0,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._detector = OnnxDetector(path, classes, output_format, threads, preprocessing)
        self.metadata = self._detector.metadata
        self.input = self._detector.input
        self.output_format = self._detector.output_format
        self.preprocessing = self._detector.preprocessing
        self.fixed_size = self.input.size
        self.spec = DetectorSpec(
            family="onnx",
            name=path.stem,
            classes=self._detector.classes,
            level_channels={},
            level_strides={},
            provides=frozenset({"detections"}),
            input_channels=self.input.channels,
            size_multiple=self._detector.size_multiple,
            end_to_end=not self._detector.needs_nms,
        )

    @property
    def image_size(self) -> int | None:
        """Height and width that the graph takes, or that the file recommends; None: any size, none recommended."""
        return self._detector.image_size

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `BlackBoxDetector.detect`.

        Raises:
            RequestError: see `OnnxDetector.detect`.
        """
        return self._detector.detect(_to_numpy(images), options)

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image; see `detect`."""
        images = replace(batch, teacher_images=None).as_float().images
        names = [f"image id {image_id}" for image_id in batch.image_ids]
        detections = self._detector.detect(_to_numpy(images), options, names or None)
        pairs = zip(detections, batch.letterboxes, strict=True)
        return [replace(one, boxes_xyxy=letterbox.invert(one.boxes_xyxy)) for one, letterbox in pairs]

    def run(self, images: npt.NDArray[np.floating[Any]]) -> list[list[npt.NDArray[Any]]]:
        """See `OnnxDetector.run`."""
        return self._detector.run(images)


def build(config: OnnxConfig, classes: tuple[str, ...] | None, where: str) -> OnnxPredictor:
    """Open a file.

    Args:
        config: of the file.
        classes: names that it must predict; None: any.
        where: key for messages, e.g. ``teacher``.

    Raises:
        RequestError: see `OnnxPredictor`; or it predicts other classes.
    """
    try:
        predictor = OnnxPredictor(
            config.weights, config.classes, config.output_format, config.threads, config.preprocessing
        )
    except RequestError as error:
        raise RequestError(*(f"{where}: {line}" for line in error.problems)) from None
    if classes is not None and predictor.spec.classes != classes:
        raise RequestError(
            f"{where}: {config.weights} predicts other classes than the data has; map them with {where}.labels"
        )
    return predictor


def _to_numpy(images: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = images.detach().cpu().float().numpy()
    return array
