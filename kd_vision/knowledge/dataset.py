"""Converts a store to a COCO data set, for any trainer: the boxes of high scores become labels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from kd_vision.core.errors import RequestError
from kd_vision.core.label_map import LabelMap
from kd_vision.core.predictions import Detections
from kd_vision.data.descriptor import DESCRIPTOR_NAME, write_descriptor
from kd_vision.data.formats.coco import write_coco_file
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.knowledge.store import Store
from kd_vision.teachers.offline import OfflineTeacher


@dataclass(frozen=True, slots=True)
class PseudoLabelThresholds:
    """Thresholds on the scores of pseudo labels.

    Attributes:
        positive: boxes of this score or more become labels.
        ignore: boxes from this score up to `positive` become crowds, which are ignored in training.
        keep_ignored: False: they are left out instead, which makes them background.
    """

    positive: float = 0.5
    ignore: float = 0.2
    keep_ignored: bool = False

    def problems(self, lowest: float) -> list[str]:
        """Return the mistakes, for a store of boxes whose scores are at least `lowest`."""
        errors = []
        if not lowest <= self.positive <= 1.0:
            errors.append(f"--min-score: {self.positive:g} does not fit the store, whose scores are {lowest:g} to 1")
        if self.keep_ignored and not lowest <= self.ignore < self.positive:
            errors.append(
                f"--ignore-score: {self.ignore:g} must be at least {lowest:g}, the lowest score of the store, and less "
                f"than --min-score {self.positive:g}"
            )
        return errors


@dataclass(frozen=True, slots=True)
class WrittenDataset:
    """A data set written from a store.

    Attributes:
        descriptor: YAML file that `kd-vision train` takes.
        images: number of images in the split `train`.
        labels: number of boxes that became labels.
        ignored: number of boxes that became crowds: those between the thresholds, and those of ignored classes.
    """

    descriptor: Path
    images: int
    labels: int
    ignored: int


def write_dataset(
    store: Store,
    data: DetectionData,
    labels: LabelMap,
    others: Sequence[DetectionData],
    out: Path,
    thresholds: PseudoLabelThresholds = PseudoLabelThresholds(),
) -> WrittenDataset:
    """Write images of a store, with its boxes as labels, as the split `train`, and other splits unchanged.

    Images are not copied. Boxes between the thresholds and boxes of ignored classes become crowds, which are left
    out of training.

    Args:
        store: the teacher's predictions.
        data: images of the store; its classes and category ids are those of the new set.
        labels: from the store's classes to those.
        others: splits with ground truth, added for evaluation.
        out: a folder that does not exist yet or is empty.
        thresholds: which boxes become labels.

    Raises:
        RequestError: `out` is not empty, the thresholds do not fit the store, a split has no images, or an image is
            not in the store.
    """
    refuse_dataset(out, thresholds, float(store.manifest.options.get("score_threshold") or 0.0))
    empty = [part.name for part in (data, *others) if not part.images]
    if empty:
        raise RequestError(*(f"split '{name}' has no images; a data set needs some in every split" for name in empty))
    teacher = OfflineTeacher("store", store, labels)
    table = teacher.attach(data).pseudo_labels[teacher.name]
    labelled = (_labelled(image, table.detections(index), thresholds) for index, image in enumerate(data.images))
    train = replace(data, name="train", images=tuple(labelled))
    parts = [train, *(part for part in others if part.name != "train")]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        build = Path(scratch) / "set"
        _write(parts, build, store)
        os.replace(build, out)
    crowds = sum(int(image.crowd.sum()) for image in train.images)
    boxes = sum(len(image.labels) for image in train.images)
    return WrittenDataset(out / DESCRIPTOR_NAME, len(train), boxes - crowds, crowds)


def refuse_dataset(out: Path, thresholds: PseudoLabelThresholds, lowest: float) -> None:
    """Refuse arguments with which `write_dataset` would fail.

    Args:
        out: folder of the data set.
        thresholds: which boxes become labels.
        lowest: score threshold of the store.

    Raises:
        RequestError: one line for every mistake.
    """
    errors = thresholds.problems(lowest)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        errors.append(f"{out}: exists and is not an empty folder; give another --as-dataset")
    if errors:
        raise RequestError(*errors)


def _labelled(image: ImageRecord, detections: Detections, thresholds: PseudoLabelThresholds) -> ImageRecord:
    """Return the image with its pseudo labels as ground truth."""
    ignore = detections.ignore if detections.ignore is not None else np.zeros(len(detections), np.bool_)
    crowd = ignore | (detections.scores < thresholds.positive)
    keep = ~crowd | (ignore & (detections.scores >= thresholds.positive))
    if thresholds.keep_ignored:
        keep |= detections.scores >= thresholds.ignore
    boxes = detections.boxes_xyxy[keep]
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    solid = (sides > 0).all(axis=1)
    return replace(
        image,
        boxes_xyxy=boxes[solid],
        labels=detections.labels[keep][solid],
        crowd=crowd[keep][solid],
        areas=sides.prod(axis=1)[solid],
        labelled=True,
        source_xywh=None,
    )


def _write(parts: Sequence[DetectionData], build: Path, store: Store) -> None:
    splits: dict[str, dict[str, str]] = {}
    for part in parts:
        folder = Path(os.path.commonpath([image.path.absolute().parent for image in part.images]))
        name = f"annotations/{part.name}.json"
        write_coco_file(build / name, part, partial(_relative_path, folder))
        splits[part.name] = {"images": str(folder), "annotations": name}
    teacher = store.manifest.teacher
    source = f"labels of 'train' by {teacher.description} ({teacher.fingerprint[:12]}), from {store.path}"
    content = {"format": "coco", "root": ".", "splits": splits, "classes": list(parts[0].classes), "source": source}
    write_descriptor(build / DESCRIPTOR_NAME, content)


def _relative_path(folder: Path, image: ImageRecord) -> str:
    return image.path.absolute().relative_to(folder).as_posix()
