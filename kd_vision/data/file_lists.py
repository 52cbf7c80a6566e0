"""Which images of a folder form a split."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from kd_vision.core.errors import RequestError, truncate
from kd_vision.data.descriptor import DataDescriptor, SplitSource, UnlabelledSource
from kd_vision.runtime.images import list_images


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


def unlabelled_images(source: UnlabelledSource) -> list[Path]:
    """Return the images without labels, sorted by path.

    Raises:
        RequestError: the folder or the list is missing or empty, or names images that are not there (up to 20
            lines).
    """
    folder = Path(source.images)
    paths = list_images(folder)
    if not paths:
        raise RequestError(f"{folder}: the unlabelled folder holds no images")
    if source.list is None:
        return paths
    there = {path.relative_to(folder).as_posix(): path for path in paths}
    names = _listed(Path(source.list), folder)
    lost = [name for name in names if name not in there]
    if lost:
        lines = [f"{source.list}: {name} is not among the images of {folder}{_near(name, there)}" for name in lost]
        raise RequestError(*truncate(lines))
    return sorted({there[name] for name in names})


def _near(name: str, possible: Iterable[str]) -> str:
    found = get_close_matches(name, possible, n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


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
