"""Annotation formats. A new format is one file in this package and one line in `FORMATS`.

The file has two functions; one that is only read needs the first alone:

    read_my_format(descriptor: DataDescriptor, split: str) -> RawSplit
        The split as written: boxes, also wrong ones, and the defects of its files, each with its line. It raises
        `RequestError`, and nothing else, where a file cannot be parsed at all.
    write_my_format(parts: Sequence[DetectionData], out: Path) -> dict[str, str]
        Writes the annotations of splits, whose images are `out/images/SPLIT/safe_name(image)`, below the folder `out`.
        Returns, for each split, its `annotations` in the data descriptor, relative to `out`.

`tests/data/test_formats.py` tests every line of the table. Importing this package imports no reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.lazy import load_attribute

if TYPE_CHECKING:
    from kd_vision.data.records import DetectionData

    Writer = Callable[[Sequence[DetectionData], Path], dict[str, str]]

Field = Literal["areas", "crowds", "ids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatEntry:
    """One line of the table.

    Attributes:
        read: ``module:function`` of the reader.
        write: ``module:function`` of the writer; None: the format is only read.
        keeps: what the format stores besides boxes and classes: `areas` that differ from the box's, `crowds`, and the
            `ids` of images and categories. Where it has no ids, both are numbered from 1.
        label_suffix: suffix of the label file that each image has; None: one file for each split lists its images and
            boxes, so a split takes no `image_list`.
        needs_annotations: what the `annotations` of a split must be, for messages; None: they may be left out.
        needs_classes: why the descriptor must have `classes`, for messages; None: the annotations name them.
    """

    read: str
    write: str | None = None
    keeps: frozenset[Field] = frozenset()
    label_suffix: str | None = None
    needs_annotations: str | None = None
    needs_classes: str | None = None


FORMATS: Mapping[str, FormatEntry] = {
    "coco": FormatEntry(
        read="kd_vision.data.formats.coco:read_coco",
        write="kd_vision.data.formats.coco:write_coco",
        keeps=frozenset({"areas", "crowds", "ids"}),
        needs_annotations="a JSON file",
    ),
    "yolo": FormatEntry(
        read="kd_vision.data.formats.yolo:read_yolo",
        write="kd_vision.data.formats.yolo:write_yolo",
        label_suffix=".txt",
        needs_classes="its files hold only numbers",
    ),
    "voc": FormatEntry(
        read="kd_vision.data.formats.voc:read_voc",
        write="kd_vision.data.formats.voc:write_voc",
        keeps=frozenset({"crowds"}),
        label_suffix=".xml",
        needs_annotations="a folder of XML files",
    ),
}


def writable_formats() -> list[str]:
    """Return the names of the formats that have a writer."""
    return [name for name, entry in FORMATS.items() if entry.write is not None]


def load_writer(name: str) -> Writer:
    """Import and return the writer of the format called `name` in the table.

    Raises:
        RequestError: no format has this name, or it has no writer.
    """
    entry = FORMATS.get(name)
    if entry is None or entry.write is None:
        raise RequestError(f"format '{name}' cannot be written{suggest(name, writable_formats())}")
    return cast("Writer", load_attribute(entry.write))
