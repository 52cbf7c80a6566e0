"""Writes a store shard by shard; a killed process loses at most the current shard."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_bytes, write_text
from kd_vision.core.fingerprint import file_sha256
from kd_vision.core.predictions import Detections
from kd_vision.data.records import ImageRecord
from kd_vision.knowledge.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    NAMES,
    Manifest,
    Option,
    ShardNote,
    TeacherNote,
    read_manifest,
    shard_name,
)
from kd_vision.knowledge.shard import ShardRows, StoredImage, encode

SHARD_SIZE = 256
EXPECTED_BYTES = 600
"""Upper estimate for an image with 20 objects; a test measures it."""


class StoreWriter:
    """Writes a new store, or the missing shards of an unfinished one.

    Args:
        folder: of the store; new, empty, or with an unfinished store of the same arguments.
        teacher: that makes the predictions.
        classes: the teacher's.
        options: settings that the predictions depend on; `top_k` must be one of them.
        images: sorted by name; `file_name` is the name in the store.
        shard_size: images per shard.
        missing_classes: those of `classes` that the teacher never learned.

    Raises:
        RequestError: the folder holds other files, or a store of another teacher, other options or other images;
            or the disk is too small.
    """

    def __init__(
        self,
        folder: Path,
        teacher: TeacherNote,
        classes: tuple[str, ...],
        options: Mapping[str, Option],
        images: Sequence[ImageRecord],
        shard_size: int = SHARD_SIZE,
        missing_classes: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self._images = tuple(images)
        names = "".join(f"{image.file_name}\n" for image in images)
        wanted = Manifest(
            format_version=FORMAT_VERSION,
            teacher=teacher,
            classes=classes,
            missing_classes=missing_classes,
            options=dict(options),
            images=len(images),
            names_sha256=hashlib.sha256(names.encode()).hexdigest(),
            shard_size=shard_size,
        )
        self.manifest = self._with_finished_shards(wanted)
        self.kept = len(self.manifest.shards)
        refuse_full_disk(folder, sum(len(self.manifest.span(shard)) for shard in self.missing))
        folder.mkdir(parents=True, exist_ok=True)
        self.manifest.write(folder)  # first: a folder without a manifest is not recognised as a store
        write_text(folder / NAMES, names)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards still to be written."""
        return [shard for shard in range(self.manifest.shard_count) if shard not in self.manifest.shards]

    def images(self, shard: int) -> tuple[ImageRecord, ...]:
        """Return the images of a shard."""
        span = self.manifest.span(shard)
        return self._images[span.start : span.stop]

    def write(self, shard: int, detections: Sequence[Detections]) -> None:
        """Write a shard.

        Args:
            shard: its number.
            detections: the teacher's predictions on each of its images.

        Raises:
            RequestError: an image file cannot be read.
        """
        content = encode(_identify(self.images(shard)), detections, int(self.manifest.options["top_k"] or 0))
        write_bytes(self.folder / shard_name(shard), content)
        note = ShardNote(
            file=shard_name(shard), sha256=hashlib.sha256(content).hexdigest(), images=len(self.manifest.span(shard))
        )
        shards = dict(sorted({**self.manifest.shards, shard: note}.items()))
        self.manifest = self.manifest.model_copy(update={"shards": shards})
        self.manifest.write(self.folder)

    def _with_finished_shards(self, wanted: Manifest) -> Manifest:
        """Return the manifest with the shards that an earlier call finished and that are still valid."""
        if not (self.folder / MANIFEST).exists():
            if self.folder.exists() and not (self.folder.is_dir() and _holds_no_shard(self.folder)):
                raise RequestError(f"{self.folder}: exists and is no knowledge store; give another --out")
            return wanted
        stored = read_manifest(self.folder)
        self._refuse_other(stored, wanted)
        valid = {shard: note for shard, note in stored.shards.items() if self._is_valid(wanted, shard, note)}
        return wanted.model_copy(update={"shards": valid})

    def _refuse_other(self, stored: Manifest, wanted: Manifest) -> None:
        changed = []
        if stored.teacher.fingerprint != wanted.teacher.fingerprint:
            was, now = stored.teacher, wanted.teacher
            changed.append(
                f"by another teacher ({was.description}, content {was.fingerprint[:12]}; now {now.description}, "
                f"{now.fingerprint[:12]})"
            )
        if stored.classes != wanted.classes:
            changed.append(f"with the classes {', '.join(stored.classes)}")
        old, new = ({**manifest.options, "shard_size": manifest.shard_size} for manifest in (stored, wanted))
        changed += [
            f"with {key} {old.get(key)}, now {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)
        ]
        if stored.names_sha256 != wanted.names_sha256:
            changed.append(f"for other images ({self._difference()})")
        if changed:
            raise RequestError(f"{self.folder}: was begun {'; '.join(changed)}; use another --out")

    def _difference(self) -> str:
        """Describe which images were added and removed."""
        path = self.folder / NAMES
        before = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()
        now = {image.file_name for image in self._images}
        changes = [
            f"{len(names)} {what}, e.g. {min(names)}"
            for what, names in (("added", now - before), ("removed", before - now))
            if names
        ]
        return "; ".join(changes) or f"{len(before)} before, {len(now)} now"

    def _is_valid(self, manifest: Manifest, shard: int, note: ShardNote) -> bool:
        """Return whether a shard and its images are unchanged since it was written."""
        path = self.folder / shard_name(shard)
        if shard >= manifest.shard_count or not path.is_file():
            return False
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != note.sha256:
            return False
        span = manifest.span(shard)
        return ShardRows([content], len(manifest.classes)).images == _identify(self._images[span.start : span.stop])


def _holds_no_shard(folder: Path) -> bool:
    """Return whether a folder only has files that a writer killed before its first shard leaves."""
    return {path.name for path in folder.iterdir()} <= {NAMES, f"{NAMES}.part", f"{MANIFEST}.part"}


def refuse_full_disk(folder: Path, images: int) -> int:
    """Return the expected bytes of a store of so many images.

    Raises:
        RequestError: the disk has less free.
    """
    needed = images * EXPECTED_BYTES
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RequestError(
            f"{folder}: {images} images take about {needed / 1e6:.0f} MB, and the disk has {free / 1e6:.0f} MB free; "
            f"make room, or use another --out"
        )
    return needed


def _identify(images: Sequence[ImageRecord]) -> tuple[StoredImage, ...]:
    """Hash the files of images, in threads, as hashing releases the GIL."""
    with ThreadPoolExecutor() as threads:
        hashes = list(threads.map(file_sha256, (image.path for image in images)))
    return tuple(
        StoredImage(image.file_name, sha256, image.path.stat().st_size, image.width, image.height)
        for image, sha256 in zip(images, hashes, strict=True)
    )
