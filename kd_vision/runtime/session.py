"""Opens an ONNX file and says what goes in and what comes out.

Shapes: B images, C channels, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from kd_vision.core.errors import RequestError, first_line
from kd_vision.runtime.metadata import recorded_size

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
    """An output of a graph: its name, its shape (a number, or a name for a free side), whether it holds integers."""

    name: str
    shape: tuple[int | str | None, ...]
    integer: bool

    def __str__(self) -> str:
        return f"{self.name} ({', '.join('?' if side is None else str(side) for side in self.shape)})"


class OnnxGraph:
    """An opened file, run on the CPU provider of onnxruntime.

    Attributes:
        path: of the file.
        input: what goes in.
        outputs: what comes out.
        metadata: what the file says of itself.

    Args:
        path: the file.
        threads: of onnxruntime within one operator; 0: its own choice.

    Raises:
        RequestError: the file is missing, corrupt, or takes no image.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        self.path = path
        self._session = open_session(path, threads)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.input = _read_input(self._session, path)
        self.outputs = tuple(
            OnnxOutput(each.name, tuple(each.shape), "int" in each.type) for each in self._session.get_outputs()
        )

    def run(self, images: npt.NDArray[Any], max_batch: int | None = None) -> list[list[npt.NDArray[Any]]]:
        """Run the graph.

        Args:
            images: (B, C, H, W) as the file wants them; any B: a fixed batch is filled up with zeros.
            max_batch: most images per call; None: as many as the file takes.

        Returns:
            For each image its part of every output, without the batch axis (where the output has one: a call
            with one image gives outputs of rank 1 or 2 whole). Floats are float32.

        Raises:
            RequestError: onnxruntime cannot run it on images of this size.
        """
        images = np.ascontiguousarray(images, dtype=self.input.dtype)
        size = self.input.batch or max_batch or max(len(images), 1)
        found: list[list[npt.NDArray[Any]]] = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
            shown = filled if self.input.batch else part
            answers = self._run(shown)
            values = [_plain_floats(np.asarray(answer)) for answer in answers]
            found += [[value[image] if value.ndim == 3 else value for value in values] for image in range(len(part))]
        return found

    def _run(self, shown: npt.NDArray[Any]) -> list[Any]:
        try:
            answers: list[Any] = self._session.run(
                None, {self.input.name: shown[0] if self.input.no_batch_axis else shown}
            )
        except Exception as error:
            height, width = shown.shape[-2:]
            size = recorded_size(self.metadata) or "the side it was exported for"
            raise RequestError(
                f"{self.path}: onnxruntime cannot run it on images of {height}x{width} ({first_line(error)}); give "
                f"image_size: {size}"
            ) from error
        return answers


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
    except Exception as error:
        raise RequestError(f"{path}: onnxruntime cannot open it ({first_line(error)}); export it again") from error


def _plain_floats(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype(np.float32, copy=False) if np.issubdtype(values.dtype, np.floating) else values


def _read_input(session: onnxruntime.InferenceSession, path: Path) -> OnnxInput:
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    no_batch_axis = len(shape) == 3
    shape = [1, *shape] if no_batch_axis else shape
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
    return OnnxInput(inputs[0].name, fixed_batch, channels, size, _INPUT_DTYPES[inputs[0].type], no_batch_axis)
