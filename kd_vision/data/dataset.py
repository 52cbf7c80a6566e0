"""Reads a split of a descriptor, of any format, into images with boxes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kd_vision.core.errors import RequestError, suggest, truncate
from kd_vision.core.lazy import load_attribute
from kd_vision.data.descriptor import DataDescriptor
from kd_vision.data.file_lists import unlabelled_images
from kd_vision.data.formats import FORMATS
from kd_vision.data.records import (
    CategoryKey,
    DetectionData,
    ImageRecord,
    RawBox,
    RawImage,
    RawSplit,
    without_labels,
)
from kd_vision.runtime.images import image_size

__all__ = [
    "DetectionData",
    "ImageRecord",
    "load_split",
    "load_unlabelled",
    "read_raw_split",
    "records_of",
    "without_labels",
]

_HINT = "; `kd-vision data check` lists them all"


def load_split(descriptor: DataDescriptor, split: str) -> DetectionData:
    """Read one split.

    Boxes without area are left out and counted; any other defect is an error.

    Raises:
        RequestError: no such split, a file that cannot be read, an unknown class; up to 20 lines.
    """
    raw = read_raw_split(descriptor, split)
    classes, keys, problems = class_order(descriptor, raw.categories, split)
    label_of = {key: label for label, key in enumerate(keys)}
    problems += [str(defect) for defect in raw.defects]
    records = []
    dropped = 0
    for image in raw.images:
        kept = _boxes_to_keep(descriptor, raw.categories, label_of, image, problems)
        with_area = [box for box in kept if not box.is_empty]
        dropped += len(kept) - len(with_area)
        records.append(_record(image, with_area, label_of, problems))
    if problems:
        raise RequestError(*truncate(problems, _HINT))
    keeps_ids = "ids" in FORMATS[descriptor.format].keeps
    ids = tuple(key if keeps_ids and isinstance(key, int) else number for number, key in enumerate(keys, start=1))
    return DetectionData(split, classes, ids, tuple(records), dropped)


def load_unlabelled(descriptor: DataDescriptor) -> DetectionData:
    """Read the images without labels.

    Classes are those of the descriptor, else those of its first split.

    Raises:
        RequestError: the descriptor names no such folder, it is missing or has no images, or one of them is
            listed and missing or cannot be opened.
    """
    if descriptor.unlabelled is None:
        raise RequestError(f"{descriptor.root}: the data descriptor has no unlabelled folder; add `unlabelled: FOLDER`")
    paths = unlabelled_images(descriptor.unlabelled)
    classes = descriptor.classes or ()
    if not classes and descriptor.splits:
        raw = read_raw_split(descriptor, next(iter(descriptor.splits)))
        classes = tuple(raw.categories.values())
    records = records_of(paths, Path(descriptor.unlabelled.images))
    return DetectionData("unlabelled", classes, tuple(range(1, len(classes) + 1)), records)


def records_of(paths: Sequence[Path], folder: Path) -> tuple[ImageRecord, ...]:
    """Return images without labels, numbered from 1; only the header of each file is read.

    Args:
        paths: image files.
        folder: that their names are relative to.

    Raises:
        RequestError: files that cannot be opened, up to 20.
    """
    problems: list[str] = []
    with ThreadPoolExecutor() as threads:
        sizes = list(threads.map(lambda path: _size_of(path, problems), paths))
    if problems:
        raise RequestError(*truncate(sorted(problems), _HINT))
    return tuple(
        _unlabelled_record(number, path, folder, size)
        for number, (path, size) in enumerate(zip(paths, sizes, strict=True), start=1)
    )


def read_raw_split(descriptor: DataDescriptor, split: str) -> RawSplit:
    """Read one split as written, with the defects of its files.

    Raises:
        RequestError: no such split, or its files cannot be parsed at all.
    """
    if split not in descriptor.splits:
        names = ", ".join(descriptor.splits) or "none"
        near = suggest(split, descriptor.splits)
        hint = near if "did you mean" in near else ""
        raise RequestError(f"unknown split '{split}'{hint} (possible: {names})")
    raw: RawSplit = load_attribute(FORMATS[descriptor.format].read)(descriptor, split)
    return raw


def class_order(
    descriptor: DataDescriptor, categories: Mapping[CategoryKey, str], split: str
) -> tuple[tuple[str, ...], list[CategoryKey], list[str]]:
    """Return class names in label order, the key of each in the files, and errors.

    Args:
        descriptor: its `classes` give the order; without them, `categories` do.
        categories: name of each key of the files.
        split: its name, for messages.
    """
    if descriptor.classes is None:
        return tuple(categories.values()), list(categories), []
    key_of = {name: key for key, name in categories.items()}
    problems = [
        f"split {split}: class '{name}' of the descriptor is not in the annotations{suggest(name, key_of)}"
        for name in descriptor.classes
        if name not in key_of
    ]
    names = tuple(name for name in descriptor.classes if name in key_of)
    return names, [key_of[name] for name in names], problems


def unknown_category(box: RawBox, categories: Mapping[CategoryKey, str], classes: list[str]) -> str:
    """Return the error line of a box whose category is no class."""
    name = categories.get(box.category)
    if name is None:
        possible = [str(key) for key in categories]
        return f"{box.what}: unknown category '{box.category}'{suggest(str(box.category), possible)}"
    return (
        f"{box.what}: category '{name}' is not among the descriptor's classes ({', '.join(classes)}); "
        "add it, or set `subset: true` to leave such boxes out"
    )


def _boxes_to_keep(
    descriptor: DataDescriptor,
    categories: Mapping[CategoryKey, str],
    label_of: Mapping[CategoryKey, int],
    image: RawImage,
    problems: list[str],
) -> list[RawBox]:
    kept = []
    for box in image.boxes:
        if box.category in label_of:
            kept.append(box)
        elif not (descriptor.subset and box.category in categories):
            names = [categories[key] for key in label_of]
            text = unknown_category(box, categories, names)
            problems.append(f"{image.annotation_file}:{box.line}: {text}")
    return kept


def _record(
    image: RawImage, boxes: list[RawBox], label_of: Mapping[CategoryKey, int], problems: list[str]
) -> ImageRecord:
    xywh = np.array([box.xywh for box in boxes], dtype=np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)
    areas = [box.xywh[2] * box.xywh[3] if box.area is None else box.area for box in boxes]
    if not os.path.exists(image.path):
        problems.append(f"{image.annotation_file}:{image.line}: image {image.path} is missing")
        width, height = image.size or (0, 0)
    else:
        width, height = image.size or _size_of(image.path, problems)
    return ImageRecord(
        image_id=image.image_id,
        path=image.path,
        width=width,
        height=height,
        boxes_xyxy=corners,
        labels=np.array([label_of[box.category] for box in boxes], dtype=np.int64),
        crowd=np.array([box.crowd for box in boxes], dtype=np.bool_),
        areas=np.array(areas, dtype=np.float64),
        file_name=image.file_name,
        source_xywh=xywh,
    )


def _size_of(path: Path, problems: list[str]) -> tuple[int, int]:
    try:
        return image_size(path)
    except RequestError as error:
        problems.extend(error.problems)
        return 0, 0


def _unlabelled_record(number: int, path: Path, folder: Path, size: tuple[int, int]) -> ImageRecord:
    width, height = size
    return ImageRecord(
        image_id=number,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, np.bool_),
        areas=np.zeros(0, np.float64),
        labelled=False,
        file_name=path.relative_to(folder).as_posix(),
    )
