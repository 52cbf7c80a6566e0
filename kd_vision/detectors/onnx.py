"""A detector that is only an ONNX file: ours, ultralytics' own, or one whose layout is declared.

Shapes: B images, C channels, H W input pixels, A grid points, K classes, M rows.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.predictions import Detections
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import PredictOptions
from kd_vision.detectors.postprocess import suppress, take_top, to_original, xywh_to_xyxy

Layout = Literal["dense_xywh", "end_to_end", "nms"]

KEY_CLASSES = "kd_vision.classes"
KEY_LAYOUT = "kd_vision.layout"
KEY_PREPROCESSING = "kd_vision.preprocessing"
KEY_TRAINING_RUN = "kd_vision.training_run"
KEY_VERSION = "kd_vision.version"
KEY_PARITY = "kd_vision.parity"

_LAYOUT_MEANING: Mapping[str, str] = {
    "dense_xywh": "(B, 4 + classes, points): centre x, centre y, width, height in input pixels, then scores",
    "end_to_end": "(B, boxes, 6): x1 y1 x2 y2 score label, no NMS needed",
    "nms": "(B, boxes, 6): the same rows after NMS in the graph, padded with zeros",
}
_ROW = 6
_INPUT_DTYPES: Mapping[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


@dataclass(frozen=True, slots=True)
class OnnxInput:
    """The image input of a graph.

    Attributes:
        name: in the graph.
        batch: images per call; None: any number.
        channels: 1, 3 or 4.
        size: height and width in pixels; None: any size.
        dtype: of the values.
    """

    name: str
    batch: int | None
    channels: int
    size: int | None
    dtype: type[np.floating[Any]]


class OnnxPredictor:
    """Final boxes from an ONNX file, on the CPU provider of onnxruntime.

    Boxes pass through the same post-processing as those of a torch detector, so that figures are
    comparable. A file with NMS in its graph has baked its thresholds in: `PredictOptions` can only
    narrow what it gives.

    Args:
        path: the file.
        classes: names in label order, for a file that does not say them.
        layout: what the output means, for a file that does not say it.
        threads: of onnxruntime within one operator; 0: its own choice.

    Raises:
        RequestError: the file is missing, corrupt, or its input or output has no known meaning.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str] | None = None,
        layout: Layout | None = None,
        threads: int = 0,
    ) -> None:
        self.path = path
        self._session = open_session(path, threads)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.input = _read_input(self._session, path)
        names = tuple(classes) if classes is not None else _read_classes(self.metadata, path)
        output = _only_output(self._session, path)
        self.layout: Layout = _find_layout(output, names, layout, self.metadata, path)
        if names is None:
            raise RequestError(f"{path}: the file does not name its classes; declare them, in label order")
        _check_output(output, self.layout, names, path)
        self.spec = DetectorSpec(
            family="onnx",
            name=path.stem,
            classes=names,
            level_channels={},
            level_strides={},
            provides=frozenset({"detections"}),
            input_channels=self.input.channels,
            size_multiple=_stride(self.metadata),
            end_to_end=self.layout != "dense_xywh",
        )

    @property
    def image_size(self) -> int | None:
        """Height and width the file wants; None where it takes any size and recommends none."""
        return self.input.size or _recommended_size(self.metadata)

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image.

        Raises:
            RequestError: the images do not have the size or the channels that the file takes.
        """
        images = batch.as_float().images
        self._check_images(images.shape)
        output = torch.from_numpy(self.run(images.detach().cpu().numpy()))
        return [
            to_original(self._decode(rows, options), letterbox)
            for rows, letterbox in zip(output, batch.letterboxes, strict=True)
        ]

    def run(self, images: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Run the graph alone.

        Args:
            images: (B, C, H, W) RGB in [0, 1]; any B: a fixed batch is filled up with zeros.

        Returns:
            The raw output, (B, 4 + K, A) or (B, M, 6).
        """
        images = np.ascontiguousarray(images, dtype=self.input.dtype)
        size = self.input.batch or max(len(images), 1)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            missing = size - len(part)
            if missing:
                part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
            output = np.asarray(self._session.run(None, {self.input.name: part})[0], dtype=np.float32)
            parts.append(output[: size - missing])
        return np.concatenate(parts)

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

    def _decode(self, rows: torch.Tensor, options: PredictOptions) -> Detections:
        """Turn the output for one image into boxes in input pixels."""
        if self.layout == "dense_xywh":
            return suppress(xywh_to_xyxy(rows[:4].T), rows[4:].T, options)
        boxes, scores, labels = rows[:, :4], rows[:, 4], rows[:, 5].round().long()
        found = take_top(boxes, scores, labels, options)
        if len(found) and not 0 <= int(found.labels.min()) <= int(found.labels.max()) < len(self.spec.classes):
            raise RequestError(
                f"{self.path}: the output has label {int(found.labels.max())}, but the file names only "
                f"{len(self.spec.classes)} classes; is its layout really '{self.layout}'?"
            )
        return found


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU.

    Args:
        path: the file.
        threads: within one operator; 0: onnxruntime's own choice.

    Raises:
        RequestError: the file is missing, or onnxruntime cannot open it.
    """
    if not path.is_file():
        raise RequestError(f"{path}: does not exist; give an .onnx file")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each cause, none of them public
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RequestError(f"{path}: onnxruntime cannot open it ({lines[0][:160]}); export it again") from error


def _read_input(session: onnxruntime.InferenceSession, path: Path) -> OnnxInput:
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    if len(shape) != 4 or shape[1] not in (1, 3, 4):
        found = ", ".join(f"{each.name} {each.shape}" for each in inputs)
        raise RequestError(f"{path}: expected one image input (batch, channels, height, width), found {found}")
    if inputs[0].type not in _INPUT_DTYPES:
        raise RequestError(f"{path}: input {inputs[0].name} is {inputs[0].type}; possible: {', '.join(_INPUT_DTYPES)}")
    batch, channels, height, width = shape
    size = height if isinstance(height, int) else None
    if size is not None and height != width:
        raise RequestError(f"{path}: takes images of {height}x{width} pixels; only square inputs are supported")
    fixed_batch = batch if isinstance(batch, int) else None
    return OnnxInput(inputs[0].name, fixed_batch, channels, size, _INPUT_DTYPES[inputs[0].type])


def _read_classes(metadata: Mapping[str, str], path: Path) -> tuple[str, ...] | None:
    if KEY_CLASSES in metadata:
        return tuple(str(name) for name in json.loads(metadata[KEY_CLASSES]))
    if "names" not in metadata:
        return None
    try:
        names = ast.literal_eval(metadata["names"])
        if isinstance(names, Mapping):
            names = [names[index] for index in range(len(names))]
        return tuple(str(name) for name in names)
    except (ValueError, SyntaxError, KeyError, TypeError):
        raise RequestError(f"{path}: metadata 'names' is not a list of classes: {metadata['names'][:80]}") from None


def _only_output(session: onnxruntime.InferenceSession, path: Path) -> list[int | str | None]:
    outputs = session.get_outputs()
    if len(outputs) != 1 or len(outputs[0].shape) != 3:
        found = ", ".join(f"{each.name} {each.shape}" for each in outputs)
        raise RequestError(f"{path}: output layout not recognised: found {found}; {_supported()}")
    return list(outputs[0].shape)


def _find_layout(
    output: Sequence[int | str | None],
    classes: tuple[str, ...] | None,
    declared: Layout | None,
    metadata: Mapping[str, str],
    path: Path,
) -> Layout:
    """What the file says counts; what the user declares counts only where the file says nothing."""
    said = metadata.get(KEY_LAYOUT) or _ultralytics_layout(metadata, path)
    if said is not None and said not in get_args(Layout):
        raise RequestError(f"{path}: layout '{said}' is unknown{suggest(said, get_args(Layout))}")
    if said is not None and declared is not None and declared != said:
        raise RequestError(f"{path}: declared as '{declared}', but the file says '{said}'; leave the layout out")
    if said is not None or declared is not None:
        return cast(Layout, said or declared)
    if classes is not None and output[1] == 4 + len(classes):
        return "dense_xywh"
    shape = ", ".join(str(side) for side in output)
    raise RequestError(f"{path}: output layout not recognised: found ({shape}) and no metadata; {_supported()}")


def _ultralytics_layout(metadata: Mapping[str, str], path: Path) -> str | None:
    """Read the layout from the keys ultralytics writes; None where they are not there."""
    task = metadata.get("task")
    if task is None:
        return None
    if task != "detect":
        raise RequestError(f"{path}: is a model for '{task}'; only 'detect' is supported")
    try:
        arguments = ast.literal_eval(metadata.get("args", "{}"))
    except (ValueError, SyntaxError):
        arguments = {}
    if isinstance(arguments, Mapping) and arguments.get("nms"):
        return "nms"
    return "end_to_end" if metadata.get("end2end", "False") == "True" else "dense_xywh"


def _check_output(output: Sequence[int | str | None], layout: Layout, classes: tuple[str, ...], path: Path) -> None:
    if layout == "dense_xywh":
        side, wanted, meaning = output[1], 4 + len(classes), f"4 + {len(classes)} classes"
    else:
        side, wanted, meaning = output[2], _ROW, "x1 y1 x2 y2 score label"
    if isinstance(side, int) and side != wanted:
        shape = ", ".join(str(each) for each in output)
        raise RequestError(
            f"{path}: layout '{layout}' needs {wanted} values a box ({meaning}), the output is ({shape})"
        )


def _supported() -> str:
    known = "; ".join(f"{name} {meaning}" for name, meaning in _LAYOUT_MEANING.items())
    return f"supported layouts: {known}"


def _stride(metadata: Mapping[str, str]) -> int:
    text = metadata.get("stride", "")
    return int(text) if text.isdigit() and int(text) > 0 else 32


def _recommended_size(metadata: Mapping[str, str]) -> int | None:
    try:
        sizes = ast.literal_eval(metadata.get("imgsz", "None"))
    except (ValueError, SyntaxError):
        return None
    if isinstance(sizes, int):
        return sizes
    return max(sizes) if isinstance(sizes, (list, tuple)) and sizes else None
