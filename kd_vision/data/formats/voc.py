"""Reads Pascal VOC annotations: an XML file per image.

Corners are taken as they stand, x from xmin to xmax, without VOC's inclusive last pixel: that is
what the tools of today write, and how the COCO files made from them read.
"""

from __future__ import annotations

import re
import xml.parsers.expat
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from kd_vision.core.errors import RequestError
from kd_vision.data.descriptor import DataDescriptor
from kd_vision.data.file_lists import split_images
from kd_vision.data.records import CategoryKey, Defect, RawBox, RawImage, RawSplit

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NAME = re.compile(r"<object>.*?<name>\s*(.*?)\s*</name>", re.DOTALL)


@dataclass(slots=True)
class _Element:
    """An XML element with its line."""

    tag: str
    line: int
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def find(self, tag: str) -> _Element | None:
        return next((child for child in self.children if child.tag == tag), None)

    def value(self, tag: str) -> str:
        found = self.find(tag)
        return found.text.strip() if found else ""


def read_voc_split(descriptor: DataDescriptor, split: str) -> RawSplit:
    """Read one split as written. Objects marked difficult come back as crowd.

    Raises:
        RequestError: the folder of images, the folder of annotations or the image list is missing.
    """
    source = descriptor.splits[split]
    folder = descriptor.resolve(source.images)
    annotations = annotation_folder(descriptor, split)
    defects: list[Defect] = []
    images = []
    for number, name in enumerate(split_images(descriptor, source), start=1):
        file = (annotations / name).with_suffix(".xml")
        images.append(_read_image(number, folder / name, name, file, defects))
    names = descriptor.classes or _all_names(descriptor)
    if descriptor.subset:
        names = (*names, *(name for name in _all_names(descriptor) if name not in names))
    categories: dict[CategoryKey, str] = {name: name for name in names}
    return RawSplit(images, categories, defects)


def annotation_folder(descriptor: DataDescriptor, split: str) -> Path:
    """Return the folder of XML files of a split.

    Raises:
        RequestError: it is missing.
    """
    folder = descriptor.resolve(descriptor.splits[split].annotations or "")
    if not folder.is_dir():
        raise RequestError(f"{folder}: annotation folder of split '{split}' is missing")
    return folder


def _all_names(descriptor: DataDescriptor) -> tuple[str, ...]:
    """Return the class names of all splits, sorted, so that labels mean the same in each."""
    folders = {annotation_folder(descriptor, split) for split in descriptor.splits}
    found: set[str] = set()
    for folder in folders:
        for file in folder.rglob("*.xml"):
            found.update(_NAME.findall(file.read_text(encoding="utf-8", errors="replace")))
    return tuple(sorted(found))


def _read_image(number: int, path: Path, name: str, file: Path, defects: list[Defect]) -> RawImage:
    try:
        root = _parse(file)
    except FileNotFoundError:
        defects.append(Defect("missing", file, 0, f"annotation file of image {name} is missing"))
        return RawImage(number, path, name, None, file, 0)
    except (xml.parsers.expat.ExpatError, OSError) as error:
        line = getattr(error, "lineno", 0)
        defects.append(Defect("malformed", file, line, f"is not XML ({error})"))
        return RawImage(number, path, name, None, file, 0)
    size = root.find("size")
    width, height = (_number(size.value(tag)) if size else None for tag in ("width", "height"))
    known = (int(width), int(height)) if width and height else None
    image = RawImage(number, path, name, known, file, size.line if size else root.line)
    for element in root.children:
        if element.tag == "object":
            _add_box(file, element, image.boxes, defects)
    return image


def _add_box(file: Path, element: _Element, boxes: list[RawBox], defects: list[Defect]) -> None:
    corners = element.find("bndbox")
    values = [_number(corners.value(tag)) if corners else None for tag in _CORNERS]
    name = element.value("name")
    x1, y1, x2, y2 = values
    if not name or x1 is None or y1 is None or x2 is None or y2 is None:
        text = "object needs a name and bndbox with xmin, ymin, xmax, ymax"
        defects.append(Defect("malformed", file, element.line, text))
        return
    difficult = element.value("difficult") == "1"
    what = f"object {len(boxes) + 1}"
    boxes.append(RawBox(name, (x1, y1, x2 - x1, y2 - y1), None, difficult, element.line, what))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _parse(path: Path) -> _Element:
    """Read XML with the line of every element, which ElementTree does not tell."""
    root = _Element("", 0)
    open_elements = [root]
    parser = xml.parsers.expat.ParserCreate()

    def start(tag: str, _: dict[str, str]) -> None:
        element = _Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        open_elements.pop()

    def data(text: str) -> None:
        open_elements[-1].text += text

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.Parse(path.read_bytes(), True)
    return root.children[0]
