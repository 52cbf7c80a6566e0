"""COCO detection files: reads them with the line of every entry, and writes them with one entry a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_text
from kd_vision.data.formats.writing import safe_name
from kd_vision.data.reading import is_id, is_number, read_text
from kd_vision.data.records import CategoryKey, Defect, DetectionData, ImageRecord, RawBox, RawImage, RawSplit

if TYPE_CHECKING:
    from kd_vision.data.descriptor import DataDescriptor

_BLANKS = " \t\r\n"
_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class CocoFile:
    """Entries of a COCO file with the line of each.

    Attributes:
        path: the file.
        entries: (1-based line, entry) of `images`, `annotations` and `categories`.
    """

    path: Path
    entries: Mapping[str, list[tuple[int, Any]]]


def read_coco(descriptor: DataDescriptor, split: str) -> RawSplit:
    """Read one split as written.

    Raises:
        RequestError: the annotation file cannot be parsed.
    """
    source = descriptor.splits[split]
    coco = read_coco_file(descriptor.resolve(source.annotations or ""))
    folder = descriptor.resolve(source.images)
    defects: list[Defect] = []
    categories = _categories(coco, defects)
    images = _images(coco, folder, defects)
    for line, entry in coco.entries["annotations"]:
        _add_box(coco, line, entry, images, defects)
    return RawSplit(list(images.values()), categories, defects)


def read_coco_file(path: Path) -> CocoFile:
    """Parse a COCO file.

    Raises:
        RequestError: the file is missing, not JSON, or has no `images`, `annotations`, `categories`.
    """
    text = read_text(path, "a COCO detection file")
    if not text.strip():
        raise RequestError(f"{path}: is empty; give a COCO detection file")
    if text.lstrip()[0] == "[":
        raise RequestError(f"{path}: is a list; give a COCO detection file, an object with {', '.join(_LISTS)}")
    try:
        entries = dict(_top_level(text))
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno}: is not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested lists
        raise RequestError(f"{path}: cannot be read as JSON ({error}); give a COCO detection file") from None
    missing = [name for name in _LISTS if name not in entries]
    if missing:
        raise RequestError(f"{path}: has no list {' and no list '.join(missing)}; give a COCO detection file")
    return CocoFile(path, entries)


def write_coco(parts: Sequence[DetectionData], out: Path) -> dict[str, str]:
    """Write ``annotations/SPLIT.json`` for each split; see `kd_vision.data.formats`."""
    names = {part.name: f"annotations/{part.name}.json" for part in parts}
    for part in parts:
        write_coco_file(out / names[part.name], part, safe_name)
    return names


def write_coco_file(path: Path, data: DetectionData, file_name: Callable[[ImageRecord], str]) -> None:
    """Write a split as a COCO file with one entry a line, so that a line number identifies an entry.

    Args:
        path: the file.
        data: the split.
        file_name: gives the name of an image relative to the image folder.
    """
    lists = []
    for key, value in to_coco(data, file_name).items():
        if isinstance(value, list) and value:
            entries = ",\n".join(json.dumps(entry) for entry in value)
            lists.append(f"{json.dumps(key)}: [\n{entries}\n]")
        else:
            lists.append(f"{json.dumps(key)}: {json.dumps(value)}")
    write_text(path, "{\n" + ",\n".join(lists) + "\n}\n")


def to_coco(data: DetectionData, file_name: Callable[[ImageRecord], str] | None = None) -> dict[str, Any]:
    """Return a split as a complete COCO dictionary; annotation ids count from 1 in order.

    Args:
        data: the split.
        file_name: gives the name of an image; None: as in the source.
    """
    annotations: list[dict[str, Any]] = []
    for image in data.images:
        for entry in _box_entries(data, image):
            annotations.append({"id": len(annotations) + 1, **entry})
    images = [
        {
            "id": image.image_id,
            "file_name": file_name(image) if file_name else image.file_name or image.path.name,
            "width": image.width,
            "height": image.height,
        }
        for image in data.images
    ]
    pairs = zip(data.category_ids, data.classes, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _box_entries(data: DetectionData, image: ImageRecord) -> Iterator[dict[str, Any]]:
    for box, label, crowd, area in zip(image.boxes_xywh, image.labels, image.crowd, image.areas, strict=True):
        yield {
            "image_id": image.image_id,
            "category_id": data.category_ids[int(label)],
            "bbox": [float(value) for value in box],
            "area": float(area),
            "iscrowd": int(crowd),
        }


def _top_level(text: str) -> Iterator[tuple[str, list[tuple[int, Any]]]]:
    """Yield the lists a COCO file consists of, each entry with its line."""
    decoder = json.JSONDecoder()
    at = _expect(text, 0, "{")
    if text[_skip(text, at) : _skip(text, at) + 1] == "}":
        return
    while True:
        key, at = decoder.raw_decode(text, _skip(text, at))
        at = _skip(text, _expect(text, at, ":"))
        if key in _LISTS and text[at : at + 1] == "[":
            entries, at = _list(decoder, text, at)
            yield key, entries
        else:
            _, at = decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            _expect(text, at, "}")
            return
        at += 1


def _list(decoder: json.JSONDecoder, text: str, at: int) -> tuple[list[tuple[int, Any]], int]:
    entries: list[tuple[int, Any]] = []
    line = text.count("\n", 0, at) + 1
    counted = at
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return entries, at + 1
    while True:
        start = _skip(text, at)
        entry, at = decoder.raw_decode(text, start)
        line += text.count("\n", counted, start)
        counted = start
        entries.append((line, entry))
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            return entries, _expect(text, at, "]")
        at += 1


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANKS:
        at += 1
    return at


def _expect(text: str, at: int, sign: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"expected '{sign}'", text, at)
    return at + 1


def _categories(coco: CocoFile, defects: list[Defect]) -> dict[CategoryKey, str]:
    categories: dict[CategoryKey, str] = {}
    for line, entry in sorted(coco.entries["categories"], key=lambda pair: _id_or_zero(pair[1])):
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            _report(defects, coco, line, "malformed", "category needs a whole-number id and a name")
        elif entry["id"] in categories or entry["name"] in categories.values():
            _report(defects, coco, line, "malformed", f"category {entry['id']} '{entry['name']}' is given twice")
        else:
            categories[entry["id"]] = entry["name"]
    return categories


def _images(coco: CocoFile, folder: Path, defects: list[Defect]) -> dict[int, RawImage]:
    images: dict[int, RawImage] = {}
    for line, entry in coco.entries["images"]:
        if not isinstance(entry, dict) or not is_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            _report(defects, coco, line, "malformed", "image needs a whole-number id and a file_name")
        elif entry["id"] in images:
            _report(defects, coco, line, "malformed", f"image id {entry['id']} is given twice")
        else:
            name = entry["file_name"]
            size = _size(entry.get("width"), entry.get("height"))
            images[entry["id"]] = RawImage(entry["id"], folder / name, name, size, coco.path, line)
    return images


def _add_box(coco: CocoFile, line: int, entry: Any, images: dict[int, RawImage], defects: list[Defect]) -> None:
    if not isinstance(entry, dict):
        _report(defects, coco, line, "malformed", "annotation is not a mapping")
        return
    what = f"annotation {entry.get('id', '?')}"
    box = entry.get("bbox")
    if box is None or not _is_box(box) or not is_id(entry.get("category_id")) or not is_id(entry.get("image_id")):
        text = "needs image_id, category_id and bbox with four finite numbers"
        _report(defects, coco, line, "malformed", f"{what} {text}")
        return
    image = images.get(entry["image_id"])
    if image is None:
        _report(defects, coco, line, "orphan", f"{what} belongs to image {entry['image_id']}, which is not listed")
        return
    area = entry.get("area")
    image.boxes.append(
        RawBox(
            category=entry["category_id"],
            xywh=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            area=float(area) if is_number(area) else None,
            crowd=bool(entry.get("iscrowd", 0)),
            line=line,
            what=what,
        )
    )


def _report(defects: list[Defect], coco: CocoFile, line: int, kind: str, message: str) -> None:
    defects.append(Defect(kind, coco.path, line, message))


def _id_or_zero(entry: Any) -> int:
    number = entry.get("id") if isinstance(entry, dict) else None
    return number if isinstance(number, int) else 0


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    """Return the size that an entry records; None: it records none that is possible, so the file's own is read."""
    return (width, height) if is_id(width) and is_id(height) and min(width, height) > 0 else None


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(is_number(number) for number in value)
