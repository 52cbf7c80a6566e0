"""What a data set is and where it lies: the YAML files of `datasets/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kd_vision.core.errors import RequestError
from kd_vision.core.strict_yaml import load_mapping, resolve_path
from kd_vision.core.validation import StrictModel, validate


class SplitSource(StrictModel):
    """Where one split lies; paths are relative to the descriptor's root.

    Attributes:
        images: folder of images.
        annotations: COCO: the JSON file. VOC: the folder of XML files. YOLO: the folder of txt
            files; left out, `labels` in the place of `images` in the path.
        image_list: which images of the folder form the split (YOLO and VOC): a text file with one
            name a line, or a COCO JSON whose images are meant. Left out: all of them.
    """

    images: str
    annotations: str | None = None
    image_list: str | None = None


class UnlabelledSource(StrictModel):
    """Where images without labels lie; paths are relative to the descriptor's root.

    Attributes:
        images: folder of images.
        list: which of them are meant: a text file with one path a line, relative to the folder, as
            `kd-vision data select` writes it. Left out: all of them.
    """

    images: str
    list: str | None = None


class DataDescriptor(StrictModel):
    """A data set.

    Attributes:
        format: of the annotations.
        root: folder that the other paths are relative to.
        splits: by name.
        unlabelled: images without labels; a bare text is the folder.
        classes: names in label order; COCO and VOC files bring their own where this is left out.
        subset: True: boxes of other classes than `classes` are left out. False: they are errors.
        source: where a user gets the set.
        licence: of the set.
    """

    format: Literal["coco", "yolo", "voc"]
    root: Path = Path(".")
    splits: dict[str, SplitSource] = Field(default_factory=dict)
    unlabelled: UnlabelledSource | None = None
    classes: tuple[str, ...] | None = None
    subset: bool = False
    source: str = ""
    licence: str = ""

    @field_validator("unlabelled", mode="before")
    @classmethod
    def _bare_folder(cls, given: Any) -> Any:
        return {"images": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _consistent(self) -> DataDescriptor:
        wrong = []
        if not self.splits and self.unlabelled is None:
            wrong.append("names neither splits nor an unlabelled folder")
        if self.classes is not None:
            repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
            if repeated or not self.classes:
                wrong.append(f"classes must be different names; repeated: {', '.join(repeated) or 'none given'}")
        if self.subset and self.classes is None:
            wrong.append("subset: true needs classes: the names to keep")
        if self.format == "yolo" and self.splits and self.classes is None:
            wrong.append("format yolo needs classes: its files hold only numbers")
        for name, source in self.splits.items():
            wrong += _split_problems(self.format, name, source)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def resolve(self, text: str) -> Path:
        """Return the path that `text` means, relative to the root."""
        return resolve_path(text, self.root)


def load_descriptor(path: Path) -> DataDescriptor:
    """Read a descriptor; all paths come back absolute.

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


def _split_problems(kind: str, name: str, source: SplitSource) -> list[str]:
    found = []
    if kind != "yolo" and source.annotations is None:
        meant = "a JSON file" if kind == "coco" else "a folder of XML files"
        found.append(f"splits.{name} needs annotations: {meant}")
    if kind == "coco" and source.image_list is not None:
        found.append(f"splits.{name}: image_list is for yolo and voc; a COCO file lists its images")
    return found
