"""Writes a data set in another format, with a descriptor beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError
from kd_vision.data.dataset import load_split, load_unlabelled
from kd_vision.data.descriptor import DESCRIPTOR_NAME, DataDescriptor, write_descriptor
from kd_vision.data.formats import FORMATS, load_writer
from kd_vision.data.formats.writing import safe_name
from kd_vision.data.records import DetectionData

_UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True)
class Conversion:
    """Counts of a written data set.

    Attributes:
        descriptor: path of the new descriptor.
        images: number of images, unlabelled ones included.
        boxes: number of boxes.
        crowd_dropped: crowd boxes left out because the format cannot mark them (YOLO).
        zero_area_dropped: boxes without area that were left out.
    """

    descriptor: Path
    images: int
    boxes: int
    crowd_dropped: int
    zero_area_dropped: int


def convert(
    descriptor: DataDescriptor,
    out: Path,
    to: str,
    copy_images: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write every split, and the unlabelled folder, in the format `to`.

    Images are linked, or copied, to ``images/SPLIT``. Each writer of `FORMATS` documents the places of the annotation
    files; what a format cannot store (`FormatEntry.keeps`) is lost.

    Args:
        descriptor: the set to read.
        out: a folder that does not exist yet or is empty.
        to: a key of `FORMATS`.
        copy_images: copy instead of link.
        on_image: called with (images done, images in all).

    Raises:
        RequestError: `to` cannot be written, the set is wrong, `out` is not empty, or two images would share a label
            file.
    """
    write = load_writer(to)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out}: exists and is not an empty folder; give another --out")
    parts = [load_split(descriptor, split) for split in descriptor.splits]
    unlabelled = load_unlabelled(descriptor) if descriptor.unlabelled is not None else None
    _refuse_shared_names(parts, to)
    everything = parts if unlabelled is None else [*parts, unlabelled]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        build = Path(scratch) / "set"
        build.mkdir()
        _place_images(everything, build / "images", copy_images, on_image)
        _write_descriptor(descriptor, parts, write(parts, build), build, to)
        os.replace(build, out)
    boxes = sum(len(image.labels) for part in parts for image in part.images)
    crowds = sum(int(image.crowd.sum()) for part in parts for image in part.images)
    lost_crowds = 0 if "crowds" in FORMATS[to].keeps else crowds
    return Conversion(
        descriptor=out / DESCRIPTOR_NAME,
        images=sum(len(part) for part in everything),
        boxes=boxes - lost_crowds,
        crowd_dropped=lost_crowds,
        zero_area_dropped=sum(part.zero_area_dropped for part in parts),
    )


def _refuse_shared_names(parts: list[DetectionData], to: str) -> None:
    errors = []
    for part in parts:
        seen: dict[str, Path] = {}
        for image in part.images:
            name = safe_name(image)
            key = Path(name).with_suffix("").as_posix() if FORMATS[to].label_suffix else name
            if key in seen:
                errors.append(f"split {part.name}: {image.path} and {seen[key]} would share the name {key}; rename one")
            seen[key] = image.path
    if errors:
        raise RequestError(*errors)


def _place_images(
    parts: list[DetectionData],
    folder: Path,
    copy_images: bool,
    on_image: Callable[[int, int], None] | None,
) -> None:
    total = sum(len(part) for part in parts)
    done = 0
    for part in parts:
        for image in part.images:
            target = folder / part.name / safe_name(image)
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(image.path, target, copy_images)
            done += 1
            if on_image is not None:
                on_image(done, total)


def _place(source: Path, target: Path, copy: bool) -> None:
    if not copy:
        try:
            target.symlink_to(source.resolve())
            return
        except OSError:
            pass  # The file system has no links: copy.
    shutil.copyfile(source, target)


def _write_descriptor(
    descriptor: DataDescriptor, parts: list[DetectionData], annotations: Mapping[str, str], build: Path, to: str
) -> None:
    splits = {part.name: {"images": f"images/{part.name}", "annotations": annotations[part.name]} for part in parts}
    content: dict[str, Any] = {"format": to, "root": ".", "splits": splits}
    if descriptor.unlabelled is not None:
        content["unlabelled"] = f"images/{_UNLABELLED}"
    if parts:
        content["classes"] = list(parts[0].classes)
    content |= {"source": descriptor.source, "licence": descriptor.licence}
    write_descriptor(build / DESCRIPTOR_NAME, content)
