"""The page that says what a store holds: ``manifest.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json, write_text
from kd_vision.core.validation import StrictModel, validate

FORMAT_VERSION = 1
MANIFEST, NAMES = "manifest.json", "images.txt"
Option = float | int | str | bool | None
"""Value of a setting that decides what is stored."""


class TeacherNote(StrictModel):
    """Who spoke: the fingerprint compares, the description is for people."""

    fingerprint: str
    description: str


class ShardNote(StrictModel):
    """A finished file of the store."""

    file: str
    sha256: str
    images: int = Field(ge=1)


class Manifest(StrictModel):
    """What a store holds.

    Attributes:
        format_version: of the layout; another one is not read.
        teacher: who spoke.
        classes: the teacher's, in its label order.
        missing_classes: those of `classes` that the teacher never learned (an ensemble answers in the data's classes).
        options: settings that decide what is stored.
        images: how many will be in the finished store.
        names_sha256: of ``images.txt``, the names one a line in the order of the shards.
        shard_size: images per shard; the last may have fewer.
        shards: the finished ones by number.
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
        """Shards of the finished store."""
        return math.ceil(self.images / self.shard_size)

    def span(self, shard: int) -> range:
        """Positions of a shard's images in ``images.txt``."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.images))

    def write(self, folder: Path) -> None:
        """Write it into the store, whole or not at all."""
        write_text(folder / MANIFEST, self.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a store, finished or not.

    Raises:
        RequestError: there is none, or it is of another version or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RequestError(f"{folder}: is no knowledge store (no {MANIFEST}); make one with `kd-vision label`")
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise RequestError(
            f"{path}: is of format version {version}, this kd_vision reads {FORMAT_VERSION}; label the images again"
        )
    return validate(Manifest, content, str(path))


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05}.parquet"
