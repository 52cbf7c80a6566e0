"""Finds every defect of a data set, with file and line.

Shapes: N images, F = 256 bits of a fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.core.errors import RequestError
from kd_vision.data.dataset import class_order, read_raw_split, unknown_category
from kd_vision.data.descriptor import DataDescriptor
from kd_vision.data.file_lists import unlabelled_images
from kd_vision.data.formats.voc import annotation_folder
from kd_vision.data.formats.yolo import label_folder
from kd_vision.data.records import Defect, Level, RawBox, RawImage, RawSplit
from kd_vision.runtime.images import list_images, read_image

__all__ = ["Defect", "check_data"]

_HASH_SIDE = 16
_NEAR_BITS = 10
_ROWS_AT_ONCE = 2048
_ROUNDING = 0.01
_SLIGHT = 1.0
_UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What an image looks like.

    Attributes:
        part: split, or `unlabelled`.
        image: as the split names it.
        digest: of the decoded pixels.
        bits: (F,) signs of the gradient of a small copy; alike images differ in few.
    """

    part: str
    image: RawImage
    digest: bytes
    bits: npt.NDArray[np.bool_]


def check_data(descriptor: DataDescriptor, on_image: Callable[[int, int], None] | None = None) -> list[Defect]:
    """Return every defect, errors and warnings, in the order of the splits.

    Kinds: empty, unreadable, malformed, orphan, missing, corrupt, size-mismatch, unknown-category,
    zero-area, out-of-frame, duplicated, leak, unlabelled-overlap, near-duplicate. Warnings are
    near-duplicates (also of neighbouring frames) and boxes that leave the frame by a pixel or less.

    Args:
        descriptor: the set.
        on_image: called with (images done, images in all).
    """
    defects: list[Defect] = []
    parts = dict(_parts(descriptor, defects))
    total = sum(len(raw.images) for raw in parts.values())
    done = 0
    seen: list[_Seen] = []
    with ThreadPoolExecutor() as threads:
        for name, raw in parts.items():
            if name != _UNLABELLED:
                defects += _category_defects(descriptor, name, raw)
            for found, look in threads.map(lambda image, part=name: _inspect(part, image), raw.images):
                defects += found
                seen += [look] if look else []
                done += 1
                if on_image is not None:
                    on_image(done, total)
    return _unique(defects + _repeats(seen) + _near_repeats(seen))


def _parts(descriptor: DataDescriptor, defects: list[Defect]) -> Iterator[tuple[str, RawSplit]]:
    """Yield the splits that can be read at all, and the unlabelled images."""
    for split, source in descriptor.splits.items():
        try:
            raw = read_raw_split(descriptor, split)
            defects += raw.defects
            defects += _without_image(descriptor, split)
            defects += _nothing_in(raw, split, descriptor.resolve(source.annotations or source.images))
            yield split, raw
        except RequestError as error:
            place = descriptor.resolve(source.annotations or source.images)
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


def _nothing_in(raw: RawSplit, split: str, place: Path) -> list[Defect]:
    """Say that a split is empty: nothing can be measured, or learned, on it."""
    if not raw.images:
        return [Defect("empty", place, 0, f"split '{split}' holds no images")]
    if not any(image.boxes for image in raw.images):
        return [Defect("empty", place, 0, f"split '{split}' holds no box", level="warning")]
    return []


def _unreadable(place: Path, problem: str) -> Defect:
    """Make a defect of an error line, which begins with the file and perhaps its line."""
    rest = problem.removeprefix(f"{place}:")
    number, _, text = rest.partition(":")
    if number.isdigit():
        return Defect("unreadable", place, int(number), text.strip())
    return Defect("unreadable", place, 0, rest.strip())


def _without_image(descriptor: DataDescriptor, split: str) -> list[Defect]:
    """Find label files whose image is not there (a COCO file names its images itself)."""
    source = descriptor.splits[split]
    if descriptor.format == "coco" or source.image_list is not None:
        return []
    images = descriptor.resolve(source.images)
    if descriptor.format == "yolo":
        folder, suffix = label_folder(descriptor, source, images), ".txt"
    else:
        folder, suffix = annotation_folder(descriptor, split), ".xml"
    known = {path.relative_to(images).with_suffix(suffix) for path in list_images(images)}
    return [
        Defect("missing", file, 1, f"no image in {images} belongs to this file")
        for file in sorted(folder.rglob(f"*{suffix}"))
        if file.relative_to(folder) not in known and file.name != "classes.txt"
    ]


def _category_defects(descriptor: DataDescriptor, split: str, raw: RawSplit) -> list[Defect]:
    _, keys, problems = class_order(descriptor, raw.categories, split)
    place = descriptor.resolve(descriptor.splits[split].annotations or descriptor.splits[split].images)
    found = [Defect("unknown-category", place, 0, problem) for problem in problems]
    names = [raw.categories[key] for key in keys]
    known = set(raw.categories) if descriptor.subset else set(keys)
    for image in raw.images:
        for box in image.boxes:
            if box.category not in known:
                text = unknown_category(box, raw.categories, names)
                found.append(Defect("unknown-category", image.annotation_file, box.line, text))
    return found


