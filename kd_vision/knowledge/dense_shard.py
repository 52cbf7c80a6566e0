"""The file format of dense labels: an Arrow file of several training steps, one record batch a step and branch.

Class logits are 16-bit fixed point (steps of 1/32, limits +-1000), sides of boxes are half precision (relative error
2^-11). The log-probability of a box bin is (1 - exp(n / 8)) / 2 with n in 8 bits: fine near 0, where the distribution
is, and coarse in the tail. Values of one kind lie together, low bytes before high bytes, compressed by Zstandard.

Shapes: B images, A rows of a head, N stored rows of the batch, S strides, K classes, R bins per box side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from kd_vision.core.dense_labels import DenseLabels

_LOGIT_STEPS, _LIMIT = 32, 1000.0
_BIN_STEPS, _BIN_SCALE = 8, 0.5
_LEVEL = 9
_FACTS = b"steps"
_COLUMNS = ("rows", "logits", "sides", "background_logits", "box_bins", "background_bins")
_SCHEMA = pa.schema([(name, pa.list_(pa.uint8())) for name in _COLUMNS])

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StoredStep:
    """The dense labels of a training step.

    Attributes:
        checksum: of the images that the teacher saw, see `image_checksum`.
        images: B.
        branches: dense labels by branch of the head.
    """

    checksum: int
    images: int
    branches: Mapping[str, DenseLabels]


def encode(steps: Sequence[StoredStep], head_rows: int) -> bytes:
    """Return the file of some steps; equal content gives equal bytes.

    Args:
        steps: consecutive.
        head_rows: A.
    """
    branches = list(steps[0].branches)
    facts = {"branches": branches, "steps": [[step.checksum, step.images] for step in steps]}
    schema = _SCHEMA.with_metadata({_FACTS: json.dumps(facts)})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", _LEVEL), use_threads=False)
    with pa.ipc.new_file(sink, schema, options=options) as file:
        for step in steps:
            for branch in branches:
                file.write_batch(_record(step.branches[branch], step.images * head_rows, schema))
    return bytes(sink.getvalue())


class DenseShard:
    """An open file of some steps; a step is read and decoded when it is asked for.

    Args:
        path: the file.
        head_rows: A.
        classes: K.
        bins: R; None: the head regresses directly.
    """

    def __init__(self, path: Path, head_rows: int, classes: int, bins: int | None) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        facts = json.loads(self._file.schema.metadata[_FACTS])
        self._branches: list[str] = facts["branches"]
        self._steps: list[list[int]] = facts["steps"]
        self._head_rows, self._classes, self._bins = head_rows, classes, bins

    def step(self, position: int) -> StoredStep:
        """Return the step at a position of the file."""
        checksum, images = self._steps[position]
        first = position * len(self._branches)
        branches = {name: self._read(first + index, images) for index, name in enumerate(self._branches)}
        return StoredStep(checksum, images, branches)

    def _read(self, record: int, images: int) -> DenseLabels:
        batch = self._file.get_batch(record)
        part = {name: batch.column(name).values.to_numpy() for name in _COLUMNS}
        bits = np.unpackbits(part["rows"], count=images * self._head_rows)
        rows = np.flatnonzero(bits)
        count = len(rows)
        logits = _joined(part["logits"], "<i2").reshape(self._classes, count).T.astype(np.float32) / _LOGIT_STEPS
        sides = _joined(part["sides"], "<f2").reshape(4, count).T.astype(np.float32)
        background = _joined(part["background_logits"], "<f2").reshape(-1, self._classes).astype(np.float32)
        bins = background_bins = None
        if self._bins is not None:
            codes = part["box_bins"].reshape(4 * self._bins, count).T.reshape(count, 4, self._bins)
            bins = -_BIN_SCALE * np.expm1(codes.astype(np.float32) / _BIN_STEPS)
            background_bins = _joined(part["background_bins"], "<f2").reshape(-1, 4, self._bins).astype(np.float32)
        return DenseLabels(
            _tensor(rows),
            _tensor(logits),
            _tensor(sides),
            _tensor(background),
            None if bins is None else _tensor(bins),
            None if background_bins is None else _tensor(background_bins),
        )


def _record(labels: DenseLabels, rows: int, schema: pa.Schema) -> pa.RecordBatch:
    bits = np.zeros(rows, np.bool_)
    bits[_array(labels.rows)] = True
    logits = np.rint(_array(labels.logits).clip(-_LIMIT, _LIMIT) * _LOGIT_STEPS).astype(np.int16)
    arrays = {
        "rows": np.packbits(bits),
        "logits": _split(logits.T),
        "sides": _split(_array(labels.sides).astype(np.float16).T),
        "background_logits": _split(_array(labels.background_logits).astype(np.float16)),
        "box_bins": np.zeros(0, np.uint8),
        "background_bins": np.zeros(0, np.uint8),
    }
    if labels.box_bins is not None and labels.background_bins is not None:
        distance = -_array(labels.box_bins).clip(max=0.0) / _BIN_SCALE
        codes = np.rint(np.log1p(distance) * _BIN_STEPS).clip(0, 255)
        arrays["box_bins"] = codes.astype(np.uint8).transpose(1, 2, 0).ravel()
        arrays["background_bins"] = _split(_array(labels.background_bins).astype(np.float16))
    columns = [pa.array([arrays[name]], pa.list_(pa.uint8())) for name in _COLUMNS]
    return pa.record_batch(columns, schema=schema)


def _tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _array(values: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.cpu().numpy()
    return array


def _split(values: npt.NDArray[Any]) -> Bytes:
    """Return 16-bit values as all their low bytes, then all their high bytes."""
    flat = np.ascontiguousarray(values).ravel().astype(values.dtype.newbyteorder("<"))
    return np.ascontiguousarray(flat.view(np.uint8).reshape(-1, 2).T).ravel()


def _joined(planes: Bytes, kind: str) -> npt.NDArray[Any]:
    """Return the 16-bit values of `_split`, flat."""
    return np.ascontiguousarray(planes.reshape(2, -1).T).view(kind).ravel()
