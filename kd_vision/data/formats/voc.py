"""Pascal VOC annotations: an XML file per image.

Corners are read as written, x from xmin to xmax, without VOC's inclusive last pixel: so do the annotation tools of
today, and so do the converters to COCO.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
import xml.parsers.expat
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_text
from kd_vision.data.file_lists import split_images
from kd_vision.data.formats.writing import number_text, safe_name
from kd_vision.data.reading import parse_number
from kd_vision.data.records import CategoryKey, Defect, DetectionData, ImageRecord, RawBox, RawImage, RawSplit

if TYPE_CHECKING:
    from kd_vision.data.descriptor import DataDescriptor

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
        child = self.find(tag)
        return child.text.strip() if child else ""


def read_voc(descriptor: DataDescriptor, split: str) -> RawSplit:
    """Read one split as written. Objects marked difficult become crowds.

    Raises:
        RequestError: the folder of images, the folder of annotations or the image list is missing.
    """
    source = descriptor.splits[split]
    folder = descriptor.resolve(source.images)
    annotations = _annotation_folder(descriptor, split)
    defects: list[Defect] = []
    images = []
    for number, name in enumerate(split_images(descriptor, source), start=1):
        file = (annotations / name).with_suffix(".xml")
        images.append(_read_image(number, folder / name, name, file, defects))
    names = descriptor.classes or _all_names(descriptor)
    if descriptor.subset:
        names = (*names, *(name for name in _all_names(descriptor) if name not in names))
    categories: dict[CategoryKey, str] = {name: name for name in names}
    return RawSplit(images, categories, defects, annotations)


def write_voc(parts: Sequence[DetectionData], out: Path) -> dict[str, str]:
    """Write ``annotations/SPLIT/*.xml``, with crowds marked difficult; see `kd_vision.data.formats`."""
    names = {part.name: f"annotations/{part.name}" for part in parts}
    for part in parts:
        folder = out / names[part.name]
        folder.mkdir(parents=True, exist_ok=True)
        for image in part.images:
            write_text((folder / safe_name(image)).with_suffix(".xml"), _xml(image, part.classes))
    return names


def _annotation_folder(descriptor: DataDescriptor, split: str) -> Path:
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
    folders = {_annotation_folder(descriptor, split) for split in descriptor.splits}
    names: set[str] = set()
    for folder in folders:
        for file in folder.rglob("*.xml"):
            names.update(map(unescape, _NAME.findall(file.read_text(encoding="utf-8", errors="replace"))))
    return tuple(sorted(names))


def _read_image(number: int, path: Path, name: str, file: Path, defects: list[Defect]) -> RawImage:
    if not os.path.exists(file):
        defects.append(Defect("missing", file, 0, f"annotation file of image {name} is missing"))
        return RawImage(number, path, name, None, file, 0)
    try:
        root = _parse(file)
    # expat answers an encoding that it does not know with LookupError or ValueError.
    except (xml.parsers.expat.ExpatError, OSError, LookupError, ValueError) as error:
        line = getattr(error, "lineno", 0)
        defects.append(Defect("malformed", file, line, f"is not XML ({error})"))
        return RawImage(number, path, name, None, file, 0)
    size = root.find("size")
    width, height = (parse_number(size.value(tag)) or 0 if size else 0 for tag in ("width", "height"))
    recorded = (int(width), int(height)) if width >= 1 and height >= 1 else None
    image = RawImage(number, path, name, recorded, file, size.line if size else root.line)
    for element in root.children:
        if element.tag == "object":
            _add_box(file, element, image.boxes, defects)
    return image


def _add_box(file: Path, element: _Element, boxes: list[RawBox], defects: list[Defect]) -> None:
    corners = element.find("bndbox")
    values = [parse_number(corners.value(tag)) if corners else None for tag in _CORNERS]
    name = element.value("name")
    x1, y1, x2, y2 = values
    if not name or x1 is None or y1 is None or x2 is None or y2 is None:
        text = "object needs a name and bndbox with xmin, ymin, xmax, ymax"
        defects.append(Defect("malformed", file, element.line, text))
        return
    difficult = element.value("difficult") == "1"
    what = f"object {len(boxes) + 1}"
    boxes.append(RawBox(name, (x1, y1, x2 - x1, y2 - y1), None, difficult, element.line, what))


def _parse(path: Path) -> _Element:
    """Read XML with the line of every element, which ElementTree does not give."""
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


def _xml(image: ImageRecord, classes: tuple[str, ...]) -> str:
    root = ElementTree.Element("annotation")
    _add_child(root, "filename", Path(safe_name(image)).name)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add_child(size, tag, str(value))
    for (x, y, w, h), label, crowd in zip(image.boxes_xywh, image.labels, image.crowd, strict=True):
        element = ElementTree.SubElement(root, "object")
        _add_child(element, "name", classes[int(label)])
        _add_child(element, "difficult", str(int(crowd)))
        corners = ElementTree.SubElement(element, "bndbox")
        for tag, corner in zip(_CORNERS, (x, y, x + w, y + h), strict=True):
            _add_child(corners, tag, number_text(corner))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_child(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text
