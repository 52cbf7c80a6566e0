"""Finds every defect of a data set, with file and line.

Shapes: F = 256 bits of an image hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_vision.core.errors import RequestError
from kd_vision.core.image_hash import Bits, difference_hash, hamming_distances
from kd_vision.data.dataset import class_order, read_raw_split, unknown_category
from kd_vision.data.descriptor import DataDescriptor, SplitSource
from kd_vision.data.file_lists import unlabelled_images
from kd_vision.data.formats import FORMATS
from kd_vision.data.records import Defect, Level, RawBox, RawImage, RawSplit
from kd_vision.runtime.images import list_images, read_image

__all__ = ["Defect", "check_data"]

_HASH_SIDE = 16
_NEAR_BITS = 10
_IMAGES_AT_ONCE = 2048
_ROUNDING = 0.01
_SLIGHT = 1.0
_UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True, eq=False)
class _HashedImage:
    """An image with the hashes of its pixels.

    Attributes:
        part: split, or `unlabelled`.
        image: as the split lists it.
        digest: of the decoded pixels; equal for equal pixels.
        bits: (F,) difference hash; near for similar images.
    """

    part: str
    image: RawImage
    digest: bytes
    bits: Bits


def check_data(descriptor: DataDescriptor, on_image: Callable[[int, int], None] | None = None) -> list[Defect]:
    """Return every defect, errors and warnings, in the order of the splits.

    Kinds: empty, unreadable, malformed, orphan, missing, corrupt, size-mismatch, unknown-category,
    zero-area, out-of-frame, duplicated, leak, unlabelled-overlap, near-duplicate. Warnings are
    near-duplicates (neighbouring video frames among them) and boxes that leave the frame by a pixel or less.

    Args:
        descriptor: the set.
        on_image: called with (images done, images in all).
    """
    defects: list[Defect] = []
    parts = dict(_parts(descriptor, defects))
    total = sum(len(raw.images) for raw in parts.values())
    done = 0
    hashed: list[_HashedImage] = []
    with ThreadPoolExecutor() as threads:
        for name, raw in parts.items():
            if name != _UNLABELLED:
                defects += _category_defects(descriptor, name, raw)
            for image_defects, image in threads.map(lambda image, part=name: _inspect(part, image), raw.images):
                defects += image_defects
                hashed += [image] if image else []
                done += 1
                if on_image is not None:
                    on_image(done, total)
    # Readers and checks may report the same missing file.
    return list(dict.fromkeys(defects + _duplicates(hashed) + _near_duplicates(hashed)))


def _parts(descriptor: DataDescriptor, defects: list[Defect]) -> Iterator[tuple[str, RawSplit]]:
    """Yield the splits that can be read at all, and the unlabelled images."""
    for split, source in descriptor.splits.items():
        place = descriptor.resolve(source.annotations or source.images)
        try:
            raw = read_raw_split(descriptor, split)
            defects += raw.defects
            defects += _orphan_labels(descriptor, source, raw)
            defects += _empty_split(raw, split, place)
            yield split, raw
        except RequestError as error:
            defects += [_unreadable(place, problem) for problem in error.problems]
    if descriptor.unlabelled is not None:
        folder = Path(descriptor.unlabelled.images)
        try:
            paths = unlabelled_images(descriptor.unlabelled)
        except RequestError as error:
            defects += [_unreadable(folder, problem) for problem in error.problems]
            return
        images = [RawImage(0, path, path.relative_to(folder).as_posix(), None, path, 0) for path in paths]
        yield _UNLABELLED, RawSplit(images, {})


def _empty_split(raw: RawSplit, split: str, place: Path) -> list[Defect]:
    if not raw.images:
        return [Defect("empty", place, 0, f"split '{split}' holds no images")]
    if not any(image.boxes for image in raw.images):
        return [Defect("empty", place, 0, f"split '{split}' holds no box", level="warning")]
    return []


def _unreadable(place: Path, problem: str) -> Defect:
    """Turn an error text, which begins with the file and perhaps its line, into a defect."""
    rest = problem.removeprefix(f"{place}:")
    number, _, text = rest.partition(":")
    if number.isdigit():
        return Defect("unreadable", place, int(number), text.strip())
    return Defect("unreadable", place, 0, rest.strip())


def _orphan_labels(descriptor: DataDescriptor, source: SplitSource, raw: RawSplit) -> list[Defect]:
    """Find label files without an image; not where a list chooses images, as the others' label files may stay."""
    suffix = FORMATS[descriptor.format].label_suffix
    if suffix is None or raw.label_folder is None or source.image_list is not None:
        return []
    folder, images = raw.label_folder, descriptor.resolve(source.images)
    expected = {path.relative_to(images).with_suffix(suffix) for path in list_images(images)}
    return [
        Defect("missing", file, 1, f"no image in {images} belongs to this file")
        for file in sorted(folder.rglob(f"*{suffix}"))
        if file.relative_to(folder) not in expected and file.name != "classes.txt"
    ]


