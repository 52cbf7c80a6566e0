"""Which images of a folder form a split."""

from __future__ import annotations

import json
from pathlib import Path

from kd_vision.core.errors import RequestError
from kd_vision.data.descriptor import DataDescriptor, SplitSource
from kd_vision.data.images import list_images


def split_images(descriptor: DataDescriptor, source: SplitSource) -> list[str]:
    """Return the image names of a split, relative to its folder: those of its list, else all.

    Raises:
        RequestError: the folder or the list is missing or empty, or the list cannot be read.
    """
    folder = descriptor.resolve(source.images)
    if source.image_list is not None:
        return _listed(descriptor.resolve(source.image_list), folder)
    names = [path.relative_to(folder).as_posix() for path in list_images(folder)]
    if not names:
        raise RequestError(f"{folder}: holds no images")
    return names


def _listed(path: Path, folder: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RequestError(f"{path}: image list cannot be read; give a text file or a COCO JSON") from None
    names = _names_in_json(path, text) if path.suffix == ".json" else text.split("\n")
    cleaned = [name.strip() for name in names if name.strip()]
    if not cleaned:
        raise RequestError(f"{path}: image list is empty")
    return [_with_suffix(name, folder) for name in cleaned]


def _names_in_json(path: Path, text: str) -> list[str]:
    try:
        return [str(image["file_name"]) for image in json.loads(text)["images"]]
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{path}: has no list 'images' with file names; give a COCO JSON") from None


def _with_suffix(name: str, folder: Path) -> str:
    """VOC's own lists leave the suffix out; find the file that is meant."""
    if Path(name).is_absolute():
        return Path(name).as_posix()
    if (folder / name).exists():
        return name
    found = [suffix for suffix in (".jpg", ".png", ".jpeg") if (folder / f"{name}{suffix}").exists()]
    return f"{name}{found[0]}" if found else name
