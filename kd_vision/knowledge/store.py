"""Reads a finished store, and finds in it the image that a record names."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kd_vision.core.errors import RequestError, truncate
from kd_vision.core.fingerprint import file_sha256
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.knowledge.config import StoreConfig, Verify
from kd_vision.knowledge.manifest import Manifest, ShardNote, read_manifest
from kd_vision.knowledge.shard import ShardRows, StoredImage

_AGAIN = "run the same `kd-vision label` command again"


class Store:
    """A teacher's predictions on images; `PrecomputedBoxes` of an offline teacher.

    Args:
        path: folder of the store.
        manifest: its page.
        rows: its images.
        verify: how an image is known to be the one that was labelled, see `StoreConfig`.
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
        """Least score that was stored."""
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
        """Return the number of the image that a record means.

        Raises:
            RequestError: the image is not in the store, or has changed since it was labelled.
        """
        if self._verify == "size":
            row = self._row_by_size(record)
            if row is not None:
                return row
        row = self._by_hash.get(file_sha256(record.path))
        if row is None:
            raise RequestError(self._unknown(record))
        return row

    def of(self, record: ImageRecord) -> Detections:
        """Return the predictions on an image, boxes in its pixels, in the teacher's classes.

        Raises:
            RequestError: see `row_of`.
        """
        return self.detections(self.row_of(record))

    def _row_by_size(self, record: ImageRecord) -> int | None:
        """Return the one image of this name, size in bytes and size in pixels; None: none, or several."""
        size = record.path.stat().st_size if record.path.is_file() else -1
        wanted = (size, record.width, record.height)
        rows = self._by_name.get(record.path.name, [])
        fitting = [
            row for row in rows if (found := self.images[row]) and wanted == (found.bytes, found.width, found.height)
        ]
        return fitting[0] if len(fitting) == 1 else None

    def _unknown(self, record: ImageRecord) -> str:
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
        read = list(threads.map(lambda note: _verified(path, note), manifest.shards.values()))
    torn = [part for part in read if isinstance(part, str)]
    if torn:
        raise RequestError(*truncate(torn))
    return Store(path, manifest, ShardRows([p for p in read if isinstance(p, bytes)], len(manifest.classes)), verify)


def open_store(config: StoreConfig, train: DetectionData, where: str) -> Store:
    """Open the store that a run config names; see `read_store`."""
    return read_store(config.store, config.verify)


def refuse_other_teacher(store: Store, fingerprint: str, where: str) -> None:
    """Refuse knowledge that is not of the teacher a config names.

    Args:
        store: the knowledge.
        fingerprint: of the config's teacher.
        where: file and key, for the message.

    Raises:
        RequestError: it is another's.
    """
    own = store.manifest.teacher
    if own.fingerprint != fingerprint:
        raise RequestError(
            f"{where}: {store.path} was labelled by another teacher ({own.description}, {own.fingerprint[:12]}; "
            f"'teacher:' is {fingerprint[:12]}); label again, or leave 'teacher:' out"
        )


def _verified(path: Path, note: ShardNote) -> bytes | str:
    """Return a shard's content, or what is wrong with it."""
    try:
        content = (path / note.file).read_bytes()
    except OSError as error:
        return f"{path / note.file}: cannot be read ({error.strerror}); to write it again, {_AGAIN}"
    if hashlib.sha256(content).hexdigest() != note.sha256:
        return f"{path / note.file}: is damaged (its SHA-256 is not the manifest's); to write it again, {_AGAIN}"
    return content