def _category_defects(descriptor: DataDescriptor, split: str, raw: RawSplit) -> list[Defect]:
    _, keys, problems = class_order(descriptor, raw.categories, split)
    place = descriptor.resolve(descriptor.splits[split].annotations or descriptor.splits[split].images)
    defects = [Defect("unknown-category", place, 0, problem) for problem in problems]
    names = [raw.categories[key] for key in keys]
    allowed = set(raw.categories) if descriptor.subset else set(keys)
    for image in raw.images:
        for box in image.boxes:
            if box.category not in allowed:
                text = unknown_category(box, raw.categories, names)
                defects.append(Defect("unknown-category", image.annotation_file, box.line, text))
    return defects


def _inspect(part: str, image: RawImage) -> tuple[list[Defect], _HashedImage | None]:
    """Decode an image, hash it and check its boxes; None: it cannot be decoded."""
    file, line = image.annotation_file, image.line
    if not os.path.exists(image.path):
        missing = Defect("missing", file, line, f"image {image.path} is missing")
        return [missing, *_box_defects(image, image.size)], None
    try:
        pixels = read_image(image.path, 3)
    except RequestError as error:
        texts = [problem.removeprefix(f"{image.path}: ") for problem in error.problems]
        return [Defect("corrupt", image.path, 0, text) for text in texts] + _box_defects(image, image.size), None
    size = (pixels.shape[1], pixels.shape[0])
    defects = _box_defects(image, size)
    if image.size is not None and image.size != size:
        recorded, true = (f"{width}x{height}" for width, height in (image.size, size))
        text = f"{image.file_name} is {true}, but recorded as {recorded}"
        defects.insert(0, Defect("size-mismatch", file, line, text))
    digest = hashlib.sha256(repr(size).encode() + pixels.tobytes()).digest()
    return defects, _HashedImage(part, image, digest, difference_hash(pixels, _HASH_SIDE))


def _box_defects(image: RawImage, size: tuple[int, int] | None) -> list[Defect]:
    defects = []
    for box in image.boxes:
        if box.is_empty:
            text = f"{box.what} of {image.file_name}: box has no area, width {box.xywh[2]:g}, height {box.xywh[3]:g}"
            defects.append(Defect("zero-area", image.annotation_file, box.line, text))
        elif size is not None:
            defects += _frame_defects(image, box, size)
    return defects


def _frame_defects(image: RawImage, box: RawBox, size: tuple[int, int]) -> list[Defect]:
    x, y, w, h = box.xywh
    beyond = max(-x, -y, x + w - size[0], y + h - size[1])
    if beyond <= _ROUNDING:
        return []
    text = f"{box.what} of {image.file_name}: box leaves the {size[0]}x{size[1]} image by {beyond:.4g} pixels"
    return [Defect("out-of-frame", image.annotation_file, box.line, text, "error" if beyond > _SLIGHT else "warning")]


def _duplicates(images: Iterable[_HashedImage]) -> list[Defect]:
    """Find images with the same pixels."""
    first: dict[bytes, list[_HashedImage]] = {}
    defects = []
    for image in images:
        others = first.setdefault(image.digest, [])
        same_part = next((other for other in others if other.part == image.part), None)
        if same_part is not None:
            defects.append(_pair("duplicated", image, same_part, "has the pixels of", "error"))
            continue
        defects += [
            _pair(kind, image, other, "has the pixels of", "error")
            for other in others
            if (kind := _overlap_kind(image, other))
        ]
        others.append(image)
    return defects


def _near_duplicates(images: list[_HashedImage]) -> list[Defect]:
    """Find, for every image, the most similar one of each other part, if it is nearly the same."""
    by_part: dict[str, list[_HashedImage]] = {}
    for image in images:
        by_part.setdefault(image.part, []).append(image)
    parts = list(by_part.values())
    return [
        _pair("near-duplicate", image, match, "looks like", "warning")
        for at, left in enumerate(parts)
        for right in parts[:at]
        if _overlap_kind(left[0], right[0])
        for image, match in _nearest(left, right)
    ]


def _nearest(
    left_images: list[_HashedImage], right_images: list[_HashedImage]
) -> Iterator[tuple[_HashedImage, _HashedImage]]:
    """Yield pairs whose hashes differ in few bits and whose pixels differ."""
    right = np.stack([image.bits for image in right_images])
    for start in range(0, len(left_images), _IMAGES_AT_ONCE):
        chunk = left_images[start : start + _IMAGES_AT_ONCE]
        distances = hamming_distances(np.stack([image.bits for image in chunk]), right)
        for image, row in zip(chunk, distances, strict=True):
            best = int(row.argmin())
            match = right_images[best]
            is_flat = not image.bits.any()
            if row[best] <= _NEAR_BITS and match.digest != image.digest and not is_flat:
                yield image, match


def _overlap_kind(one: _HashedImage, other: _HashedImage) -> str:
    """Return the kind of defect where two parts share an image; empty: they may."""
    if _UNLABELLED not in (one.part, other.part):
        return "leak"
    labelled = other.part if one.part == _UNLABELLED else one.part
    return "" if labelled.startswith("train") else "unlabelled-overlap"


def _pair(kind: str, one: _HashedImage, other: _HashedImage, relation: str, level: Level) -> Defect:
    file, line = (one.image.annotation_file, one.image.line) if one.image.line else (one.image.path, 0)
    where = f" of {other.part}" if other.part != one.part else ""
    text = f"{one.image.file_name} of {one.part} {relation} {other.image.file_name}{where}"
    return Defect(kind, file, line, text, level)
