"""Names and texts of the files of a written data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_vision.core.files import write_text
from kd_vision.core.strict_yaml import dump_yaml
from kd_vision.data.records import ImageRecord


def safe_name(image: ImageRecord) -> str:
    """Return the name of an image in the folder of its split; one that leads out of the folder loses its folders."""
    name = Path(image.file_name or image.path.name)
    return name.name if name.is_absolute() or ".." in name.parts else name.as_posix()


def number_text(value: float) -> str:
    """Return a number with 12 digits: more than annotations hold, and without the rounding errors of sums."""
    return f"{float(value):.12g}"


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a YAML file with the keys in the order given."""
    write_text(path, dump_yaml(content))
