"""The manifest of a store: ``manifest.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json, write_text
from kd_vision.core.validation import Model, StrictModel, validate
from kd_vision.knowledge.config import is_dense_store

FORMAT_VERSION = 1
MANIFEST, NAMES = "manifest.json", "images.txt"
Option = float | int | str | bool | None
"""Value of a setting that the stored predictions depend on."""


class TeacherNote(StrictModel):
    """The teacher: its fingerprint, which is compared, and a description for people.

    Attributes:
        fingerprint: of the teacher; of several, of all of them and of who labelled which image.
        description: for people.
        by_folder: of several teachers, the fingerprint of the one that labelled the images below each top folder of
            ``images.txt``; empty: there is one.
    """

    fingerprint: str
    description: str
    by_folder: dict[str, str] = Field(default_factory=dict)


class ShardNote(StrictModel):
    """A finished file of the store."""

    file: str
    sha256: str
    images: int = Field(ge=1)


class Manifest(StrictModel):
    """The content of a store.

    Attributes:
        format_version: of the store; other versions are not read.
        teacher: that made the predictions.
        classes: the teacher's, in its label order.
        missing_classes: those of `classes` that the teacher never learned (an ensemble has the data's classes).
        options: settings that the predictions depend on.
        images: number of images in the finished store.
        names_sha256: of ``images.txt``, the names one a line in the order of the shards.
        shard_size: images per shard; the last may have fewer.
        shards: the finished shards by number.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"silent": "missing_classes"}

    format_version: int
    teacher: TeacherNote
    classes: tuple[str, ...]
    missing_classes: tuple[str, ...] = ()
    options: dict[str, Option]
    images: int = Field(ge=1)
    names_sha256: str
    shard_size: int = Field(ge=1)
    shards: dict[int, ShardNote] = Field(default_factory=dict)

    @property
    def shard_count(self) -> int:
        """Number of shards of the finished store."""
        return math.ceil(self.images / self.shard_size)

    def span(self, shard: int) -> range:
        """Return the positions of a shard's images in ``images.txt``."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.images))

    def write(self, folder: Path) -> None:
        """Write the manifest of the store in `folder`, whole or not at all."""
        write_text(folder / MANIFEST, self.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a store, finished or not.

    Raises:
        RequestError: it is missing, damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file() and is_dense_store(folder):
        raise RequestError(f"{folder}: holds dense labels of training batches; give it as family: dense_labels")
    if not path.is_file():
        raise RequestError(f"{folder}: is no knowledge store (no {MANIFEST}); make one with `kd-vision label`")
    return read_versioned(path, Manifest, FORMAT_VERSION, "label the images again")


def read_versioned(path: Path, model: type[Model], version: int, cure: str) -> Model:
    """Read a JSON file with a `format_version`.

    Args:
        path: the file.
        model: its content.
        version: that is read.
        cure: what to do about another version, for the message.

    Raises:
        RequestError: it is damaged or of another version.
    """
    content = read_json(path)
    found = content.get("format_version") if isinstance(content, dict) else None
    if found != version:
        raise RequestError(f"{path}: is of format version {found}, this kd_vision reads {version}; {cure}")
    return validate(model, content, str(path))


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05}.parquet"
