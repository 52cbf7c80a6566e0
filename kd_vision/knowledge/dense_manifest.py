"""The manifest of a store of dense labels: ``dense.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_text
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.knowledge.config import DENSE_MANIFEST, DenseLabelsConfig, seed_folders, seeds_store
from kd_vision.knowledge.manifest import MANIFEST, TeacherNote, read_versioned

FORMAT_VERSION = 2


class StreamNote(StrictModel):
    """Everything that decides which pixels the batch of a step has.

    Attributes:
        data: hashes of the labelled and the unlabelled images.
        image_size: side of the student's input.
        sample_size: side of the samples from which the student's images are shrunk.
        channels: of the images.
        devices: number of processes.
        train: settings of training: batch size, epochs, seed, label fraction, unlabelled ratio.
        augment: settings of augmentation.
    """

    data: tuple[str, ...]
    image_size: int
    sample_size: int
    channels: int
    devices: int
    train: dict[str, float | int]
    augment: dict[str, Any]

    def differences(self, run: StreamNote) -> list[str]:
        """Return how a run's stream differs from this one, a clause each."""
        old, new = self._flat(), run._flat()
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        clauses = [f"{key} {old.get(key)} (this run: {new.get(key)})" for key in changed if key != "data"]
        return clauses + (["other training images or labels"] if "data" in changed else [])

    def _flat(self) -> dict[str, Any]:
        content = self.model_dump(mode="json")
        for part in ("train", "augment"):
            content |= {f"{part}.{key}": value for key, value in content.pop(part).items()}
        return content


class DenseShardNote(StrictModel):
    """A finished file of the store."""

    file: str
    sha256: str
    steps: int = Field(ge=1)


class MeasuredTeacher(StrictModel):
    """The teacher's numbers when it was run.

    Attributes:
        split: that it was measured on.
        content_hash: of that split.
        labels: its label map.
        metrics: see `Metrics.to_json`.
    """

    split: str
    content_hash: str
    labels: dict[str, str] | None
    metrics: dict[str, Any]


class DenseManifest(StrictModel):
    """The content of a store of dense labels.

    Attributes:
        format_version: of the store; other versions are not read.
        teacher: that made the labels.
        spec: facts about it, in its own classes; it provides the signal `grid` alone.
        stream: the training batches that it saw.
        score_threshold: rows whose best class probability is no higher are background.
        max_points: rows per image at most, best first.
        versions: of the packages that make pixels, for messages.
        measured: the teacher's numbers; None: its classes are not the data's.
        layout_sha256: of ``layout.npz``, the points and strides of the head's rows.
        head_rows: number of rows of the head.
        steps: number of steps in the finished store.
        shard_steps: steps per shard; the last may have fewer.
        shards: the finished shards by number.
    """

    format_version: int
    teacher: TeacherNote
    spec: DetectorSpec
    stream: StreamNote
    score_threshold: float
    max_points: int
    versions: dict[str, str]
    measured: MeasuredTeacher | None = None
    layout_sha256: str
    head_rows: int = Field(ge=1)
    steps: int = Field(ge=1)
    shard_steps: int = Field(ge=1)
    shards: dict[int, DenseShardNote] = Field(default_factory=dict)

    @property
    def shard_count(self) -> int:
        """Number of shards of the finished store."""
        return math.ceil(self.steps / self.shard_steps)

    @property
    def finished_steps(self) -> int:
        """Number of steps in the finished shards."""
        return sum(note.steps for note in self.shards.values())

    def span(self, shard: int) -> range:
        """Return the steps of a shard."""
        return range(shard * self.shard_steps, min((shard + 1) * self.shard_steps, self.steps))

    def write(self, folder: Path) -> None:
        """Write the manifest of the store in `folder`, whole or not at all."""
        write_text(folder / DENSE_MANIFEST, self.model_dump_json(indent=1) + "\n")


def read_dense_manifest(folder: Path) -> DenseManifest:
    """Read the manifest of a store of dense labels, finished or not.

    Raises:
        RequestError: it is missing, damaged or of another version.
    """
    path = folder / DENSE_MANIFEST
    if not path.is_file() and (folder / MANIFEST).is_file():
        raise RequestError(f"{folder}: holds final boxes of images; give it as family: store")
    if not path.is_file():
        raise RequestError(
            f"{folder}: is no store of dense labels (no {DENSE_MANIFEST}); make one with `kd-vision label --dense`"
        )
    return read_versioned(path, DenseManifest, FORMAT_VERSION, "label again")


def dense_folder(store: Path, seed: int) -> Path:
    """Return the folder of a seed's dense labels: ``seed<k>`` in a folder of several, else the folder itself.

    Raises:
        RequestError: the folder has stores of other seeds alone.
    """
    folder = seeds_store(store, seed)
    if folder is None:
        held = ", ".join(path.name for path in seed_folders(store))
        raise RequestError(
            f"{store}: holds dense labels of {held}, and this run has train.seed {seed}; make them: "
            f"`kd-vision label CONFIG --dense --seeds {seed} --out {store}`"
        )
    return folder


def open_dense_manifest(config: DenseLabelsConfig, seed: int) -> tuple[Path, DenseManifest]:
    """Return the folder of a seed's dense labels, and its manifest; see `dense_folder`, `read_dense_manifest`."""
    folder = dense_folder(config.store, seed)
    return folder, read_dense_manifest(folder)


def any_dense_manifest(store: Path) -> DenseManifest:
    """Return the manifest of a store, or of one of its seeds: they differ in seed and shards alone."""
    folders: Sequence[Path] = seed_folders(store)
    return read_dense_manifest(folders[0] if folders else store)
