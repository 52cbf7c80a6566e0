"""Selects the images of a folder of most value for training: `kd-vision data select`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_text
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.progress import ProgressFactory, log_progress
from kd_vision.data.dataset import DetectionData, records_of
from kd_vision.data.loader import eval_batches
from kd_vision.detectors.base import Predictor
from kd_vision.evaluation.runner import predict_all
from kd_vision.knowledge.ranking import CHOSEN, Ranked, acquisition_scores, choose, disagreement, picture_hash
from kd_vision.knowledge.store import Store, read_store
from kd_vision.pipeline.models import best_device, load_model
from kd_vision.runtime.images import list_images, read_image
from kd_vision.teachers.offline import OfflineTeacher
from kd_vision.teachers.options import DEFAULT_TEACHER_POSTPROCESS

_BATCH = 16


@dataclass(frozen=True, slots=True)
class SelectResult:
    """Result of a selection.

    Attributes:
        out: the list, one path a line relative to the folder; a descriptor takes it as ``unlabelled: {images:
            FOLDER, list: FILE}``.
        table: CSV of every image with its scores and the reason why it was left out.
        chosen: number of chosen images.
        alike: number of images left out as near duplicates of chosen ones.
        images: number of all images.
    """

    out: Path
    table: Path
    chosen: int
    alike: int
    images: int


def select(
    store: Path | str,
    images: Path | str,
    budget: int,
    out: Path | str,
    student: Path | str | None = None,
    image_size: int | None = None,
    trust: bool = False,
    progress: ProgressFactory = log_progress,
) -> SelectResult:
    """Rank images by their value for training, and list the best; see `knowledge.ranking` for the formula.

    Args:
        store: the teacher's predictions on the images.
        images: folder of the images.
        budget: number of images to choose.
        out: file of the list; the table is written next to it with the suffix ``.csv``.
        student: model to compare with the teacher; None: no part `disagreement`.
        image_size: the student's input side; None: as trained or exported.
        trust: allow a pickle outside the allow-list.
        progress: receives the progress.

    Raises:
        RequestError: an image is not in the store or cannot be read, student and teacher share no class, or
            there are no images.
    """
    folder, target = Path(images), Path(out)
    if budget < 1:
        raise RequestError(f"--budget: {budget} is too few; give 1 or more")
    if target.suffix == ".csv":
        raise RequestError(f"--out: {target} is the name of the table; give one that ends in .txt")
    predictions = read_store(Path(store))
    paths = list_images(folder)
    if not paths:
        raise RequestError(f"{folder}: holds no images")
    teacher = OfflineTeacher("store", predictions)
    data = teacher.attach(DetectionData(folder.name, predictions.classes, (), records_of(paths, folder)))
    table = data.pseudo_labels[teacher.name]
    detections = [_without_ignored(table.detections(index)) for index in range(len(data))]
    disagreements = None
    if student is not None:
        model = load_model(Path(student), image_size, trust, best_device())
        of_student = _student_predictions(model.predictor, model.image_size, data, predictions, progress)
        of_teacher = _of_shared_classes(detections, model.predictor.spec.classes, predictions.classes)
        disagreements = [disagreement(one, other) for one, other in zip(of_teacher, of_student, strict=True)]
    scores = acquisition_scores(detections, len(predictions.classes), disagreements)
    names = [image.file_name for image in data.images]
    ranked = choose(scores, names, _hashes(paths, progress), budget)
    return _write(ranked, names, target)


def _student_predictions(
    predictor: Predictor, image_size: int, data: DetectionData, store: Store, progress: ProgressFactory
) -> list[Detections]:
    """Run the student on the images; return its boxes in the teacher's classes."""
    classes = predictor.spec.classes
    target = np.array([store.classes.index(name) if name in store.classes else -1 for name in classes])
    if not (target >= 0).any():
        raise RequestError(
            f"--student: {predictor.spec.name} and the teacher of {store.path} share no class name "
            f"({', '.join(classes[:5])}; {', '.join(store.classes[:5])})"
        )
    batches = eval_batches(data, image_size, _BATCH, predictor.spec.input_channels)
    with progress("run the student") as bar:
        detections = predict_all(predictor, batches, _store_options(store), lambda done: bar.step(done, len(data)))
    predictions = []
    for image in data.images:
        one = _top_class(detections[image.image_id])
        one = one.take(target[one.labels] >= 0)
        predictions.append(Detections(one.boxes_xyxy, one.scores, target[one.labels]))
    return predictions


def _top_class(detections: Detections) -> Detections:
    """Keep a box only under its likeliest class, as pseudo labels do."""
    if detections.class_probs is None:
        return detections
    of_label = detections.class_probs[np.arange(len(detections)), detections.labels]
    return detections.take(of_label >= detections.class_probs.max(axis=1, initial=0.0))


def _store_options(store: Store) -> PredictOptions:
    """Return the thresholds with which the store was made."""
    options, default = store.manifest.options, DEFAULT_TEACHER_POSTPROCESS
    return PredictOptions(
        float(options.get("score_threshold") or default.score_threshold),
        float(options.get("nms_iou") or default.nms_iou),
        int(options.get("max_boxes") or default.max_detections),
    )


def _without_ignored(detections: Detections) -> Detections:
    """Leave out ignored boxes."""
    return detections if detections.ignore is None else detections.take(~detections.ignore)


def _of_shared_classes(
    detections: Sequence[Detections], student: tuple[str, ...], teacher: tuple[str, ...]
) -> list[Detections]:
    """Leave out boxes of classes that the student does not have."""
    shared = np.array([name in student for name in teacher])
    return [one.take(shared[one.labels]) for one in detections]


def _hashes(paths: Sequence[Path], progress: ProgressFactory) -> npt.NDArray[np.uint8]:
    hashes = []
    with ThreadPoolExecutor() as threads, progress("compare images") as bar:
        for bits in threads.map(lambda path: picture_hash(read_image(path, 1)), paths):
            hashes.append(bits)
            bar.step(len(hashes), len(paths))
    return np.stack(hashes)


def _write(ranked: Sequence[Ranked], names: Sequence[str], out: Path) -> SelectResult:
    table = out.with_suffix(".csv")
    chosen = sorted(names[one.index] for one in ranked if one.reason == CHOSEN)
    write_text(out, "".join(f"{name}\n" for name in chosen))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "file", "score", "disagreement", "uncertainty", "rarity", "verdict"])
    for rank, one in enumerate(ranked, start=1):
        differs = "" if one.acquisition.disagreement is None else f"{one.acquisition.disagreement:.6f}"
        parts = (
            f"{one.acquisition.score:.6f}",
            differs,
            f"{one.acquisition.uncertainty:.6f}",
            f"{one.acquisition.rarity:.6f}",
        )
        writer.writerow([rank, names[one.index], *parts, one.reason])
    write_text(table, text.getvalue())
    alike = sum(one.like is not None for one in ranked)
    return SelectResult(out, table, len(chosen), alike, len(ranked))
