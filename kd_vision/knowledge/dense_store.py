"""Writes and reads stores of dense labels: a teacher's dense predictions on every batch of a training stream.

Shapes: B images, C channels, H W pixels, A rows of a head.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError, truncate
from kd_vision.core.files import write_bytes
from kd_vision.core.fingerprint import file_sha256
from kd_vision.knowledge.config import DENSE_MANIFEST
from kd_vision.knowledge.dense_manifest import DenseManifest, DenseShardNote, read_dense_manifest
from kd_vision.knowledge.dense_shard import DenseShard, StoredStep, encode
from kd_vision.teachers.dense_labels import GridLayout

SHARD_STEPS = 16
LAYOUT = "layout.npz"
_EVERY_ROW = 8
_AGAIN = "run the same `kd-vision label` command again"


def image_checksum(batch: ImageBatch) -> int:
    """Return a checksum of what a teacher sees of a batch: of every eighth row of its uint8 images."""
    images: Tensor = batch.images if batch.teacher_images is None else batch.teacher_images
    return zlib.crc32(np.ascontiguousarray(images[..., ::_EVERY_ROW, :].numpy()).tobytes())


def layout_bytes(layout: GridLayout) -> bytes:
    """Return the file of a layout; equal layouts give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, points_xy=layout.points_xy.cpu().numpy(), strides=layout.strides.cpu().numpy())
    return buffer.getvalue()


