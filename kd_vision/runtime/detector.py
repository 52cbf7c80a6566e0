"""Object detection with an ONNX file, without torch: image in, detections out.

Shapes: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.runtime.class_names import class_names
from kd_vision.runtime.letterbox import Pixels
from kd_vision.runtime.metadata import ModelMetadata
from kd_vision.runtime.output_formats import OUTPUT_FORMATS, DecodeContext, OutputFormat, find_output_format
from kd_vision.runtime.preprocessing import Preprocessing
from kd_vision.runtime.session import CPU_ONLY, OnnxGraph

DEFAULT_IMAGE_SIZE = 640


class OnnxDetector:
    """An ONNX file as a detector, run by onnxruntime.

    Boxes pass through the same post-processing as those of a torch detector, so that AP is comparable. The thresholds
    of a file with NMS in its graph are constants of the graph: `PredictOptions` can only narrow its output.

    Attributes:
        path: of the file.
        metadata: what the file records about itself.
        input: the image input of the graph.
        classes: names in label order.
        output_format: meaning of the outputs.
        preprocessing: steps from an image to the input.

    Args:
        path: the file.
        classes: names in label order, or `coco80` or `coco91`, for a file that does not record them.
        output_format: for a file that does not record it.
        threads: of onnxruntime within one operator; 0: its own choice.
        preprocessing: fields of `Preprocessing` that the file does not record.
        providers: execution providers in order of preference, e.g. ``("cuda", "cpu")``; see `session.PROVIDERS`.

    Raises:
        RequestError: the file is missing or corrupt, its input or output has no known meaning, or a provider is not
            available.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str] | str | None = None,
        output_format: OutputFormat | None = None,
        threads: int = 0,
        preprocessing: Mapping[str, Any] | None = None,
        providers: Sequence[str] = CPU_ONLY,
    ) -> None:
        self.path = path
        self._graph = OnnxGraph(path, threads, providers)
        self.input = self._graph.input
        outputs = self._graph.outputs
        declared = class_names(classes, output_format, path)
        count = None if declared is None else len(declared)
        self.metadata = ModelMetadata.read(self._graph.metadata, path, outputs[0].shape, count)
        names = declared or self.metadata.classes
        self.output_format = find_output_format(
            self.metadata.output_format, output_format, outputs, None if names is None else len(names), path
        )
        if names is None:
            raise RequestError(f"{path}: the file does not record its classes; declare them, in label order")
        self.classes = names
        self._entry = OUTPUT_FORMATS[self.output_format]
        try:
            self._order = self._entry.match_outputs(outputs, len(names))
        except ValueError as error:
            raise RequestError(f"{path}: output format '{self.output_format}' {error}") from None
        self.preprocessing = self._find_preprocessing(preprocessing or {})

    @property
    def image_size(self) -> int | None:
        """Height and width that the graph takes, or that the file recommends; None: any size, none recommended."""
        return self.input.size or self.metadata.image_size

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of it; it divides the only size of a graph that takes no other."""
        return math.gcd(self.metadata.size_multiple or self._entry.multiple, self.input.size or 0)

    @property
    def needs_nms(self) -> bool:
        """True where the graph gives overlapping boxes of one object."""
        return self._entry.needs_nms

    def __call__(self, image: Pixels, options: PredictOptions = PredictOptions()) -> Detections:
        """See `predict`."""
        return self.predict(image, options)

    def predict(
        self, image: Pixels, options: PredictOptions = PredictOptions(), image_size: int | None = None
    ) -> Detections:
        """Detect objects in one image of any size.

        Args:
            image: (H, W, C) uint8, RGB or gray.
            options: thresholds.
            image_size: side of the square input, for a graph that takes any size; None: the recommended size, or 640.

        Returns:
            Boxes in pixels of `image`, best first.

        Raises:
            RequestError: see `detect`.
        """
        if image.ndim != 3 or image.dtype != np.uint8:
            raise RequestError(f"image: is {image.dtype} {image.shape}; give uint8 (height, width, channels)")
        square, placement = self.preprocessing.fit(image, image_size or self.image_size or DEFAULT_IMAGE_SIZE)
        images = square.transpose(2, 0, 1)[None].astype(np.float32) / 255
        detections = self.detect(images, options, ["the image"])[0]
        return replace(detections, boxes_xyxy=placement.invert(detections.boxes_xyxy))

    def detect(
        self,
        images: npt.NDArray[np.floating[Any]],
        options: PredictOptions = PredictOptions(),
        names: Sequence[str] | None = None,
    ) -> list[Detections]:
        """Detect objects in images of the input size.

        Args:
            images: (B, C, H, W) RGB in [0, 1].
            options: thresholds.
            names: of the images, for messages; None: their numbers.

        Returns:
            One `Detections` per image, boxes in input pixels, best first.

        Raises:
            RequestError: the graph does not take this size or number of channels, or its outputs are no boxes.
        """
        self._refuse_wrong_shape(images.shape)
        if names is None:
            names = [f"image {number} of the batch" for number in range(1, len(images) + 1)]
        context = DecodeContext(len(self.classes), images.shape[2], images.shape[3], options)
        return [self._decode(outputs, context, name) for outputs, name in zip(self.run(images), names, strict=True)]

    def run(self, images: npt.NDArray[np.floating[Any]]) -> list[list[npt.NDArray[Any]]]:
        """Run the graph without decoding.

        Args:
            images: (B, C, H, W) RGB in [0, 1]; any B: a fixed batch is filled up with zeros.

        Returns:
            For each image the raw outputs in the file's order, without the batch axis.
        """
        return self._graph.run(self.preprocessing.apply(images), self._entry.max_batch)

    def _refuse_wrong_shape(self, shape: tuple[int, ...]) -> None:
        channels, height, width = shape[1:]
        errors = []
        if channels != self.input.channels:
            errors.append(f"{self.path}: takes {self.input.channels} channels, the images have {channels}")
        size = self.input.size
        if size is not None and (height, width) != (size, size):
            errors.append(
                f"{self.path}: takes images of {size}x{size} pixels, given {height}x{width}; use image size {size}"
            )
        if errors:
            raise RequestError(*errors)

    def _decode(self, outputs: Sequence[npt.NDArray[Any]], context: DecodeContext, name: str) -> Detections:
        values = [outputs[position] for position in self._order]
        where, doubt = f"{self.path}: {name}", f"is its output format really '{self.output_format}'?"
        if any(np.isnan(value).any() for value in values):
            raise RequestError(f"{self.path}: the output for {name} holds NaN; the file is broken, export it again")
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                detections = self._entry.decode(values, context)
        except ValueError as error:
            raise RequestError(f"{where}: {error}; {doubt}") from None
        if not np.isfinite(detections.boxes_xyxy).all():
            raise RequestError(f"{where}: boxes are not finite; {doubt}")
        return detections

    def _find_preprocessing(self, declared: Mapping[str, Any]) -> Preprocessing:
        """Return what the file records, else what is declared, else what files of the format are trained with."""
        recorded, usual = self.metadata.preprocessing, self._entry.preprocessing
        errors = [
            f"{self.path}: {key} is declared as {value}, but the file records {getattr(recorded, key)}; leave it out"
            for key, value in declared.items()
            if recorded is not None and getattr(recorded, key) not in (None, value)
        ]
        preprocessing = replace(recorded or usual or Preprocessing(), **declared)
        if (preprocessing.mean is None) != (preprocessing.std is None):
            errors.append(f"{self.path}: mean and std go together; declare both, or neither")
        channels = self.input.channels
        errors += [
            f"{self.path}: {key} has {len(values)} numbers, the file takes {channels} channels"
            for key, values in (("mean", preprocessing.mean), ("std", preprocessing.std))
            if values is not None and len(values) != channels
        ]
        if usual is None and recorded is None and preprocessing.mean is None:
            errors.append(
                f"{self.path}: files of output format '{self.output_format}' differ in how images are normalised; "
                f"declare mean and std, e.g. [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225] (DETR), or [0, 0, 0] and "
                f"[1, 1, 1] (RT-DETR)"
            )
        if errors:
            raise RequestError(*errors)
        return preprocessing
