"""Reads YOLO text labels: a file per image, a line per box, ``class cx cy w h`` as fractions."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

from kd_vision.core.errors import RequestError
from kd_vision.data.descriptor import DataDescriptor, SplitSource
from kd_vision.data.file_lists import split_images
from kd_vision.data.records import Defect, RawBox, RawImage, RawSplit
from kd_vision.runtime.images import image_size

_BOX_FIELDS = 5
_SMALLEST_POLYGON = 7


def read_yolo_split(descriptor: DataDescriptor, split: str) -> RawSplit:
    """Read one split as written. An image without a label file holds no objects.

    Raises:
        RequestError: the folder of images, the folder of labels or the image list is missing.
    """
    source = descriptor.splits[split]
    folder = descriptor.resolve(source.images)
    labels = label_folder(descriptor, source, folder)
    defects: list[Defect] = []
    images = []
    for number, name in enumerate(split_images(descriptor, source), start=1):
        path = folder / name
        label_file = (labels / name).with_suffix(".txt")
        size = _size(path, defects)
        image = RawImage(number, path, name, size, label_file, 0)
        if size is not None and label_file.exists():
            _read_boxes(label_file, size, image.boxes, defects)
        images.append(image)
    return RawSplit(images, dict(enumerate(descriptor.classes or ())), defects)


def label_folder(descriptor: DataDescriptor, source: SplitSource, images: Path) -> Path:
    """Return the folder of label files that belongs to the folder `images`.

    Raises:
        RequestError: it cannot be told or is missing.
    """
    if source.annotations is not None:
        folder = descriptor.resolve(source.annotations)
    else:
        parts = list(images.parts)
        if "images" not in parts:
            raise RequestError(f"{images}: has no part 'images' to replace by 'labels'; say `annotations:`")
        at = len(parts) - 1 - parts[::-1].index("images")
        folder = Path(*parts[:at], "labels", *parts[at + 1 :])
    if not folder.is_dir():
        raise RequestError(f"{folder}: label folder is missing")
    return folder


def _size(path: Path, defects: list[Defect]) -> tuple[int, int] | None:
    """Return (width, height); an image that cannot be opened is a defect and has no boxes."""
    if not path.exists():
        defects.append(Defect("missing", path, 0, "image is missing"))
        return None
    try:
        return image_size(path)
    except RequestError as error:
        defects.append(Defect("corrupt", path, 0, error.problems[0].removeprefix(f"{path}: ")))
        return None


def _read_boxes(label_file: Path, size: tuple[int, int], boxes: list[RawBox], defects: list[Defect]) -> None:
    try:
        text = label_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        defects.append(Defect("malformed", label_file, 0, "label file is not readable text"))
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
    """Return the numbers of a box (5) or a polygon (7, 9, ...); None: neither."""
    is_polygon = len(fields) >= _SMALLEST_POLYGON and len(fields) % 2 == 1
    if len(fields) != _BOX_FIELDS and not is_polygon:
        return None
    try:
        numbers = [float(text) for text in fields]
    except ValueError:
        return None
    whole_class = numbers[0].is_integer() and numbers[0] >= 0
    return numbers if whole_class and all(isfinite(number) for number in numbers) else None


def _xywh(values: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return left, top, width, height in pixels; a polygon becomes its bounding box."""
    width, height = size
    if len(values) == _BOX_FIELDS - 1:
        cx, cy, w, h = values
        return (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height
    xs, ys = values[0::2], values[1::2]
    return min(xs) * width, min(ys) * height, (max(xs) - min(xs)) * width, (max(ys) - min(ys)) * height
