"""YOLO text labels: a file per image, a line per box, ``class cx cy w h`` as fractions of width and height."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_text
from kd_vision.data.file_lists import split_images
from kd_vision.data.formats.writing import number_text, safe_name, write_yaml
from kd_vision.data.reading import parse_number, read_text
from kd_vision.data.records import Defect, DetectionData, ImageRecord, RawBox, RawImage, RawSplit
from kd_vision.runtime.images import image_size

if TYPE_CHECKING:
    from kd_vision.data.descriptor import DataDescriptor, SplitSource

_BOX_FIELDS = 5
_SMALLEST_POLYGON = 7


def read_yolo(descriptor: DataDescriptor, split: str) -> RawSplit:
    """Read one split as written. An image without a label file holds no objects.

    Raises:
        RequestError: the folder of images, the folder of labels or the image list is missing.
    """
    source = descriptor.splits[split]
    folder = descriptor.resolve(source.images)
    labels = _label_folder(descriptor, source, folder)
    defects: list[Defect] = []
    images = []
    for number, name in enumerate(split_images(descriptor, source), start=1):
        path = folder / name
        label_file = (labels / name).with_suffix(".txt")
        size = _size(path, defects)
        image = RawImage(number, path, name, size, label_file, 0)
        if size is not None and os.path.exists(label_file):
            _read_boxes(label_file, size, image.boxes, defects)
        images.append(image)
    return RawSplit(images, dict(enumerate(descriptor.classes or ())), defects, labels)


def write_yolo(parts: Sequence[DetectionData], out: Path) -> dict[str, str]:
    """Write ``labels/SPLIT/*.txt``, and ``ultralytics.yaml`` for that package; see `kd_vision.data.formats`.

    Crowd boxes are left out: a YOLO file cannot mark them.
    """
    names = {part.name: f"labels/{part.name}" for part in parts}
    for part in parts:
        folder = out / names[part.name]
        folder.mkdir(parents=True, exist_ok=True)
        for image in part.images:
            lines = (f"{line}\n" for line in _lines(image))
            write_text((folder / safe_name(image)).with_suffix(".txt"), "".join(lines))
    if parts:
        # ultralytics takes a relative path as relative to its own settings, unless `path` is left out.
        places: dict[str, Any] = {part.name: f"images/{part.name}" for part in parts}
        write_yaml(out / "ultralytics.yaml", {**places, "names": dict(enumerate(parts[0].classes))})
    return names


def _label_folder(descriptor: DataDescriptor, source: SplitSource, images: Path) -> Path:
    """Return the folder of label files that belongs to the folder `images`.

    Raises:
        RequestError: it is missing, or the descriptor does not name it and its path does not follow from `images`.
    """
    if source.annotations is not None:
        folder = descriptor.resolve(source.annotations)
    else:
        parts = list(images.parts)
        if "images" not in parts:
            raise RequestError(
                f"{images}: the path has no part 'images' to replace by 'labels'; add `annotations: FOLDER`"
            )
        at = len(parts) - 1 - parts[::-1].index("images")
        folder = Path(*parts[:at], "labels", *parts[at + 1 :])
    if not folder.is_dir():
        raise RequestError(f"{folder}: label folder is missing")
    return folder


def _size(path: Path, defects: list[Defect]) -> tuple[int, int] | None:
    """Return (width, height); an image that cannot be opened is a defect and has no boxes."""
    if not os.path.exists(path):
        defects.append(Defect("missing", path, 0, "image is missing"))
        return None
    try:
        return image_size(path)
    except RequestError as error:
        defects.append(Defect("corrupt", path, 0, error.problems[0].removeprefix(f"{path}: ")))
        return None


def _read_boxes(label_file: Path, size: tuple[int, int], boxes: list[RawBox], defects: list[Defect]) -> None:
    try:
        text = read_text(label_file, "lines of 'class cx cy w h'")
    except RequestError as error:
        defects.append(Defect("malformed", label_file, 0, str(error).removeprefix(f"{label_file}: ")))
        return
    for line, content in enumerate(text.splitlines(), start=1):
        fields = content.split()
        if not fields:
            continue
        numbers = _numbers(fields)
        if numbers is None:
            text = f"needs 'class cx cy w h' with numbers, found '{content.strip()[:60]}'"
            defects.append(Defect("malformed", label_file, line, text))
            continue
        boxes.append(RawBox(int(numbers[0]), _xywh(numbers[1:], size), None, False, line, f"box {len(boxes) + 1}"))


def _numbers(fields: list[str]) -> list[float] | None:
    """Return the numbers of a box (5) or a polygon (7, 9, ...); None: the line is neither."""
    is_polygon = len(fields) >= _SMALLEST_POLYGON and len(fields) % 2 == 1
    if len(fields) != _BOX_FIELDS and not is_polygon:
        return None
    numbers = [number for text in fields if (number := parse_number(text)) is not None]
    is_class = len(numbers) == len(fields) and numbers[0].is_integer() and numbers[0] >= 0
    return numbers if is_class else None


def _xywh(values: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, width, height in pixels; a polygon becomes its bounding box."""
    width, height = size
    if len(values) == _BOX_FIELDS - 1:
        cx, cy, w, h = values
        return (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height
    xs, ys = values[0::2], values[1::2]
    return min(xs) * width, min(ys) * height, (max(xs) - min(xs)) * width, (max(ys) - min(ys)) * height


def _lines(image: ImageRecord) -> Iterator[str]:
    """Yield the line of each box that is no crowd."""
    for (x, y, w, h), label, crowd in zip(image.boxes_xywh, image.labels, image.crowd, strict=True):
        if not crowd:
            fractions = ((x + w / 2) / image.width, (y + h / 2) / image.height, w / image.width, h / image.height)
            yield f"{label} " + " ".join(number_text(value) for value in fractions)
