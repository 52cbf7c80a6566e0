"""ONNX sessions: opens a file with onnxruntime, reads its inputs and outputs, runs it.

Shapes: B images, C channels, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from kd_vision.core.errors import RequestError, first_line
from kd_vision.runtime.metadata import recorded_size

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
"""Short names of onnxruntime's execution providers."""

CPU_ONLY = (PROVIDERS["cpu"],)

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
        no_batch_axis: the input has no batch axis, (C, H, W).
    """

    name: str
    batch: int | None
    channels: int
    size: int | None
    dtype: type[np.floating[Any]]
    no_batch_axis: bool = False


@dataclass(frozen=True, slots=True)
class OnnxOutput:
    """An output of a graph.

    Attributes:
        name: in the graph.
        shape: length of each axis; a name or None where it is free.
        integer: the values are integers.
    """

    name: str
    shape: tuple[int | str | None, ...]
    integer: bool

    def __str__(self) -> str:
        return f"{self.name} ({', '.join('?' if side is None else str(side) for side in self.shape)})"


class OnnxGraph:
    """An ONNX file opened by onnxruntime.

    Attributes:
        path: of the file.
        input: the image input.
        outputs: in the file's order.
        metadata: properties of the file by key.

    Args:
        path: the file.
        threads: of onnxruntime within one operator; 0: its own choice.
        providers: execution providers, see `open_session`.

    Raises:
        RequestError: the file is missing or corrupt, takes no image, or a provider is not available.
    """

    def __init__(self, path: Path, threads: int = 0, providers: Sequence[str] = CPU_ONLY) -> None:
        self.path = path
        self._session = open_session(path, threads, providers)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.input = _read_input(self._session, path)
        self.outputs = tuple(
            OnnxOutput(each.name, tuple(each.shape), "int" in each.type) for each in self._session.get_outputs()
        )

    def run(self, images: npt.NDArray[Any], max_batch: int | None = None) -> list[list[npt.NDArray[Any]]]:
        """Run the graph.

        Args:
            images: (B, C, H, W) in the graph's own values; any B: the last call of a fixed batch is filled up with
                zeros.
            max_batch: images per call at most; None: as many as the graph takes.

        Returns:
            For each image its part of every output, without the batch axis. An output of rank 1 or 2 has no batch
            axis (the graph takes one image per call) and is returned whole. Floats are float32.

        Raises:
            RequestError: onnxruntime cannot run it on images of this size.
        """
        images = np.ascontiguousarray(images, dtype=self.input.dtype)
        size = self.input.batch or max_batch or max(len(images), 1)
        results: list[list[npt.NDArray[Any]]] = []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            missing = size - len(chunk) if self.input.batch else 0
            padded = np.concatenate([chunk, np.zeros((missing, *chunk.shape[1:]), chunk.dtype)]) if missing else chunk
            outputs = [_as_float32(np.asarray(output)) for output in self._call(padded)]
            results += [
                [output[image] if output.ndim == 3 else output for output in outputs] for image in range(len(chunk))
            ]
        return results

    def _call(self, images: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
        feed = {self.input.name: images[0] if self.input.no_batch_axis else images}
        try:
            outputs: Sequence[npt.NDArray[Any]] = self._session.run(None, feed)
        except Exception as error:
            height, width = images.shape[-2:]
            size = recorded_size(self.metadata) or "the size it was exported for"
            raise RequestError(
                f"{self.path}: onnxruntime cannot run it on images of {height}x{width} ({first_line(error)}); give "
                f"image_size: {size}"
            ) from error
        return outputs


def open_session(path: Path, threads: int = 0, providers: Sequence[str] = CPU_ONLY) -> onnxruntime.InferenceSession:
    """Open an ONNX file, with the telemetry of onnxruntime switched off.

    Args:
        path: the file.
        threads: within one operator; 0: onnxruntime's own choice.
        providers: execution providers in order of preference, by onnxruntime's names or those of `PROVIDERS`.

    Raises:
        RequestError: the file is missing, a provider is not available, or onnxruntime cannot open the file.
    """
    if not path.is_file():
        raise RequestError(f"{path}: does not exist; give an .onnx file")
    names = resolve_providers(providers)
    getattr(onnxruntime, "disable_telemetry_events", lambda: None)()  # absent from builds without telemetry
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=names)
    except Exception as error:
        raise RequestError(f"{path}: onnxruntime cannot open it ({first_line(error)}); export it again") from error


def resolve_providers(names: Sequence[str]) -> list[str]:
    """Return onnxruntime's names of execution providers.

    Raises:
        RequestError: one is unknown, or not part of the onnxruntime that is installed.
    """
    available: list[str] = onnxruntime.get_available_providers()
    resolved = [PROVIDERS.get(name.lower(), name) for name in names]
    short = {full: name for name, full in PROVIDERS.items()}
    possible = ", ".join(short.get(full, full) for full in available)
    errors = [
        f"providers: '{name}' is not available in this build of onnxruntime; possible: {possible}"
        for name, full in zip(names, resolved, strict=True)
        if full not in available
    ]
    if not names:
        errors = [f"providers: is empty; possible: {possible}"]
    if errors:
        raise RequestError(*errors)
    return resolved


def _as_float32(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype(np.float32, copy=False) if np.issubdtype(values.dtype, np.floating) else values


def _read_input(session: onnxruntime.InferenceSession, path: Path) -> OnnxInput:
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    no_batch_axis = len(shape) == 3
    shape = [1, *shape] if no_batch_axis else shape
    if len(shape) != 4 or shape[1] not in (1, 3, 4):
        shapes = ", ".join(f"{each.name} {each.shape}" for each in inputs)
        raise RequestError(f"{path}: expected one image input (batch, channels, height, width), the file has {shapes}")
    if inputs[0].type not in _INPUT_DTYPES:
        raise RequestError(f"{path}: input {inputs[0].name} is {inputs[0].type}; possible: {', '.join(_INPUT_DTYPES)}")
    batch, channels, height, width = shape
    size = height if isinstance(height, int) else None
    if size is not None and height != width:
        raise RequestError(f"{path}: takes images of {height}x{width} pixels; only square inputs are supported")
    fixed_batch = batch if isinstance(batch, int) else None
    return OnnxInput(inputs[0].name, fixed_batch, channels, size, _INPUT_DTYPES[inputs[0].type], no_batch_axis)