class DenseWriter:
    """Writes a new store of dense labels, or the missing shards of an unfinished one.

    Args:
        folder: of the store; new, empty, or with an unfinished store of the same stream and teacher.
        wanted: its manifest, without shards.
        layout: content of ``layout.npz``.

    Raises:
        RequestError: the folder holds other files, or a store of another teacher or stream.
    """

    def __init__(self, folder: Path, wanted: DenseManifest, layout: bytes) -> None:
        self.folder = folder
        self.manifest = self._with_finished_shards(wanted)
        self.kept = self.manifest.finished_steps
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / LAYOUT, layout)
        self.manifest.write(folder)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards still to be written."""
        return [shard for shard in range(self.manifest.shard_count) if shard not in self.manifest.shards]

    def write(self, shard: int, steps: Sequence[StoredStep]) -> None:
        """Write a shard: the labels of each of its steps."""
        content = encode(steps, self.manifest.head_rows)
        name = f"dense-{shard:05}.arrow"
        write_bytes(self.folder / name, content)
        note = DenseShardNote(file=name, sha256=hashlib.sha256(content).hexdigest(), steps=len(steps))
        shards = dict(sorted({**self.manifest.shards, shard: note}.items()))
        self.manifest = self.manifest.model_copy(update={"shards": shards})
        self.manifest.write(self.folder)

    def _with_finished_shards(self, wanted: DenseManifest) -> DenseManifest:
        """Return the manifest with the shards that an earlier call finished and that are undamaged."""
        if not (self.folder / DENSE_MANIFEST).exists():
            left = {LAYOUT, f"{LAYOUT}.part", f"{DENSE_MANIFEST}.part"}
            if self.folder.exists() and not (
                self.folder.is_dir() and {path.name for path in self.folder.iterdir()} <= left
            ):
                raise RequestError(f"{self.folder}: exists and is no store of dense labels; give another --out")
            return wanted
        stored = read_dense_manifest(self.folder)
        changed = stored.stream.differences(wanted.stream)
        was, now = stored.teacher, wanted.teacher
        if was.fingerprint != now.fingerprint:
            changed.append(f"another teacher ({was.description} {was.fingerprint[:12]}; now {now.fingerprint[:12]})")
        for key in ("score_threshold", "max_points", "shard_steps", "steps", "layout_sha256"):
            if getattr(stored, key) != getattr(wanted, key):
                changed.append(f"{key} {getattr(stored, key)} (this run: {getattr(wanted, key)})")
        if changed:
            raise RequestError(f"{self.folder}: was begun with {'; '.join(changed)}; use another --out")
        valid = {shard: note for shard, note in stored.shards.items() if _damage(self.folder, note) is None}
        return wanted.model_copy(update={"shards": valid})


class DenseStore:
    """A finished store of dense labels; every shard is verified when it is opened, and mapped when it is read.

    Args:
        path: folder of one seed.

    Raises:
        RequestError: it is no such store, of another version, unfinished, or a file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_dense_manifest(path)
        self._open: dict[int, DenseShard] = {}
        done, steps = self.manifest.finished_steps, self.manifest.steps
        if done < steps:
            raise RequestError(f"{path}: holds {done} of {steps} steps; to finish it, {_AGAIN}")
        with ThreadPoolExecutor() as threads:
            damages = list(threads.map(lambda note: _damage(path, note), self.manifest.shards.values()))
        if errors := [line for line in damages if line is not None]:
            raise RequestError(*truncate(errors))

    def step(self, step: int) -> StoredStep:
        """Return the dense labels of a training step."""
        shard, position = divmod(step, self.manifest.shard_steps)
        if shard not in self._open:
            spec = self.manifest.spec
            file = self.path / self.manifest.shards[shard].file
            self._open = {shard: DenseShard(file, self.manifest.head_rows, len(spec.classes), spec.box_bins)}
        return self._open[shard].step(position)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files, which another process opens for itself."""
        return self.__dict__ | {"_open": {}}


class DenseReplay:
    """Adds stored dense labels to training batches; given to the stream, so that loader processes read them.

    Args:
        stores: by name of the teacher.
        keep_view: keep the larger images of the batch, which other teachers look at.
        versions: of the packages that make pixels in this process.
    """

    def __init__(self, stores: Mapping[str, DenseStore], keep_view: bool, versions: Mapping[str, str]) -> None:
        self._stores, self._keep_view, self._versions = dict(stores), keep_view, dict(versions)

    def __call__(self, step: int, batch: ImageBatch) -> ImageBatch:
        """Return the batch of a step with its dense labels.

        Raises:
            RequestError: its pixels are not those that the teacher saw.
        """
        checksum = image_checksum(batch)
        labels = {}
        for name, store in self._stores.items():
            stored = store.step(step)
            if (stored.checksum, stored.images) != (checksum, len(batch)):
                raise RequestError(self._other_pixels(step, store))
            labels[name] = stored.branches
        return replace(batch, dense_labels=labels, teacher_images=batch.teacher_images if self._keep_view else None)

    def _other_pixels(self, step: int, store: DenseStore) -> str:
        before = store.manifest.versions
        changed = [f"{name} {old}, now {self._versions.get(name)}" for name, old in before.items()
                   if self._versions.get(name) != old]  # fmt: skip
        cause = f"made with {'; '.join(changed)}" if changed else "an image file has changed since"
        return (
            f"step {step}: the batch has other pixels than those that the teacher of {store.path} saw ({cause}); "
            f"label again into another --out"
        )


def read_layout(folder: Path, manifest: DenseManifest) -> GridLayout:
    """Read the layout of a store's head.

    Raises:
        RequestError: it is missing or damaged.
    """
    path = folder / LAYOUT
    if file_sha256(path) != manifest.layout_sha256:
        raise RequestError(f"{path}: is damaged (its SHA-256 is not the manifest's); to write it again, {_AGAIN}")
    with np.load(path) as arrays:
        return GridLayout(torch.from_numpy(arrays["points_xy"]), torch.from_numpy(arrays["strides"]))


def _damage(folder: Path, note: DenseShardNote) -> str | None:
    """Return what is wrong with a shard's file, as a line; None: nothing."""
    path = folder / note.file
    if not path.is_file():
        return f"{path}: is missing; to write it again, {_AGAIN}"
    if file_sha256(path) != note.sha256:
        return f"{path}: is damaged (its SHA-256 is not the manifest's); to write it again, {_AGAIN}"
    return None
