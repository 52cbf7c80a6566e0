"""Reads a finished store, and looks up the predictions of an image."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kd_vision.core.errors import RequestError, truncate
from kd_vision.core.fingerprint import file_sha256
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.knowledge.config import StoreConfig, Verify
from kd_vision.knowledge.manifest import Manifest, ShardNote, TeacherNote, read_manifest
from kd_vision.knowledge.shard import ShardRows, StoredImage

_AGAIN = "run the same `kd-vision label` command again"


class Store:
    """A teacher's predictions on images; `PrecomputedBoxes` of an offline teacher.

    Args:
        path: folder of the store.
        manifest: of the store.
        rows: its images and predictions.
        verify: how an image is identified with a labelled one, see `StoreConfig`.
    """

    def __init__(self, path: Path, manifest: Manifest, rows: ShardRows, verify: Verify = "content") -> None:
        self.path = path
        self.manifest = manifest
        self._rows = rows
        self._verify = verify
        self._by_hash = {image.sha256: row for row, image in enumerate(rows.images)}
        self._by_name: dict[str, list[int]] = {}
        for row, image in enumerate(rows.images):
            self._by_name.setdefault(Path(image.name).name, []).append(row)

    @property
    def classes(self) -> tuple[str, ...]:
        """The teacher's classes."""
        return self.manifest.classes

    @property
    def missing_classes(self) -> tuple[str, ...]:
        """Those of the classes that the teacher never learned."""
        return self.manifest.missing_classes

    @property
    def score_threshold(self) -> float:
        """Score below which boxes were not stored."""
        return float(str(self.manifest.options.get("score_threshold") or 0.0))

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """The images of the store, sorted by name."""
        return self._rows.images

    def __len__(self) -> int:
        return len(self.images)

    def detections(self, row: int) -> Detections:
        """Return the predictions on image number `row`, boxes in its pixels, in the teacher's classes."""
        return self._rows.detections(row)

    def row_of(self, record: ImageRecord) -> int:
        """Return the row of the image of a record.

        Raises:
            RequestError: the image is not in the store, or has changed since it was labelled.
        """
        if self._verify == "size":
            row = self._row_by_size(record)
            if row is not None:
                return row
        row = self._by_hash.get(file_sha256(record.path))
        if row is None:
            raise RequestError(self._not_found(record))
        return row

    def of(self, record: ImageRecord) -> Detections:
        """Return the predictions on an image, boxes in its pixels, in the teacher's classes.

        Raises:
            RequestError: see `row_of`.
        """
        return self.detections(self.row_of(record))

    def _row_by_size(self, record: ImageRecord) -> int | None:
        """Return the row of this file name, size in bytes and size in pixels; None where none or several match."""
        size = record.path.stat().st_size if record.path.is_file() else -1
        key = (size, record.width, record.height)
        stored = ((row, self.images[row]) for row in self._by_name.get(record.path.name, []))
        rows = [row for row, image in stored if key == (image.bytes, image.width, image.height)]
        return rows[0] if len(rows) == 1 else None

    def _not_found(self, record: ImageRecord) -> str:
        path = record.path.resolve().as_posix()
        for row in self._by_name.get(record.path.name, []):
            name = self.images[row].name
            if path.endswith(f"/{name}") or f"/{name}".endswith(f"/{record.file_name or record.path.name}"):
                return f"{record.path}: has changed since it was labelled as {name} in {self.path}; label it again"
        return f"{record.path}: is not in the knowledge store {self.path}; label it too"


def read_store(path: Path, verify: Verify = "content") -> Store:
    """Open a finished store; every shard is verified.

    Args:
        path: folder that `kd-vision label` wrote.
        verify: see `StoreConfig`.

    Raises:
        RequestError: there is no store, it is of another version, unfinished, or a shard is damaged.
    """
    manifest = read_manifest(path)
    done = sum(note.images for note in manifest.shards.values())
    if len(manifest.shards) < manifest.shard_count:
        raise RequestError(f"{path}: holds {done} of {manifest.images} images; to finish it, {_AGAIN}")
    with ThreadPoolExecutor() as threads:
        results = list(threads.map(lambda note: _verified(path, note), manifest.shards.values()))
    errors = [result for result in results if isinstance(result, str)]
    if errors:
        raise RequestError(*truncate(errors))
    files = [result for result in results if isinstance(result, bytes)]
    return Store(path, manifest, ShardRows(files, len(manifest.classes)), verify)


def open_store(config: StoreConfig, train: DetectionData, where: str) -> Store:
    """Open the store of a run config; see `read_store`."""
    return read_store(config.store, config.verify)


def refuse_other_teacher(store: Path, teacher: TeacherNote, fingerprint: str, where: str) -> None:
    """Refuse a store of another teacher than the one in the config.

    Args:
        store: its folder.
        teacher: that made it.
        fingerprint: of the config's teacher.
        where: file and key, for the message.

    Raises:
        RequestError: another teacher made the store.
    """
    if teacher.fingerprint != fingerprint:
        raise RequestError(
            f"{where}: {store} was labelled by another teacher ({teacher.description}, "
            f"{teacher.fingerprint[:12]}; 'teacher:' is {fingerprint[:12]}); label again, or leave 'teacher:' out"
        )


def _verified(path: Path, note: ShardNote) -> bytes | str:
    """Return the content of a shard, or the error as a line."""
    try:
        content = (path / note.file).read_bytes()
    except OSError as error:
        return f"{path / note.file}: cannot be read ({error.strerror}); to write it again, {_AGAIN}"
    if hashlib.sha256(content).hexdigest() != note.sha256:
        return f"{path / note.file}: is damaged (its SHA-256 is not the manifest's); to write it again, {_AGAIN}"
    return content
