"""Images of a split or of the unlabelled folder: all of a folder, or those of a list."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.core.errors import RequestError, truncate
from kd_vision.data.reading import read_text
from kd_vision.runtime.images import list_images

if TYPE_CHECKING:
    from kd_vision.data.descriptor import DataDescriptor, SplitSource, UnlabelledSource


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
    path_of = {path.relative_to(folder).as_posix(): path for path in paths}
    names = _listed(Path(source.list), folder)
    missing = [name for name in names if name not in path_of]
    if missing:
        lines = [f"{source.list}: {name} is not among the images of {folder}{_near(name, path_of)}" for name in missing]
        raise RequestError(*truncate(lines))
    return sorted({path_of[name] for name in names})


def _near(name: str, possible: Iterable[str]) -> str:
    """Return the near miss, without the list of all images that `suggest` would give."""
    near = get_close_matches(name, possible, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def _listed(path: Path, folder: Path) -> list[str]:
    text = read_text(path, "a list of images: a text file or a COCO JSON")
    names = _names_in_json(path, text) if path.suffix == ".json" else text.split("\n")
    cleaned = [name.strip() for name in names if name.strip()]
    if not cleaned:
        raise RequestError(f"{path}: image list is empty")
    errors = [f"{path}: '{name}' is not the name of a file" for name in cleaned if not Path(name).name]
    if errors:
        raise RequestError(*truncate(errors))
    return [_with_suffix(name, folder) for name in cleaned]


def _names_in_json(path: Path, text: str) -> list[str]:
    try:
        return [str(image["file_name"]) for image in json.loads(text)["images"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RequestError(f"{path}: has no list 'images' with file names; give a COCO JSON") from None


def _with_suffix(name: str, folder: Path) -> str:
    """Return the name of the image file; the lists of VOC leave out its suffix."""
    if Path(name).is_absolute():
        return Path(name).as_posix()
    candidates = [name, *(f"{name}{suffix}" for suffix in (".jpg", ".png", ".jpeg"))]
    return next((candidate for candidate in candidates if os.path.exists(folder / candidate)), name)
