"""Writes a data set in another format, with a descriptor beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kd_vision.core.errors import RequestError
from kd_vision.data.dataset import load_split, load_unlabelled
from kd_vision.data.descriptor import DataDescriptor
from kd_vision.data.records import DetectionData, ImageRecord

Format = Literal["coco", "yolo", "voc"]
DESCRIPTOR_NAME = "dataset.yaml"
_UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written.

    Attributes:
        descriptor: path of the new descriptor.
        images: number of images, unlabelled ones included.
        boxes: number of boxes.
        crowd_dropped: crowd boxes left out because the format cannot hold them (YOLO).
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
    to: Format,
    copy_images: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write every split, and the unlabelled folder, in the format `to`.

    Images are linked under ``images/SPLIT``, or copied. YOLO text goes to ``labels/SPLIT``, with a
    file for ultralytics beside our descriptor; VOC files to ``annotations/SPLIT``; COCO files are
    ``annotations/SPLIT.json``. COCO keeps all we know; VOC loses areas; YOLO also loses crowds.

    Args:
        descriptor: the set to read.
        out: a folder that does not exist yet or is empty.
        to: the format to write.
        copy_images: copy instead of link.
        on_image: called with (images done, images in all).

    Raises:
        RequestError: the set is wrong, `out` is not empty, or two images would share a label file.
    """
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
        for part in parts:
            _write_annotations(part, build, to)
        _write_descriptors(descriptor, parts, build, to)
        os.replace(build, out)
    boxes = sum(len(image.labels) for part in parts for image in part.images)
    crowds = sum(int(image.crowd.sum()) for part in parts for image in part.images) if to == "yolo" else 0
    return Conversion(
        descriptor=out / DESCRIPTOR_NAME,
        images=sum(len(part) for part in everything),
        boxes=boxes - crowds,
        crowd_dropped=crowds,
        zero_area_dropped=sum(part.zero_area_dropped for part in parts),
    )


def coco_text(content: dict[str, Any]) -> str:
    """Return COCO JSON with one entry a line, so that a line number says which entry is meant."""
    lists = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            entries = ",\n".join(json.dumps(entry) for entry in value)
            lists.append(f"{json.dumps(key)}: [\n{entries}\n]")
        else:
            lists.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lists) + "\n}\n"


def _safe_name(image: ImageRecord) -> str:
    """Name of an image below the new folder; one that would lead out of it loses its folders."""
    name = Path(image.file_name or image.path.name)
    return name.name if name.is_absolute() or ".." in name.parts else name.as_posix()


def _refuse_shared_names(parts: list[DetectionData], to: Format) -> None:
    problems = []
    for part in parts:
        seen: dict[str, Path] = {}
        for image in part.images:
            name = _safe_name(image)
            key = name if to == "coco" else Path(name).with_suffix("").as_posix()
            if key in seen:
                problems.append(
                    f"split {part.name}: {image.path} and {seen[key]} would share the name {key}; rename one"
                )
            seen[key] = image.path
    if problems:
        raise RequestError(*problems)


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
            target = folder / part.name / _safe_name(image)
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
            pass  # A file system without links: copy.
    shutil.copyfile(source, target)


def _write_annotations(part: DetectionData, build: Path, to: Format) -> None:
    if to == "coco":
        content = part.to_coco()
        for entry, image in zip(content["images"], part.images, strict=True):
            entry["file_name"] = _safe_name(image)
        _write(build / "annotations" / f"{part.name}.json", coco_text(content))
        return
    folder = build / ("labels" if to == "yolo" else "annotations") / part.name
    folder.mkdir(parents=True, exist_ok=True)
    for image in part.images:
        name = Path(_safe_name(image))
        if to == "yolo":
            _write(folder / name.with_suffix(".txt"), _yolo_text(image))
        else:
            _write(folder / name.with_suffix(".xml"), _voc_text(image, part.classes))


def _yolo_text(image: ImageRecord) -> str:
    lines = []
    for (x, y, w, h), label, crowd in zip(image.boxes_xywh, image.labels, image.crowd, strict=True):
        if not crowd:
            parts = ((x + w / 2) / image.width, (y + h / 2) / image.height, w / image.width, h / image.height)
            lines.append(f"{label} " + " ".join(_number(value) for value in parts))
    return "".join(f"{line}\n" for line in lines)


def _voc_text(image: ImageRecord, classes: tuple[str, ...]) -> str:
    root = ElementTree.Element("annotation")
    _child(root, "filename", Path(_safe_name(image)).name)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _child(size, tag, str(value))
    for (x, y, w, h), label, crowd in zip(image.boxes_xywh, image.labels, image.crowd, strict=True):
        element = ElementTree.SubElement(root, "object")
        _child(element, "name", classes[int(label)])
        _child(element, "difficult", str(int(crowd)))
        corners = ElementTree.SubElement(element, "bndbox")
        for tag, corner in zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + w, y + h), strict=True):
            _child(corners, tag, _number(corner))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _child(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def _number(value: float) -> str:
    """Twelve digits: more than any annotation holds, and the rounding of the sums is gone."""
    return f"{float(value):.12g}"


def _write_descriptors(descriptor: DataDescriptor, parts: list[DetectionData], build: Path, to: Format) -> None:
    annotations = {"coco": "annotations/{}.json", "yolo": "labels/{}", "voc": "annotations/{}"}[to]
    splits = {
        part.name: {"images": f"images/{part.name}", "annotations": annotations.format(part.name)} for part in parts
    }
    content: dict[str, Any] = {"format": to, "root": ".", "splits": splits}
    if descriptor.unlabelled is not None:
        content["unlabelled"] = f"images/{_UNLABELLED}"
    if parts:
        content["classes"] = list(parts[0].classes)
    content |= {key: value for key, value in _provenance(descriptor).items() if value}
    _write(build / DESCRIPTOR_NAME, _yaml(content))
    if to == "yolo" and parts:
        # ultralytics takes a relative path as relative to its own settings, unless `path` is left out.
        places: dict[str, Any] = {part.name: f"images/{part.name}" for part in parts}
        places["names"] = dict(enumerate(parts[0].classes))
        _write(build / "ultralytics.yaml", _yaml(places))


def _provenance(descriptor: DataDescriptor) -> dict[str, str]:
    return {"source": descriptor.source, "licence": descriptor.licence}


def _yaml(content: dict[str, Any]) -> str:
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
