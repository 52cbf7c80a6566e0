"""Data descriptors, the YAML files of `datasets/`: format, splits, classes and licence of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.strict_yaml import load_mapping, resolve_path
from kd_vision.core.validation import StrictModel, validate
from kd_vision.data.formats import FORMATS
from kd_vision.data.formats.writing import write_yaml

DESCRIPTOR_NAME = "dataset.yaml"
"""Name of the descriptor in a data set that we write."""


class SplitSource(StrictModel):
    """Files of one split; paths are relative to the descriptor's root.

    Attributes:
        images: folder of images.
        annotations: COCO: the JSON file. VOC: the folder of XML files. YOLO: the folder of txt
            files; left out, the path of `images` with the part `images` replaced by `labels`.
        image_list: images of the folder that form the split (formats with a label file per image): a text file with
            one name a line, or a COCO JSON with these images. Left out: all of them.
    """

    images: str
    annotations: str | None = None
    image_list: str | None = None


class UnlabelledSource(StrictModel):
    """Files of the unlabelled images; paths are relative to the descriptor's root.

    Attributes:
        images: folder of images.
        list: images of the folder to use: a text file with one path a line, relative to the folder, as
            `kd-vision data select` writes it. Left out: all of them.
    """

    images: str
    list: str | None = None


class DataDescriptor(StrictModel):
    """A data set.

    Attributes:
        format: of the annotations, a key of `FORMATS`.
        root: folder that the other paths are relative to.
        splits: by name.
        unlabelled: images without labels; a plain text is the folder.
        classes: names in label order; left out, those of the annotations (COCO and VOC).
        subset: True: boxes of other classes than `classes` are left out. False: they are errors.
        source: where a user gets the set.
        licence: of the set.
    """

    format: str
    root: Path = Path(".")
    splits: dict[str, SplitSource] = Field(default_factory=dict)
    unlabelled: UnlabelledSource | None = None
    classes: tuple[str, ...] | None = None
    subset: bool = False
    source: str = ""
    licence: str = ""

    @field_validator("format")
    @classmethod
    def _in_table(cls, given: str) -> str:
        if given not in FORMATS:
            raise ValueError(f"unknown format '{given}'{suggest(given, FORMATS)}")
        return given

    @field_validator("unlabelled", mode="before")
    @classmethod
    def _folder_alone(cls, given: Any) -> Any:
        return {"images": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _consistent(self) -> DataDescriptor:
        errors = []
        if not self.splits and self.unlabelled is None:
            errors.append("names neither splits nor an unlabelled folder")
        if self.classes is not None:
            repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
            if repeated or not self.classes:
                errors.append(f"classes must be different names; repeated: {', '.join(repeated) or 'none given'}")
        if self.subset and self.classes is None:
            errors.append("subset: true needs classes: the names to keep")
        needs_classes = FORMATS[self.format].needs_classes
        if needs_classes and self.splits and self.classes is None:
            errors.append(f"format {self.format} needs classes: {needs_classes}")
        for name, source in self.splits.items():
            errors += _split_errors(self.format, name, source)
        if errors:
            raise ValueError("; ".join(errors))
        return self

    def resolve(self, text: str) -> Path:
        """Return a path of the descriptor as an absolute one."""
        return resolve_path(text, self.root)


def load_descriptor(path: Path) -> DataDescriptor:
    """Read a descriptor and make its paths absolute.

    Args:
        path: YAML file. Its `root` is relative to it; ``~`` and ``${VARS}`` are expanded.

    Raises:
        RequestError: the file is missing or wrong, with one line for every mistake.
    """
    content = load_mapping(path)
    descriptor = validate(DataDescriptor, content, str(path))
    problems: list[str] = []
    folder = path.resolve().parent
    root = _resolved(str(descriptor.root), folder, problems)
    splits = {
        name: source.model_copy(update=_resolved_source(source, root, problems))
        for name, source in descriptor.splits.items()
    }
    unlabelled = descriptor.unlabelled
    if unlabelled is not None:
        texts = {"images": unlabelled.images, "list": unlabelled.list}
        unlabelled = unlabelled.model_copy(update=_resolved_texts(texts, root, problems))
    if problems:
        raise RequestError(*(f"{path}: {problem}" for problem in dict.fromkeys(problems)))
    return descriptor.model_copy(update={"root": root, "splits": splits, "unlabelled": unlabelled})


def write_descriptor(path: Path, content: Mapping[str, Any]) -> None:
    """Write a descriptor.

    Args:
        path: the YAML file.
        content: values by key of `DataDescriptor`, written in this order; keys with None or an empty text are left out.
    """
    write_yaml(path, {key: value for key, value in content.items() if value not in (None, "")})


def _resolved_source(source: SplitSource, root: Path, problems: list[str]) -> dict[str, Any]:
    texts = {"images": source.images, "annotations": source.annotations, "image_list": source.image_list}
    return _resolved_texts(texts, root, problems)


def _resolved_texts(texts: Mapping[str, str | None], root: Path, problems: list[str]) -> dict[str, Any]:
    return {key: str(_resolved(text, root, problems)) for key, text in texts.items() if text is not None}


def _resolved(text: str, relative_to: Path, problems: list[str]) -> Path:
    try:
        return resolve_path(text, relative_to)
    except RequestError as error:
        problems.extend(error.problems)
        return Path(text)


def _split_errors(name_of_format: str, split: str, source: SplitSource) -> list[str]:
    entry = FORMATS[name_of_format]
    errors = []
    if entry.needs_annotations and source.annotations is None:
        errors.append(f"splits.{split} needs annotations: {entry.needs_annotations}")
    if entry.label_suffix is None and source.image_list is not None:
        errors.append(
            f"splits.{split}: format {name_of_format} takes no image_list, as its annotations list the images; "
            "leave image_list out"
        )
    return errors