def _inspect(part: str, image: RawImage) -> tuple[list[Defect], _Seen | None]:
    """Decode an image and judge its boxes."""
    file, line = image.annotation_file, image.line
    if not image.path.exists():
        found = [Defect("missing", file, line, f"image {image.path} is missing")]
        return found + _box_defects(image, image.size), None
    try:
        pixels = read_image(image.path, 3)
    except RequestError as error:
        found = [
            Defect("corrupt", image.path, 0, problem.removeprefix(f"{image.path}: ")) for problem in error.problems
        ]
        return found + _box_defects(image, image.size), None
    size = (pixels.shape[1], pixels.shape[0])
    found = []
    if image.size is not None and image.size != size:
        said, real = (f"{width}x{height}" for width, height in (image.size, size))
        found.append(Defect("size-mismatch", file, line, f"{image.file_name} is {real}, here it is said to be {said}"))
    digest = hashlib.sha256(repr(size).encode() + pixels.tobytes()).digest()
    return found + _box_defects(image, size), _Seen(part, image, digest, _gradient_bits(pixels))


def _box_defects(image: RawImage, size: tuple[int, int] | None) -> list[Defect]:
    found = []
    for box in image.boxes:
        if box.is_empty:
            text = f"{box.what} of {image.file_name}: box has no area, {_size_text(box)}"
            found.append(Defect("zero-area", image.annotation_file, box.line, text))
        elif size is not None:
            found += _frame_defects(image, box, size)
    return found


def _frame_defects(image: RawImage, box: RawBox, size: tuple[int, int]) -> list[Defect]:
    x, y, w, h = box.xywh
    beyond = max(-x, -y, x + w - size[0], y + h - size[1])
    if beyond <= _ROUNDING:
        return []
    text = f"{box.what} of {image.file_name}: box leaves the {size[0]}x{size[1]} image by {beyond:.4g} pixels"
    return [Defect("out-of-frame", image.annotation_file, box.line, text, "error" if beyond > _SLIGHT else "warning")]


def _size_text(box: RawBox) -> str:
    return f"width {box.xywh[2]:g}, height {box.xywh[3]:g}"


def _repeats(seen: Iterable[_Seen]) -> list[Defect]:
    """Find images with the same pixels."""
    first: dict[bytes, list[_Seen]] = {}
    found = []
    for look in seen:
        others = first.setdefault(look.digest, [])
        same_part = next((other for other in others if other.part == look.part), None)
        if same_part is not None:
            found.append(_pair("duplicated", look, same_part, "has the pixels of", "error"))
        elif others:
            found += [
                _pair(kind, look, other, "has the pixels of", "error")
                for other in others
                if (kind := _overlap_kind(look, other))
            ]
        if same_part is None:
            others.append(look)
    return found


def _near_repeats(seen: list[_Seen]) -> list[Defect]:
    """Find, for every image, the most alike one of another part, if it is nearly the same."""
    found = []
    names = list(dict.fromkeys(look.part for look in seen))
    for at, name in enumerate(names):
        left_images = [look for look in seen if look.part == name]
        for other in names[:at]:
            right_images = [look for look in seen if look.part == other]
            if _overlap_kind(left_images[0], right_images[0]):
                found += [
                    _pair("near-duplicate", look, match, "looks like", "warning")
                    for look, match in _nearest(left_images, right_images)
                ]
    return found


def _nearest(left_images: list[_Seen], right_images: list[_Seen]) -> Iterator[tuple[_Seen, _Seen]]:
    """Yield pairs whose fingerprints differ in few bits and whose pixels differ."""
    right = np.stack([look.bits for look in right_images]).astype(np.float32)
    for start in range(0, len(left_images), _ROWS_AT_ONCE):
        rows = left_images[start : start + _ROWS_AT_ONCE]
        left = np.stack([look.bits for look in rows]).astype(np.float32)
        # |a xor b| = |a| + |b| - 2 a.b
        distance = left.sum(1)[:, None] + right.sum(1)[None, :] - 2 * left @ right.T
        best = distance.argmin(axis=1)
        for row, look in enumerate(rows):
            match = right_images[int(best[row])]
            is_flat = not look.bits.any()
            if distance[row, best[row]] <= _NEAR_BITS and match.digest != look.digest and not is_flat:
                yield look, match


def _overlap_kind(one: _Seen, other: _Seen) -> str:
    """Name what it means that two parts share an image; empty: it means nothing."""
    if _UNLABELLED not in (one.part, other.part):
        return "leak"
    labelled = other.part if one.part == _UNLABELLED else one.part
    return "" if labelled.startswith("train") else "unlabelled-overlap"


def _pair(kind: str, look: _Seen, other: _Seen, relation: str, level: Level) -> Defect:
    file, line = (look.image.annotation_file, look.image.line) if look.image.line else (look.image.path, 0)
    where = f" of {other.part}" if other.part != look.part else ""
    text = f"{look.image.file_name} of {look.part} {relation} {other.image.file_name}{where}"
    return Defect(kind, file, line, text, level)


def _gradient_bits(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return (F,) signs of the horizontal gradient of a 16 x 17 gray copy."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_HASH_SIDE + 1, _HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.asarray(small[:, 1:] > small[:, :-1]).reshape(-1)


def _unique(defects: list[Defect]) -> list[Defect]:
    """Readers and checks may meet the same missing file."""
    return list(dict.fromkeys(defects))
