"""The teachers of a cross-fit as one: each image is labelled by the teacher that was not trained on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kd_vision.config.schema import RunConfig, TeacherConfig
from kd_vision.core.batch import ImageBatch, Targets
from kd_vision.core.fingerprint import fingerprint
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.progress import ProgressFactory
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.records import DetectionData, ImageRecord, without_labels
from kd_vision.detectors.base import Predictor
from kd_vision.knowledge.manifest import TeacherNote
from kd_vision.knowledge.store import Store, read_store
from kd_vision.knowledge.writer import StoreWriter
from kd_vision.pipeline.data import UNLABELLED
from kd_vision.pipeline.label import LabelOptions, fill, stored_options
from kd_vision.pipeline.models import best_device
from kd_vision.pipeline.teachers import teacher_fingerprint
from kd_vision.teachers.build import build_teacher, kind_of, parse_teacher
from kd_vision.teachers.ensemble import Ensemble

_SPLIT = "train"
"""Folder, in the store, of images of the training split that have no labels (`train.label_fraction`)."""


def fold_name(fold: int) -> str:
    """Return the name of a fold, from 1, which is that of its folder too."""
    return f"fold{fold + 1}"


@dataclass(frozen=True, slots=True)
class FoldTeachers:
    """A predictor that hands each image to one of several.

    Attributes:
        members: the predictors, of one architecture and the same classes.
        member_of: which of them predicts an image, by image id.
    """

    members: Sequence[Predictor]
    member_of: Mapping[int, int]

    @property
    def spec(self) -> DetectorSpec:
        """Facts about the first member, which hold for all."""
        return self.members[0].spec

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return one `Detections` per image, boxes in pixels of the original image."""
        member = np.array([self.member_of[image_id] for image_id in batch.image_ids])
        results = [Detections.empty()] * len(batch)
        for number in np.unique(member).tolist():
            chosen = np.flatnonzero(member == number)
            for row, found in zip(
                chosen.tolist(), self.members[number].predict(_some(batch, chosen), options), strict=True
            ):
                results[row] = found
        return results


def _some(batch: ImageBatch, chosen: npt.NDArray[np.int64]) -> ImageBatch:
    """Return some images of a batch of evaluation, without their ground truth."""
    rows = torch.from_numpy(chosen)
    none = torch.zeros(0, dtype=torch.int64)
    return replace(
        batch,
        images=batch.images[rows],
        labelled=batch.labelled[rows],
        targets=Targets(none, none, torch.zeros(0, 4)),
        image_ids=tuple(batch.image_ids[row] for row in chosen.tolist()),
        letterboxes=tuple(batch.letterboxes[row] for row in chosen.tolist()),
    )


def write_fold_store(
    config: RunConfig,
    root: Path,
    labelled: DetectionData,
    fold_of: npt.NDArray[np.int64],
    unlabelled: Mapping[str, DetectionData],
    options: LabelOptions,
    progress: ProgressFactory,
) -> Store:
    """Label every image by the teacher that was not trained on it, unlabelled ones by the ensemble of all.

    Args:
        config: of the teachers.
        root: with the folds' run directories; gets ``store/``.
        labelled: N labelled images.
        fold_of: (N,) the fold of each.
        unlabelled: other images by their folder in the store.
        options: of labelling.
        progress: receives the progress.
    """
    folds = int(fold_of.max()) + 1
    described = [_describe(config, root / fold_name(fold) / "student.pt") for fold in range(folds)]
    device, size = options.device or best_device(), config.image_size
    teachers = [build_teacher(one.config, one.options, None, one.name, size).to(device) for one in described]
    images, member_of = _images(labelled, fold_of, unlabelled, folds)
    by_folder = {fold_name(fold): teacher_fingerprint(one) for fold, one in enumerate(described)}
    note = TeacherNote(
        fingerprint=fingerprint([by_folder, {image.file_name: member_of[image.image_id] for image in images}]),
        description=f"{folds} cross-fitted {teachers[0].spec.name}, each on the images that it was not trained on"
        + ("; their ensemble on unlabelled images" if unlabelled else ""),
        by_folder=by_folder | dict.fromkeys(unlabelled, fingerprint(list(by_folder.values()))),
    )
    classes, stored = teachers[0].spec.classes, stored_options(options, size)
    writer = StoreWriter(root / "store", note, classes, stored, images, options.shard_size)
    predictor = FoldTeachers([*(teacher.source for teacher in teachers), Ensemble(teachers)], member_of)
    with progress("label the images") as bar:
        fill(writer, predictor, size, options, bar)
    return read_store(root / "store")


def _describe(config: RunConfig, weights: Path) -> TeacherConfig:
    """Return the student of a run as a teacher."""
    content = {"family": kind_of(config.student), "weights": str(weights.resolve()), "image_size": config.image_size}
    settings, options = parse_teacher(content, str(weights))
    return TeacherConfig(str(weights), settings, options)


def _images(
    labelled: DetectionData, fold_of: npt.NDArray[np.int64], unlabelled: Mapping[str, DetectionData], folds: int
) -> tuple[list[ImageRecord], dict[int, int]]:
    """Return all images, named ``fold1/NAME``, sorted and numbered; and the member that labels each, by image id."""

    def named() -> Iterator[tuple[str, int, ImageRecord]]:
        for fold, image in zip(fold_of.tolist(), without_labels(labelled).images, strict=True):
            yield f"{fold_name(fold)}/{image.file_name or image.path.name}", fold, image
        for folder, data in unlabelled.items():
            for image in without_labels(data).images:
                yield f"{folder}/{image.file_name or image.path.name}", folds, image

    ordered = sorted(named(), key=lambda one: one[0])
    images = [replace(image, image_id=n, file_name=name) for n, (name, _, image) in enumerate(ordered, start=1)]
    return images, {n: member for n, (_, member, _) in enumerate(ordered, start=1)}


def unlabelled_folders(rest: DetectionData, unlabelled: DetectionData | None) -> dict[str, DetectionData]:
    """Return the unlabelled images by their folder in the store, without empty ones."""
    folders = {_SPLIT: rest, UNLABELLED: unlabelled}
    return {name: data for name, data in folders.items() if data is not None and len(data)}
