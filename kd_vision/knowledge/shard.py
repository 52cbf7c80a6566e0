"""The file format of a shard: one Parquet row per image.

Boxes are 16-bit fixed point relative to the image (off by at most 1/131070 of its side, 0.008 px of 1000), scores
and probabilities are half precision, only the likeliest classes of a box are stored.

Shapes: N images, M boxes of one image, K classes, k stored classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kd_vision.core.predictions import Detections

_STEPS = 65535
_LISTS = {
    "boxes": pa.uint16(),
    "scores": pa.float16(),
    "labels": pa.uint16(),
    "classes": pa.uint16(),
    "probs": pa.float16(),
    "ignore": pa.bool_(),
}
_SCHEMA = pa.schema(
    [
        ("sha256", pa.binary(32)),
        ("file", pa.string()),
        ("bytes", pa.uint64()),
        ("width", pa.uint32()),
        ("height", pa.uint32()),
        *((name, pa.list_(kind)) for name, kind in _LISTS.items()),
    ]
)
# Not of coordinates and probabilities: they hardly repeat, a dictionary would only take space.
_DICTIONARY = ["labels.list.element", "classes.list.element", "width", "height"]


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Identity of the image of a row.

    Attributes:
        name: relative to the folder that was labelled.
        sha256: of the file's bytes, in hex.
        bytes: of the file.
        width: pixels, upright.
        height: pixels, upright.
    """

    name: str
    sha256: str
    bytes: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """A column of lists: all values, and the start of each row's list."""

    values: npt.NDArray[np.generic]
    starts: npt.NDArray[np.int32]

    def of(self, row: int) -> npt.NDArray[np.generic]:
        return self.values[self.starts[row] : self.starts[row + 1]]


def encode(images: Sequence[StoredImage], detections: Sequence[Detections], top_k: int) -> bytes:
    """Return the file of a shard; equal content gives equal bytes.

    Args:
        images: N.
        detections: the teacher's predictions on each, boxes in pixels of the image.
        top_k: stored classes per box, likeliest first.
    """
    lists = [_row(image, one, top_k) for image, one in zip(images, detections, strict=True)]
    columns = [
        pa.array([bytes.fromhex(image.sha256) for image in images], pa.binary(32)),
        pa.array([image.name for image in images], pa.string()),
        pa.array([image.bytes for image in images], pa.uint64()),
        pa.array([image.width for image in images], pa.uint32()),
        pa.array([image.height for image in images], pa.uint32()),
        *(_column([row[name] for row in lists], kind) for name, kind in _LISTS.items()),
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema=_SCHEMA),
        sink,
        compression="zstd",
        use_dictionary=_DICTIONARY,
        write_statistics=False,
        store_schema=False,
    )
    return bytes(sink.getvalue())


def _row(image: StoredImage, detections: Detections, top_k: int) -> dict[str, npt.NDArray[np.generic]]:
    size = np.array([image.width, image.height] * 2, np.float64)
    boxes = np.rint(detections.boxes_xyxy.astype(np.float64) / size * _STEPS).clip(0, _STEPS)
    dense = detections.class_probs if detections.class_probs is not None else np.zeros((0, 0), np.float32)
    classes = np.argsort(-dense, axis=1, kind="stable")[:, :top_k]
    probs = np.take_along_axis(dense, classes, axis=1)
    return {
        "boxes": boxes.astype(np.uint16),
        "scores": detections.scores.astype(np.float16),
        "labels": detections.labels.astype(np.uint16),
        "classes": classes.astype(np.uint16),
        "probs": probs.astype(np.float16),
        "ignore": np.zeros(0, np.bool_) if detections.ignore is None else detections.ignore,
    }


def _column(rows: list[npt.NDArray[np.generic]], kind: pa.DataType) -> pa.ListArray:
    starts = np.cumsum([0, *(row.size for row in rows)]).astype(np.int32)
    values = pa.array(np.concatenate([row.ravel() for row in rows]), kind)
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)


class ShardRows:
    """The rows of one or several shards in memory, about as small as on disk.

    Args:
        files: content of the shards, in order.
        classes: K.
    """

    def __init__(self, files: Sequence[bytes], classes: int) -> None:
        tables = [pq.read_table(pa.BufferReader(file)) for file in files]
        table = pa.concat_tables(tables).combine_chunks()
        facts = table.select(["file", "sha256", "bytes", "width", "height"]).to_pydict()
        rows = zip(facts["file"], facts["sha256"], facts["bytes"], facts["width"], facts["height"], strict=True)
        self.images = tuple(StoredImage(name, sha.hex(), *rest) for name, sha, *rest in rows)
        self._classes = classes
        self._lists = {name: _read(table.column(name).chunk(0)) for name in _LISTS}

    def detections(self, row: int) -> Detections:
        """Return the predictions on an image, boxes in its pixels, in the teacher's classes."""
        image = self.images[row]
        part = {name: column.of(row) for name, column in self._lists.items()}
        size = np.array([image.width, image.height] * 2, np.float64)
        count = len(part["scores"])
        boxes = part["boxes"].reshape(count, 4).astype(np.float64) / _STEPS * size
        probs = None
        if len(part["probs"]):
            probs = np.zeros((count, self._classes), np.float32)
            classes = part["classes"].reshape(count, -1).astype(np.int64)
            np.put_along_axis(probs, classes, part["probs"].reshape(count, -1).astype(np.float32), axis=1)
        return Detections(
            boxes.astype(np.float32),
            part["scores"].astype(np.float32),
            part["labels"].astype(np.int64),
            probs,
            part["ignore"].astype(np.bool_) if len(part["ignore"]) else None,
        )


def _read(column: pa.ListArray) -> _Lists:
    return _Lists(column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy())
