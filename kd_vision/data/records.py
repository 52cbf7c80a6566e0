"""Images with their ground truth, and raw annotations as written in a file, before they are checked.

Shapes: M boxes of one image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Union

import numpy as np
import numpy.typing as npt

from kd_vision.data.pseudo_labels import PseudoLabelTable

CategoryKey = Union[int, str]
Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and its ground truth.

    Attributes:
        image_id: COCO image id; 1, 2, ... in order of file name for formats without ids.
        path: the image file.
        width: pixels, after EXIF rotation.
        height: pixels, after EXIF rotation.
        boxes_xyxy: (M, 4) float32, pixels of the original image.
        labels: (M,) int64, 0-based contiguous class.
        crowd: (M,) bool; a crowd box counts in evaluation only and is never a training target.
        areas: (M,) float64, the COCO area field; box area for formats without one.
        labelled: False for an image of the unlabelled folder.
        file_name: name relative to the image folder.
        source_xywh: (M, 4) float64, the boxes as in the annotation file, because float32 corners do not preserve
            every width exactly; None: derived from `boxes_xyxy`.
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float64]
    labelled: bool = True
    file_name: str = ""
    source_xywh: npt.NDArray[np.float64] | None = None

    @property
    def boxes_xywh(self) -> npt.NDArray[np.float64]:
        """(M, 4) x, y, width, height in pixels of the original image, exactly as in the source."""
        if self.source_xywh is not None:
            return self.source_xywh
        boxes = self.boxes_xyxy.astype(np.float64)
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class DetectionData:
    """A split: images and the classes of their labels.

    Attributes:
        name: of the split.
        classes: names in label order.
        category_ids: COCO id of each label.
        images: in the order of the source.
        zero_area_dropped: number of boxes without width or height that were left out.
        pseudo_labels: precomputed boxes by teacher name, each over these images, in these classes.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    zero_area_dropped: int = 0
    pseudo_labels: Mapping[str, PseudoLabelTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, table in self.pseudo_labels.items():
            if len(table) != len(self.images):
                raise ValueError(f"'{name}' has pseudo labels of {len(table)} images, '{self.name}' has {len(self)}")

    def subset(self, images: Sequence[int]) -> DetectionData:
        """Return some of the images, with their pseudo labels."""
        chosen = tuple(self.images[index] for index in images)
        tables = {name: table.subset(images) for name, table in self.pseudo_labels.items()}
        return replace(self, images=chosen, pseudo_labels=tables)

    def __len__(self) -> int:
        return len(self.images)

    def content_hash(self) -> str:
        """Return a SHA-256 over classes, boxes, and name and byte count of every image file.

        The image files are not read, which would take long on a large set.
        """
        digest = hashlib.sha256(repr((self.classes, self.category_ids)).encode())
        for image in self.images:
            size = image.path.stat().st_size if image.path.exists() else -1
            facts = (image.image_id, image.file_name, image.width, image.height, image.labelled, size)
            digest.update(repr(facts).encode())
            for array in (image.boxes_xywh, image.labels, image.crowd, image.areas):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def without_labels(data: DetectionData) -> DetectionData:
    """Return the same images as unlabelled ones; their pseudo labels stay."""
    bare = (
        replace(
            image,
            boxes_xyxy=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            crowd=np.zeros(0, np.bool_),
            areas=np.zeros(0, np.float64),
            labelled=False,
            source_xywh=None,
        )
        for image in data.images
    )
    return replace(data, images=tuple(bare))


def split_labelled(data: DetectionData, share: float) -> tuple[DetectionData, DetectionData]:
    """Split images into those that keep their labels and those that lose them.

    The choice depends only on the number of images, so that runs of all seeds, and a teacher trained on the same
    share, use the same labels. A smaller share is a subset of a larger one.

    Args:
        data: the split.
        share: of the images that keep their labels, in [0, 1]; their number is rounded, but above 0 at least 1.
    """
    count = len(data)
    kept = count if share == 1.0 else 0 if share == 0.0 else max(round(share * count), 1)
    chosen = set(np.random.default_rng(0).permutation(count)[:kept].tolist())
    labelled = tuple(image for index, image in enumerate(data.images) if index in chosen)
    rest = tuple(image for index, image in enumerate(data.images) if index not in chosen)
    return replace(data, images=labelled), without_labels(replace(data, images=rest))


@dataclass(frozen=True, slots=True)
class Defect:
    """An error or warning about a data set.

    Attributes:
        kind: short name, e.g. ``zero-area``.
        file: annotation file, or the image itself.
        line: 1-based line of `file`; 0 for an image, or a file as a whole.
        message: description of the defect.
        level: `error`: must be corrected; `warning`: may be intended.
    """

    kind: str
    file: Path
    line: int
    message: str
    level: Level = "error"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(frozen=True, slots=True)
class RawBox:
    """A box as written in an annotation file.

    Attributes:
        category: COCO category id, YOLO class number or VOC name.
        xywh: left, top, width, height in pixels of the original image.
        area: as written; None: that of the box.
        crowd: iscrowd of COCO, difficult of VOC.
        line: of the annotation file.
        what: its description in messages, e.g. ``annotation 17``.
    """

    category: CategoryKey
    xywh: tuple[float, float, float, float]
    area: float | None
    crowd: bool
    line: int
    what: str

    @property
    def is_empty(self) -> bool:
        """True where the box has no area."""
        return not (self.xywh[2] > 0 and self.xywh[3] > 0)


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image as listed in an annotation file.

    Attributes:
        image_id: see `ImageRecord`.
        path: the image file.
        file_name: relative to the image folder.
        size: (width, height) in the annotation file; None: not there.
        annotation_file: file that lists the image or has its boxes.
        line: of `annotation_file` that lists the image; 0: none.
        boxes: all boxes, also invalid ones.
    """

    image_id: int
    path: Path
    file_name: str
    size: tuple[int, int] | None
    annotation_file: Path
    line: int
    boxes: list[RawBox] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RawSplit:
    """A split as written in annotation files.

    Attributes:
        images: in the order of the source.
        categories: name of each valid category key.
        defects: entries and files that cannot be read.
        label_folder: folder of the label files, one per image; None: one file lists images and boxes.
    """

    images: list[RawImage]
    categories: Mapping[CategoryKey, str]
    defects: list[Defect] = field(default_factory=list)
    label_folder: Path | None = None
